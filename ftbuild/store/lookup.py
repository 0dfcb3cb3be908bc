"""Lookup: the record of a key, if there is one and its bytes are there by size.

No byte of a blob is read here: `lay_out` verifies. Damaged records go to quarantine/ and
count as absent, so that the action is simply done again.
"""

import os
import time
from contextlib import suppress

from ftbuild.digest import Digest
from ftbuild.store import disk
from ftbuild.store.actions import DamagedRecord, Record, decode, encode
from ftbuild.store.blobs import Blobs
from ftbuild.store.layout import Layout
from ftbuild.store.session import owner, place
from ftbuild.store.trees import Entry

_TOUCH_S = 3600
"""A record's mtime tells gc of its last use; it is renewed once in so many seconds, which is
little beside gc's grace period."""


class Lookup:
    """Finds records on the disk, in one store."""

    def __init__(self, layout: Layout, blobs: Blobs) -> None:
        self._layout = layout
        self._blobs = blobs
        self._pending = layout.folder("pending")
        self._listed_at_ns = -1
        self._neighbours: list[str] = []

    def find(self, key: Digest, own: str | None) -> Record | None:
        """Return the record of an action; `own` is the name of our own session."""
        record = self._in_actions(key)
        if record is None:
            neighbours = [name for name in self._living() if name != own]
            for name in neighbours:
                record = record or self._read(f"{self._pending}/{name}/{key}.json", key)
            if record is None and neighbours:
                # It may just have moved from there to here.
                record = self._in_actions(key)
        return record if record is not None and self.has_bytes(record) else None

    def _in_actions(self, key: Digest) -> Record | None:
        path = self._layout.action(key)
        try:
            return self._read_used(path, key)
        except DamagedRecord:
            self._blobs.quarantine(path)
            return None

    def keep_known(self, record: Record, staged: str) -> None:
        """Remember a record whose bytes are elsewhere; `staged` names a private file."""
        with suppress(OSError):  # it can be asked for again
            disk.write_new(staged, encode(record))
            disk.rename_into(staged, self._layout.known(record.key))

    def known(self, key: Digest) -> Record | None:
        """Return a record that was kept so; after a power cut it may be damaged, so absent."""
        return self._read(self._layout.known(key), key)

    def _read_used(self, path: str, key: Digest) -> Record | None:
        try:
            with open(path, "rb", buffering=0) as file:
                used_at_s = os.fstat(file.fileno()).st_mtime
                data = file.read() or b""
        except OSError:
            return None
        record = decode(data, key)
        if time.time() - used_at_s > _TOUCH_S:
            with suppress(OSError):
                os.utime(path)
        return record

    def _read(self, path: str, key: Digest) -> Record | None:
        # A neighbour may be writing it at this moment: half a record is no damage.
        with suppress(DamagedRecord):
            return self._read_used(path, key)
        return None

    def _living(self) -> list[str]:
        """Return the sessions whose pending records can be trusted: those of this boot."""
        try:
            changed_at_ns = os.stat(self._pending).st_mtime_ns
            if changed_at_ns != self._listed_at_ns:
                here = place()
                names = os.listdir(self._pending)
                self._neighbours = [
                    name for name in names if here and _place_of(self._layout, name) == here
                ]
                self._listed_at_ns = changed_at_ns
        except OSError:
            return []
        return self._neighbours

    def has_bytes(self, record: Record) -> bool:
        """Say whether each file is there, as a blob or laid out, with its size."""
        tree = self._layout.tree(record.tree.digest)
        for entry in record.tree.entries:
            if not self._has_blob(entry) and _size(f"{tree}/{entry.path}") != entry.size:
                return False
        return True

    def _has_blob(self, entry: Entry) -> bool:
        path = self._layout.blob(entry.digest)
        size = _size(path)
        if size is not None and size != entry.size:
            self._blobs.quarantine(path)
        return size == entry.size


def _size(path: str) -> int | None:
    try:
        return os.lstat(path).st_size
    except OSError:
        return None


def _place_of(layout: Layout, name: str) -> str | None:
    who = owner(layout, name)
    return None if who is None else who.get("place")
