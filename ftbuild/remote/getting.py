"""Getting: a record of a remote store, and the bytes of its files, verified before they are seen.

What is wrong, too long, too slow or not there is a miss: the action runs on this machine.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

from ftbuild.digest import Digest, hash_bytes, hash_value
from ftbuild.remote import window
from ftbuild.remote.backend import MAX_OBJECT_BYTES, MAX_RECORD_BYTES, Data, RemoteError, Want
from ftbuild.remote.guard import Guard
from ftbuild.remote.layer import Found
from ftbuild.remote.result import BadMessage, Blob, Result, decode_manifest
from ftbuild.store.actions import DamagedRecord, Record, decode
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry

_GROUP_BYTES = 1 << 20
_GROUP_OBJECTS = 64


class Gone(Exception):
    """A blob that a record names is not there, or is not what it should be."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def parse(data: Data, key: Digest) -> Found:
    """Return the record of `key` in the message `data`.

    Raises:
        Gone: it is damaged, or another action's.
    """
    try:
        result = Result.decode(bytes(data))
        record = decode(result.record, key)
        is_own = hash_value(record.document) == key
    except (BadMessage, DamagedRecord, ValueError, TypeError, RecursionError) as error:
        raise Gone(f"a record that is none: {error}") from error
    if not is_own:
        raise Gone("a record whose document is of another key")
    return Found(record, result)


class RemoteLayer:
    """A remote store, to read from."""

    def __init__(self, guard: Guard, pool: ThreadPoolExecutor) -> None:
        self.name = guard.name
        self.guard = guard
        self.suspects: set[Digest] = set()
        """Objects that were wrong or missing: whoever has them should send them again."""
        self.distrusted: set[Digest] = set()
        """Keys of records whose bytes were not to be had."""
        self._pool = pool
        self._found: dict[Digest, Found] = {}

    def find(self, key: Digest) -> Found | None:
        """Return the record of an action."""
        if not self.guard.is_open or key in self.distrusted:
            return None
        try:
            data = self.guard.get(f"ac/{key}", MAX_RECORD_BYTES)
            if data is None:
                return None
            self._found[key] = parse(data, key)
        except RemoteError as error:
            self.guard.warn(f"does not answer as it should ({error.what})")
            return None
        except Gone as error:
            self.guard.blame(error.what)
            self.distrusted.add(key)
            return None
        return self._found[key]

    def fetch(self, record: Record, entries: Sequence[Entry], store: Store) -> set[Digest]:
        """Bring files of a record into `store`, all that can be had."""
        found = self._found.get(record.key) or self.find(record.key)
        if found is None or found.record.tree != record.tree:
            return set()
        came: set[Digest] = set()
        if (needed := _missing_space(entries, store)) is not None:
            self.guard.warn(f"has a result of {needed:,} bytes, more than the disk has free")
            return came
        try:
            self._receive(self._places(found, entries), store, came)
        except RemoteError as error:
            self.guard.warn(f"does not answer as it should ({error.what})")
            if error.is_wrong:
                self.distrusted.add(record.key)
        except Gone as error:
            self.guard.blame(error.what)
            self.distrusted.add(record.key)
        return came

    def _places(
        self, found: Found, entries: Sequence[Entry]
    ) -> list[tuple[Entry, tuple[Blob, ...]]]:
        """Return the objects of which each file consists."""
        by_path = {directory.path: directory.manifest for directory in found.result.directories}
        whole: dict[str, tuple[Blob, ...]] = {
            entry.path: (Blob(entry.digest, entry.size),) for entry in entries
        }
        named = [(entry.path, by_path[entry.path]) for entry in entries if entry.path in by_path]
        lists = window.in_order(self._pool, self._manifest, [manifest for _, manifest in named])
        whole.update((path, chunks) for (path, _), chunks in zip(named, lists, strict=True))
        for entry in entries:
            blobs = whole[entry.path]
            if sum(blob.size for blob in blobs) != entry.size:
                raise Gone("chunks that do not add up to their file")
            if any(blob.size > MAX_OBJECT_BYTES for blob in blobs):
                raise Gone("an object that is too large")
        return [(entry, whole[entry.path]) for entry in entries]

    def _manifest(self, blob: Blob) -> tuple[Blob, ...]:
        [data] = self._get([blob], MAX_RECORD_BYTES)
        try:
            if hash_bytes(data) != blob.digest:
                raise BadMessage("its bytes have another digest")
            return decode_manifest(bytes(data))
        except BadMessage as error:
            self.suspects.add(blob.digest)
            raise Gone(f"a list of chunks that is none: {error}") from error

    def _get(self, blobs: Sequence[Blob], limit: int = MAX_OBJECT_BYTES) -> list[Data]:
        wants = [Want(f"cas/{blob.digest}", min(blob.size, limit)) for blob in blobs]
        found: list[Data] = []
        for blob, data in zip(blobs, self.guard.get_all(wants), strict=True):
            if data is None:
                self.suspects.add(blob.digest)
                raise Gone("a record whose bytes are not there")
            if len(data) != blob.size:
                self.suspects.add(blob.digest)
                raise Gone("fewer bytes than an object has")
            found.append(data)
        return found

    def _receive(
        self, places: Sequence[tuple[Entry, tuple[Blob, ...]]], store: Store, came: set[Digest]
    ) -> None:
        begun = [store.begun(entry.digest, blobs) for entry, blobs in places]
        rests = [b[0 if p is None else p.count :] for p, (_, b) in zip(begun, places, strict=True)]
        stream = window.in_order(
            self._pool,
            self._get,
            window.grouped(
                chain.from_iterable(rests), most_bytes=_GROUP_BYTES, most_items=_GROUP_OBJECTS
            ),
        )
        objects = chain.from_iterable(stream)
        try:
            for (entry, blobs), start, rest in zip(places, begun, rests, strict=True):
                if not store.receive(entry.digest, islice(objects, len(rest)), start):
                    self.suspects |= {blob.digest for blob in blobs}
                    raise Gone("bytes of another digest")
                came.add(entry.digest)
        finally:
            stream.close()
            store.give_back([start for start in begun if start is not None])

    def close(self) -> None:
        """Let go of connections."""
        self.guard.close()


def _missing_space(entries: Sequence[Entry], store: Store) -> int | None:
    """Return the bytes that are needed if the disk has not as many."""
    needed, space = sum(entry.size for entry in entries), os.statvfs(store.root)
    return needed if needed > space.f_bavail * space.f_frsize else None
