"""What a build asks for results, and gives its own to: all layers together, and a queue.

supply.find(key)            a record, without bytes
supply.fetch(record, tree)  the bytes of a part of it, into the local store
supply.offer(record)        to be sent in the background
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from ftbuild.digest import Digest
from ftbuild.remote import window
from ftbuild.remote.backend import RemoteError
from ftbuild.remote.getting import RemoteLayer
from ftbuild.remote.guard import Tell
from ftbuild.remote.layer import Layer
from ftbuild.remote.sending import Outcome, Sender, named
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree

Accept = Callable[[Record], str | None]
"""Returns why a record is not to be used, None if it may be."""


class Supply:
    """The layers beyond one store. Threads may share it."""

    def __init__(
        self,
        store: Store,
        layers: Sequence[Layer],
        pool: ThreadPoolExecutor,
        tell: Tell,
        accept: Accept = lambda _: None,
    ) -> None:
        self.layers = layers
        self.remotes = [layer for layer in layers if isinstance(layer, RemoteLayer)]
        self.senders = [Sender(store, layer, pool) for layer in self.remotes]
        self.got_bytes = 0
        """Of the files that came."""
        self._store = store
        self._pool = pool
        self.errands = window.pool("remote-errand")
        self._tell = tell
        self._accept = accept
        self._lock = threading.Lock()
        self._records: dict[Digest, Record | None] = {}
        self._refused: set[Digest] = set()
        self._queue: SimpleQueue[tuple[Record, str] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting = 0
        self._is_drained = threading.Condition(self._lock)

    def find(self, key: Digest) -> Record | None:
        """Return the record of an action that some layer has, or had when it was last asked."""
        with self._lock:
            if key in self._records:
                return self._records[key]
        record = self._store.known(key)
        if record is None or self._accept(record) is not None:
            record = self._ask(key)
        with self._lock:
            self._records[key] = record
        return record

    def find_all(self, keys: Sequence[Digest]) -> None:
        """Ask for many records at once; `find` then answers from memory."""
        list(self._pool.map(self.find, keys))

    def _ask(self, key: Digest) -> Record | None:
        for layer in self.layers:
            found = layer.find(key)
            if found is None:
                continue
            reason = self._accept(found.record)
            if reason is None:
                self._store.keep_known(found.record)
                return found.record
            if isinstance(layer, RemoteLayer):  # who may write replaces it by a result of ours
                layer.distrusted.add(key)
            self._tell(f"`{layer.name}` has a result that is not used: {reason}")
        return None

    def do(self, work: Callable[[], None]) -> None:
        """Do something that waits for answers, in a thread for such things."""
        self.errands.submit(work)

    def refuse(self, record: Record, why: str) -> None:
        """Take a record back that is not what it should be, and say so."""
        self._tell(f"a remote result is not used: it is {why}")
        for layer in self.remotes:
            layer.distrusted.add(record.key)
        self._forget(record.key)

    def _forget(self, key: Digest) -> None:
        """No longer answer with a record: its bytes are not to be had."""
        with self._lock:
            self._records[key] = None
        self._store.forget_known(key)

    def fetch(self, record: Record, tree: Tree) -> int:
        """Bring the files of `tree`, a part of a record's, into the store; return their bytes.

        Raises:
            MissingBlob: not all can be had.
            MachineError: the store cannot be written.
        """
        missing = self._missing(tree)
        size = sum(entry.size for entry in missing)
        for layer in self.layers:
            if not missing:
                break
            came = layer.fetch(record, missing, self._store)
            missing = [entry for entry in missing if entry.digest not in came]
        with self._lock:
            self.got_bytes += size - sum(entry.size for entry in missing)
        if missing:
            self._forget(record.key)
            where = str(self._store.blob_path(missing[0].digest))
            raise MissingBlob(missing[0].digest, where)
        if self._store.has_bytes(record):
            self._store.publish_fetched(record)
        return size

    def _missing(self, tree: Tree) -> list[Entry]:
        """Return a file for each blob that is not there; empty ones are made."""
        found: dict[Digest, Entry] = {}
        for entry in tree.entries:
            if not entry.size:
                self._store.put_bytes(b"")
            elif entry.digest not in found and self._store.intact_blob(entry) is None:
                found[entry.digest] = entry
        return list(found.values())

    def offer(self, record: Record, label: str) -> None:
        """Have a record sent, soon and in the background, to each remote store that takes any."""
        if not any(s.layer.guard.can_write and s.layer.guard.is_open for s in self.senders):
            return
        with self._lock:
            self._waiting += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()
        self._queue.put((record, label))

    @property
    def num_waiting(self) -> int:
        """How many results are still to be sent."""
        return self._waiting

    def drain(self, wait_s: float | None = None) -> bool:
        """Wait until all that was offered is sent or given up; False if the time was over."""
        with self._is_drained:
            return self._is_drained.wait_for(lambda: self._waiting == 0, wait_s)

    def _send_all(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                for sender in self.senders:
                    self._send(sender, *item)
            finally:
                with self._is_drained:
                    self._waiting -= 1
                    self._is_drained.notify_all()

    def _send(self, sender: Sender, record: Record, label: str) -> None:
        guard = sender.layer.guard
        if not (guard.can_write and guard.is_open):
            return
        try:
            sent = sender.send(record, is_thorough=False)
        except RemoteError as error:
            if guard.can_write and guard.is_open:
                guard.warn(f"did not take a result ({error.what})")
            return
        except Exception as error:  # whatever it is, the build is done and right
            guard.warn(f"did not get a result ({type(error).__name__})")
            return
        if sent.outcome is Outcome.DIFFERENT:
            self._tell(different(label, guard.name, sent.differing))

    def sent_bytes(self) -> int:
        """Return how many bytes were sent."""
        return sum(sender.layer.guard.sent_bytes for sender in self.senders)

    def close(self) -> None:
        """Stop: what was not sent yet is not sent."""
        for layer in self.layers:
            layer.close()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        for pool in (self.errands, self._pool):
            pool.shutdown(cancel_futures=True)


def different(label: str, remote: str, paths: Sequence[str]) -> str:
    """Return the warning that an action gave other bytes than before."""
    return (
        f"`{label}` is not deterministic: `{remote}` has another result for the same key, which "
        f"stays; different: {named(paths)}"
    )
