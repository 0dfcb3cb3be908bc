"""The journal: records between being published and being durable.

    publish   writes pending/<process>/<key>.json     a kill loses nothing from here on
    flush     makes the bytes durable, then renames the records to actions/ab/<key>.json, then
              makes the names durable                 a power cut loses nothing from here on

Flushing is put off so that thousands of tiny actions share one: it takes 1 to 100 ms. Until
then other processes of the machine find the record in pending/; its bytes are in the page
cache, which no kill takes away. After a power cut nobody reads pending/ but `recovery`.

What was fetched can be had again, so nobody waits for the disk because of it: it is flushed with
the next records that were made here, or stays in pending/ when the process ends, and is made
durable by one that comes later, when the kernel has long written it (`recovery`).
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, Place
from ftbuild.store import disk
from ftbuild.store.actions import Record, encode
from ftbuild.store.durability import Flusher
from ftbuild.store.layout import Layout
from ftbuild.store.session import Session

_INTERVAL_S = 1.0
_SHARE = 10
"""Flushing takes at most one part in so many of a build's time."""
_BATCH_BYTES = 256 << 20
_MAX_WAITING_BYTES = 1 << 30
"""No more than this is left to a later process, which hashes it: a second's work."""


class Journal:
    """The records that one process has published; several threads may use it."""

    def __init__(self, layout: Layout, session: Session) -> None:
        self._layout = layout
        self._session = session
        self._flusher = Flusher(layout.base)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._batch: dict[Digest, Record] = {}
        self._fetched: dict[Digest, Record] = {}
        """Records whose bytes can be had again; they wait for the next flush."""
        self._loose: set[Digest] = set()
        self._size = 0
        self._flushed_at = time.monotonic()
        self._pause_s = _INTERVAL_S
        self.known: dict[Digest, Record] = {}
        """All records of this process, pending or durable."""

    def add(self, digest: Digest) -> None:
        """Make a blob that no tree holds durable with the next records."""
        with self._lock:
            self._loose.add(digest)

    def publish(self, record: Record) -> None:
        """Keep a record; flush if it is time to.

        Raises:
            OSError: it could not be written; it is not published.
            MachineError: the flush failed.
        """
        self._write(record)
        with self._lock:
            self._batch[record.key] = record
            self.known[record.key] = record
            self._size += record.tree.size
        self.flush_if_due()

    def publish_fetched(self, record: Record) -> None:
        """Keep a record whose bytes can be had again.

        Raises:
            OSError: it could not be written; it is not published.
            MachineError: the flush failed.
        """
        if os.path.exists(self._layout.action(record.key)):
            self.publish(record)  # a durable record needs durable bytes
            return
        self._write(record)
        with self._lock:
            self._fetched[record.key] = record
            self.known[record.key] = record
            waiting = sum(found.tree.size for found in self._fetched.values())
        if waiting > _MAX_WAITING_BYTES:
            self.flush()

    def _write(self, record: Record) -> None:
        data = encode(record)
        try:
            disk.write_new(self._pending(record.key), data)
        except FileExistsError:
            self.flush()
            disk.write_new(self._pending(record.key), data)

    def flush_if_due(self) -> None:
        """Flush if there is something to and the last time is long enough ago."""
        waited_s = time.monotonic() - self._flushed_at
        if self._batch and (waited_s > self._pause_s or self._size > _BATCH_BYTES):
            self.flush()

    def flush_own(self) -> None:
        """Make all records durable that were made here.

        Raises:
            MachineError: as `flush`.
        """
        if self._batch:
            self.flush()

    def flush(self) -> None:
        """Make all records durable.

        Raises:
            MachineError: the disk failed: the records are dropped, their actions will be done
                again. Or it is full: the records stay pending.
        """
        with self._flushing:
            with self._lock:
                batch, self._batch = {**self._fetched, **self._batch}, {}
                self._fetched = {}
                loose, self._loose = (self._loose, set()) if batch else (set(), self._loose)
                self._size = 0
            if batch:
                began = time.monotonic()
                self._session.touch()
                self._flush(batch, loose)
                self._flushed_at = time.monotonic()
                self._pause_s = max(_INTERVAL_S, _SHARE * (self._flushed_at - began))

    def _flush(self, batch: Mapping[Digest, Record], loose: Iterable[Digest]) -> None:
        blobs = {e.digest for record in batch.values() for e in record.tree.entries}
        files = [self._layout.blob(digest) for digest in blobs.union(loose)]
        folders = {os.path.dirname(path) for path in files}
        folders |= {self._layout.folder("blobs"), self._session.pending}
        files += [self._pending(key) for key in batch]
        try:
            self._flusher.flush(files, folders)
        except OSError as error:
            self._drop(batch)
            raise _failed(error, self._layout.base) from error
        self._promote(batch)
        actions = {os.path.dirname(self._layout.action(key)) for key in batch}
        try:
            self._flusher.flush((), {*actions, self._layout.folder("actions")})
        except OSError as error:
            self._drop(batch)
            for key in batch:
                with suppress(OSError):
                    os.unlink(self._layout.action(key))
            raise _failed(error, self._layout.base) from error

    def _promote(self, batch: Mapping[Digest, Record]) -> None:
        waiting = dict(batch)
        try:
            for key, record in batch.items():
                self._move(key, record)
                del waiting[key]
        except OSError as error:
            with self._lock:
                self._batch = {**waiting, **self._batch}
            raise disk.machine_error(error, self._layout.base) from error

    def _move(self, key: Digest, record: Record) -> None:
        target = self._layout.action(key)
        try:
            disk.rename_into(self._pending(key), target)
        except FileNotFoundError:
            # Another process took us for dead and moved it, or it was removed by hand.
            if not os.path.exists(target):
                staged = self._session.fresh()
                disk.write_new(staged, encode(record))
                self._flusher.flush((staged,), ())
                disk.rename_into(staged, target)

    def _drop(self, batch: Mapping[Digest, Record]) -> None:
        for key in batch:
            self.known.pop(key, None)
            with suppress(OSError):
                os.unlink(self._pending(key))

    def forget(self) -> None:
        """No longer answer from memory; for after a gc."""
        self.known = {**self._fetched, **self._batch}

    def _pending(self, key: Digest) -> str:
        return f"{self._session.pending}/{key}.json"

    def close(self) -> None:
        """Flush what was made here, and give the descriptor back whatever comes of it."""
        try:
            self.flush_own()
            self._session.leaves_records = bool(self._fetched)
        finally:
            self._flusher.close()


def _failed(error: OSError, path: str) -> MachineError:
    return MachineError(
        f"the disk did not take what was written to the store: {error.strerror}",
        code="E0651",
        where=Place(path),
        why="what was finished since the last flush may be lost and is not recorded",
        fix="look at the disk (`dmesg`), then run again",
    )
