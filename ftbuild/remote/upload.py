"""Upload: the files of a tree become objects of a remote store; what is there is not sent again.

A large file goes in chunks, and after them their list. What is sent is decided a group of objects
at a time: one round trip asks for all of them. Files are read, and what is not known of them
hashed, by the threads that send; so little is in memory, and a file of which all is there is not
read at all once it is known what it was cut into.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import NamedTuple

from ftbuild.digest import Digest, hash_bytes
from ftbuild.remote import chunks, window
from ftbuild.remote.chunks import ChunkList
from ftbuild.remote.getting import RemoteLayer
from ftbuild.remote.result import Blob
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree

_GROUP_BYTES = 2 << 20
_GROUP_PARTS = 128

Progress = Callable[[int], None]
"""Told of each number of bytes that is now known to be there, sent or not."""


class LostBytes(Exception):
    """A file of a record is not in the local store, or damaged."""


class _Part(NamedTuple):
    """One object on its way."""

    size: int
    load: Callable[[], bytes]
    blob: Blob | None
    """None where its digest is not known before it is read."""
    of: Digest | None = None
    """The large file that it is a chunk of."""
    is_last: bool = False


class Uploader:
    """Sends files of one store to one remote store; threads may share it."""

    def __init__(self, store: Store, layer: RemoteLayer, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._layer = layer
        self._pool = pool
        self._lock = Lock()
        self._there: set[Digest] = set()
        self._sending: defaultdict[Digest, Lock] = defaultdict(Lock)
        """For each object that was sent: what two targets share is sent once."""
        self._unkept: dict[Digest, ChunkList] = {}
        """Lists that the local store does not take."""

    def send(self, tree: Tree, progress: Progress) -> dict[Digest, Blob]:
        """Send all that is not there of a tree's files; return the manifest of each large one.

        Raises:
            LostBytes: a file is not to be had.
            RemoteError: not all was sent.
        """
        manifests: dict[Digest, Blob] = {}
        cutting: list[Blob] = []
        for parts, blobs in self._send_all(self._parts(tree, manifests)):
            progress(sum(blob.size for blob in blobs))
            for part, blob in zip(parts, blobs, strict=True):
                if part.of is None or part.blob is not None:
                    continue
                cutting.append(blob)
                if part.is_last:
                    manifests[part.of] = self._keep(part.of, chunks.listed(cutting))
                    cutting = []
        # A manifest after its chunks, as a record after its blobs.
        for _ in self._send_all(self._listings(tree, manifests)):
            pass
        return manifests

    def _send_all(self, parts: Iterable[_Part]) -> Iterator[tuple[list[_Part], list[Blob]]]:
        def send(group: list[_Part]) -> tuple[list[_Part], list[Blob]]:
            return group, self._send_group(group)

        return window.in_order(
            self._pool,
            send,
            window.grouped(parts, most_bytes=_GROUP_BYTES, most_items=_GROUP_PARTS),
        )

    def _parts(self, tree: Tree, manifests: dict[Digest, Blob]) -> Iterator[_Part]:
        """Yield the objects of all files but manifests; note those that are known."""
        for entry in _distinct(tree):
            path = self._store.intact_blob(entry)
            if path is None:
                raise LostBytes(entry.path)
            if entry.size < chunks.SMALL_BYTES:
                blob = Blob(entry.digest, entry.size)
                yield _Part(entry.size, _reader(str(path), 0, entry.size), blob)
                continue
            kept = chunks.decode(self._store.chunk_list(entry.digest), entry.size)
            if kept is not None:
                manifests[entry.digest] = kept.manifest
            place = 0
            for blob_or_none, size in _pieces(entry, str(path), kept):
                load = _reader(str(path), place, size)
                place += size
                is_last = place == entry.size
                yield _Part(size, load, blob_or_none, entry.digest, is_last)

    def _keep(self, digest: Digest, found: ChunkList) -> Blob:
        """Keep the list of a file that was cut; return its manifest."""
        if not self._store.keep_chunk_list(digest, found.encode()):
            self._unkept[digest] = found
        return found.manifest

    def _listings(self, tree: Tree, manifests: Mapping[Digest, Blob]) -> Iterator[_Part]:
        for entry in _distinct(tree):
            if entry.size >= chunks.SMALL_BYTES:
                blob = manifests[entry.digest]
                yield _Part(blob.size, partial(self._message, entry), blob)

    def _message(self, entry: Entry) -> bytes:
        kept = self._unkept.get(entry.digest) or chunks.decode(
            self._store.chunk_list(entry.digest), entry.size
        )
        if kept is None:
            raise LostBytes(entry.path)
        return kept.message()

    def _send_group(self, parts: Sequence[_Part]) -> list[Blob]:
        """Send the objects that are not there; return all of them."""
        loaded = {number: part.load() for number, part in enumerate(parts) if part.blob is None}
        blobs = [
            part.blob or Blob(hash_bytes(loaded[number]), part.size)
            for number, part in enumerate(parts)
        ]
        for number in self._missing(blobs):
            self._send_once(parts[number], blobs[number], loaded.get(number))
        digests = {blob.digest for blob in blobs}
        with self._lock:
            self._there |= digests
            self._layer.suspects -= digests
        return blobs

    def _send_once(self, part: _Part, blob: Blob, data: bytes | None) -> None:
        """Send an object, unless another thread has done so or does it now."""
        with self._lock:
            turn = self._sending[blob.digest]
        with turn:
            if blob.digest not in self._there:
                self._layer.guard.put(f"cas/{blob.digest}", data or self._verified(part, blob))
                with self._lock:
                    self._there.add(blob.digest)

    def _missing(self, blobs: Sequence[Blob]) -> list[int]:
        """Return which of some objects have to be sent."""
        with self._lock:
            wanted = [n for n, blob in enumerate(blobs) if blob.digest not in self._there]
        asked = [n for n in wanted if blobs[n].digest not in self._layer.suspects]
        sizes = self._layer.guard.sizes([f"cas/{blobs[n].digest}" for n in asked]) if asked else []
        there = {n for n, size in zip(asked, sizes, strict=True) if size == blobs[n].size}
        return [n for n in wanted if n not in there]

    def _verified(self, part: _Part, blob: Blob) -> bytes:
        """Read an object whose digest was known before."""
        data = part.load()
        if hash_bytes(data) != blob.digest:
            if part.of is not None:
                self._store.drop_chunk_list(part.of)
            raise LostBytes(blob.digest)
        return data


def _distinct(tree: Tree) -> Iterator[Entry]:
    """Yield a file for each content that is not empty."""
    return iter({entry.digest: entry for entry in tree.entries if entry.size}.values())


def _pieces(entry: Entry, path: str, kept: ChunkList | None) -> Iterator[tuple[Blob | None, int]]:
    """Yield the chunks of a large file: by its list, else by cutting it."""
    if kept is not None:
        yield from ((blob, blob.size) for blob in kept.blobs)
        return
    try:
        yield from ((None, size) for size in chunks.cut(path, entry.size))
    except OSError as error:
        raise LostBytes(entry.path) from error


def _reader(path: str, place: int, size: int) -> Callable[[], bytes]:
    """Return what reads a part of a file."""

    def read() -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, place)
        except OSError as error:
            raise LostBytes(path) from error
        if len(data) != size:
            raise LostBytes(path)
        return data

    return read
