"""Sending: the blobs of a record to a remote store, and after them the record.

Large files go in chunks; what is there already is not sent again, so a broken push goes on
where it ended. The first record of a key stays: if another one has other bytes, the action is
not deterministic, and the files that differ are named.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from ftbuild.digest import Digest
from ftbuild.remote import chunks
from ftbuild.remote.backend import MAX_RECORD_BYTES, RemoteError
from ftbuild.remote.getting import Gone, RemoteLayer, parse
from ftbuild.remote.layer import Found
from ftbuild.remote.result import Blob, OutputDirectory, OutputFile, Result
from ftbuild.remote.upload import LostBytes, Progress, Uploader
from ftbuild.store.actions import Record, encode
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree

_MAX_NAMED = 5


class Outcome(StrEnum):
    """What became of a record that was sent."""

    SENT = "sent"
    PRESENT = "present"
    DIFFERENT = "different"
    LOST = "lost"
    """Its bytes are not in the local store, or damaged."""


@dataclass(frozen=True)
class Sent:
    """How it went."""

    outcome: Outcome
    differing: tuple[str, ...] = ()
    """The files that the first record has otherwise."""


class Sender:
    """Sends records of one store to one remote store; threads may share it."""

    def __init__(self, store: Store, layer: RemoteLayer, pool: ThreadPoolExecutor) -> None:
        self.layer = layer
        self._store = store
        self._uploader = Uploader(store, layer, pool)

    def send(self, record: Record, *, is_thorough: bool, progress: Progress | None = None) -> Sent:
        """Send one record; if it is there, look after its blobs only where that is asked for.

        Raises:
            RemoteError: it was not sent; blobs of it may have been.
        """
        first = self._first(record.key)
        is_distrusted = record.key in self.layer.distrusted
        if first is not None and not is_distrusted:
            if first.record.tree != record.tree:
                return Sent(Outcome.DIFFERENT, differing(first.record.tree, record.tree))
            if not is_thorough:
                return Sent(Outcome.PRESENT)
        try:
            manifests = self._uploader.send(record.tree, progress or (lambda _: None))
            result = _result(record, manifests)
        except LostBytes:
            return Sent(Outcome.LOST)
        if first is not None and not is_distrusted and _same_places(first.result, result):
            return Sent(Outcome.PRESENT)
        self.layer.guard.settle()
        return self._publish(record, result.encode(), only_new=first is None and not is_distrusted)

    def _publish(self, record: Record, message: bytes, *, only_new: bool) -> Sent:
        if len(message) > MAX_RECORD_BYTES:
            raise RemoteError("the record lists too many files")
        if self.layer.guard.put(f"ac/{record.key}", message, only_new=only_new):
            self.layer.distrusted.discard(record.key)
            return Sent(Outcome.SENT)
        first = self._first(record.key)
        if first is not None and first.record.tree != record.tree:
            return Sent(Outcome.DIFFERENT, differing(first.record.tree, record.tree))
        return Sent(Outcome.PRESENT)

    def _first(self, key: Digest) -> Found | None:
        """Return the record that is there; a damaged or forged one is to be written over."""
        data = self.layer.guard.get(f"ac/{key}", MAX_RECORD_BYTES)
        if data is None:
            return None
        try:
            first = parse(data, key)
        except Gone:
            self.layer.distrusted.add(key)
            return None
        if self._is_overruled(first.record):
            self.layer.distrusted.add(key)
            return None
        return first

    def _is_overruled(self, first: Record) -> bool:
        """Say whether the project believes what is signed here, and does not believe `first`."""
        trust = self._store.trust
        is_ours_believed = trust.signer is not None and trust.signer.public in trust.trusted
        return is_ours_believed and trust.objection(first) is not None


def _result(record: Record, manifests: Mapping[Digest, Blob]) -> Result:
    files: list[OutputFile] = []
    directories: list[OutputDirectory] = []
    for entry in record.tree.entries:
        if entry.size < chunks.SMALL_BYTES:
            blob = Blob(entry.digest, entry.size)
            files.append(OutputFile(entry.path, blob, entry.mode == "x"))
        else:
            directories.append(OutputDirectory(entry.path, manifests[entry.digest]))
    return Result(encode(record), tuple(files), tuple(directories))


def _same_places(a: Result, b: Result) -> bool:
    return (a.files, a.directories) == (b.files, b.directories)


def differing(first: Tree, second: Tree) -> tuple[str, ...]:
    """Return the paths of the files that two trees do not have in common."""
    a, b = ({entry.path: entry for entry in tree.entries} for tree in (first, second))
    return tuple(sorted(path for path in a.keys() | b.keys() if a.get(path) != b.get(path)))


def named(paths: Sequence[str]) -> str:
    """Return a few paths for a message."""
    shown = ", ".join(f"`{path}`" for path in paths[:_MAX_NAMED])
    more = len(paths) - _MAX_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
