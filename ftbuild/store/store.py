"""The store: blobs, trees and action records of one folder, for one process.

    with Store(Path("cache"), StatCache(Path(".ftbuild/statcache"))) as store:
        out = store.workspace()
        …                                          # an action fills it
        tree = store.put_tree(out)
        store.publish(Record(key, tree, None, document, provenance))
        store.lay_out(tree)                        # a read-only directory

The law: blobs, trees and records are written once, under a name that nobody has yet, and
appear whole or not at all. A record appears after its bytes. What is read is verified.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import wraps
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, Place
from ftbuild.store import chunklists, disk, leases, partial, recovery, roots, session, siblings
from ftbuild.store.actions import Record
from ftbuild.store.blobs import Blobs
from ftbuild.store.checkout import Checkout
from ftbuild.store.ingest import Ingest
from ftbuild.store.journal import Journal
from ftbuild.store.layout import open_layout
from ftbuild.store.leases import LockFile
from ftbuild.store.lookup import Lookup
from ftbuild.store.partial import Partial
from ftbuild.store.session import Session
from ftbuild.store.statcache import StatCache
from ftbuild.store.trees import Entry, Tree
from ftbuild.store.trust import Trust

if TYPE_CHECKING:
    from ftbuild.store.check import Checked, Fetch
    from ftbuild.store.gc import Collected

P = ParamSpec("P")
R = TypeVar("R")


def _in_words(method: Callable[P, R]) -> Callable[P, R]:
    """Make the OSErrors of a method of `Store` the MachineError that a user reads."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            store = args[0]
            assert isinstance(store, Store)
            raise disk.machine_error(error, str(store.root)) from error

    return call


class Store:
    """One opened store. Threads may share it; a forked child gets a session of its own."""

    def __init__(self, root: Path, statcache: StatCache, trust: Trust | None = None) -> None:
        """Open the store at `root`, which is made if need be; waits while gc runs.

        Without `trust` every record is believed, and none is signed.

        Raises:
            MachineError: it has a newer format, or cannot be made.
        """
        self.root = Path(os.path.abspath(root))
        self._statcache = statcache
        self.trust = trust or Trust()
        self.distrusted: dict[Digest, str] = {}
        """Records that were found and not believed, and why."""
        self._layout = open_layout(self.root)
        self._locks = LockFile(f"{self._layout.folder('leases')}/lock")
        self._shared: int | None = leases.share(self._locks)
        self._opened_by = os.getpid()
        self._start()
        recovery.recover(self._layout)
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _restart(itself()))

    def _start(self) -> None:
        """Begin without a session: what only reads needs no folders of its own."""
        self._opening = Lock()
        self._session: Session | None = None
        self._journal: Journal | None = None
        statcache, fresh = self._statcache, self._fresh
        self._blobs = Blobs(self._layout, statcache, fresh)
        self._checkout = Checkout(self._layout, self._blobs, statcache, fresh)
        self._ingest = Ingest(self._blobs, self._checkout, statcache, fresh)
        self._lookup = Lookup(self._layout, self._blobs)

    def _open(self) -> tuple[Session, Journal]:
        if self._session is None or self._journal is None:
            with self._opening:
                if self._session is None or self._journal is None:
                    self._session = Session(self._layout)
                    self._journal = Journal(self._layout, self._session)
        return self._session, self._journal

    def _fresh(self) -> str:
        return self._open()[0].fresh()

    @_in_words
    def workspace(self) -> Path:
        """Return a new empty directory of this process, on the store's own file system."""
        path = self._fresh()
        os.mkdir(path)
        return Path(path)

    def forget(self, directory: Path) -> None:
        """Remove a workspace and all in it."""
        with suppress(OSError):  # what stays goes when the process has ended
            disk.remove(str(directory))

    @_in_words
    def scratch(self, key: Digest) -> Path:
        """Return the directory of an action in which checkpoints survive a kill."""
        path = f"{self._layout.folder('scratch')}/{key}"
        os.makedirs(path, exist_ok=True)
        os.utime(path)  # gc spares what is young
        return Path(path)

    def toolchain(self, digest: Digest) -> Path:
        """Return where the Python environment of this digest is, or would be."""
        return Path(f"{self._layout.folder('toolchains')}/{digest}")

    @_in_words
    def drop_scratch(self, key: Digest) -> None:
        """Remove the scratch directory of an action."""
        disk.remove(f"{self._layout.folder('scratch')}/{key}")

    @_in_words
    def put_tree(self, directory: Path, *, adopted: Mapping[str, Digest] | None = None) -> Tree:
        """Make a workspace a tree of the store, laid out; the workspace is gone afterwards.

        `adopted` names files, by relative path, that are hard links to blobs: they are not
        hashed again. One that is not, or was written to, is put as any other.

        Raises:
            ActionError: it holds what no artifact may hold; `directory` is left as it is.
            MachineError: the store cannot be written; likewise.
        """
        return self._ingest.put(str(directory), adopted or {})

    @_in_words
    def put_bytes(self, data: bytes) -> Digest:
        """Make `data` a blob and return its digest."""
        digest = self._blobs.put_bytes(data)
        self._open()[1].add(digest)
        return digest

    def put_file(self, path: Path) -> Digest:
        """Copy a file into the store and return the digest of the copy.

        Raises:
            OSError: `path` cannot be read.
            MachineError: the store cannot be written.
        """
        try:
            digest = self._blobs.put_file(path)
        except OSError as error:
            if error.filename == str(path):
                raise
            raise disk.machine_error(error, str(self.root)) from error
        self._open()[1].add(digest)
        return digest

    @_in_words
    def receive(
        self, digest: Digest, blocks: Iterable[bytes | bytearray], begun: Partial | None = None
    ) -> bool:
        """Make what comes in `blocks` a blob if it has this digest; say whether it has.

        It is durable with the record that is published next.
        """
        is_right = self._blobs.receive(digest, blocks, begun)
        if is_right:
            self._open()[1].add(digest)
        return is_right

    def begun(self, digest: Digest, pieces: Sequence[tuple[Digest, int]]) -> Partial | None:
        """Return the right beginning of a large file whose fetch was broken off, for `receive`.

        `pieces` are the digests and sizes of which it consists.
        """
        if sum(size for _, size in pieces) < partial.WORTH_BYTES:
            return None
        return partial.claim(self._layout, digest, pieces, self._fresh())

    def give_back(self, begun: Iterable[Partial]) -> None:
        """Put beginnings that nothing was added to where they were."""
        for one in begun:
            partial.keep(self._layout, one.path)

    def intact_blob(self, entry: Entry) -> Path | None:
        """Return where the bytes of a file are, verified; None if they are not there."""
        try:
            is_intact = self._blobs.is_intact(entry.digest, entry.size)
        except OSError:
            return None
        return self.blob_path(entry.digest) if is_intact else None

    def chunk_list(self, digest: Digest) -> bytes | None:
        """Return what `keep_chunk_list` kept for a blob."""
        return chunklists.read(self._layout, digest)

    def keep_chunk_list(self, digest: Digest, body: bytes) -> bool:
        """Keep what a blob is cut into when it is sent; False where nothing can be written."""
        return chunklists.keep(self._layout, digest, body, self._fresh())

    def drop_chunk_list(self, digest: Digest) -> None:
        """Forget it: it is wrong."""
        chunklists.drop(self._layout, digest)

    def siblings(self, family: Digest) -> list[Digest]:
        """Return the keys that `note_siblings` noted, the latest first: a hint, not verified."""
        return siblings.read(self._layout, family)

    def note_siblings(self, family: Digest, keys: Iterable[Digest]) -> None:
        """Note that these are keys of fragments of one family."""
        siblings.note(self._layout, family, keys, self._fresh())

    def has_bytes(self, record: Record) -> bool:
        """Say whether each file of a record is there, by its size."""
        return self._lookup.has_bytes(record)

    def keep_known(self, record: Record) -> None:
        """Remember a record whose bytes a remote store has."""
        self._lookup.keep_known(record, self._fresh())

    def forget_known(self, key: Digest) -> None:
        """Forget a record that was kept so."""
        with suppress(OSError):
            os.unlink(self._layout.known(key))

    def known(self, key: Digest) -> Record | None:
        """Return a record that was kept so, if it is trusted."""
        record = self._lookup.known(key)
        return record if record is not None and self.trust.objection(record) is None else None

    def blob_path(self, digest: Digest) -> Path:
        """Return where the blob is, or would be; its bytes are not verified."""
        return Path(self._layout.blob(digest))

    def has_blob(self, digest: Digest) -> bool:
        """Say whether there is a blob of this name; its bytes are not verified."""
        return self._blobs.has(digest)

    def tree_path(self, digest: Digest) -> Path:
        """Return where the tree of this digest is laid out, or would be."""
        return Path(self._layout.tree(digest))

    @_in_words
    def take_away(self, digest: Digest) -> None:
        """Remove a laid-out tree that is not what its digest says and cannot be mended."""
        disk.remove(self._layout.tree(digest))

    def find(self, key: Digest) -> Record | None:
        """Return the record of an action if it was done and its bytes are there by size.

        A record that is not trusted counts as absent, and is noted in `distrusted`.
        """
        record = self.look_up(key)
        if record is None:
            return None
        objection = self.trust.objection(record)
        if objection is not None:
            self.distrusted[key] = objection
            return None
        return record

    def look_up(self, key: Digest) -> Record | None:
        """Return the record of an action as `find` does, whoever made it."""
        if self._journal is not None:
            record = self._journal.known.get(key)
            if record is not None:
                return record if self._lookup.has_bytes(record) else None
        return self._lookup.find(key, None if self._session is None else self._session.name)

    def has_record(self, key: Digest) -> bool:
        """Say whether an action was done, by the name of its record alone; nothing is read.

        Where signatures are required the record is read.
        """
        if self.trust.is_required:
            return self.find(key) is not None or self.known(key) is not None
        if self._journal is not None and key in self._journal.known:
            return True
        return os.path.exists(self._layout.action(key)) or os.path.exists(self._layout.known(key))

    @_in_words
    def publish(self, record: Record) -> None:
        """Record that an action was done.

        A kill loses nothing after this. A power cut before the next flush loses the record,
        but never leaves one whose bytes are missing.

        Raises:
            MachineError: the disk is full or failed; after a failed flush the records since
                the last one are dropped.
            ValueError: the record holds a number that is NaN or infinite.
        """
        self._open()[1].publish(record)

    @_in_words
    def publish_fetched(self, record: Record) -> None:
        """Record what an action gave elsewhere, whose bytes were fetched and can be once more.

        A kill loses nothing after this. A power cut within a minute may lose it.

        Raises:
            MachineError: the disk is full or failed.
        """
        self._open()[1].publish_fetched(record)

    @_in_words
    def flush(self) -> None:
        """Make all published records durable."""
        if self._journal is not None:
            self._journal.flush()

    @_in_words
    def flush_own(self) -> None:
        """Make all published records durable, but for those that can be fetched again."""
        if self._journal is not None:
            self._journal.flush_own()

    @_in_words
    def flush_if_due(self) -> None:
        """Flush if the last time is long enough ago: to be called while nothing is published."""
        if self._journal is not None:
            self._journal.flush_if_due()

    @_in_words
    def lay_out(self, tree: Tree) -> Path:
        """Return the directory of a tree, verified, and made or mended if need be.

        Raises:
            MissingBlob: a file is damaged or missing and so is its blob, which is moved to
                quarantine/: `find` no longer returns a record that needs it.
            MachineError: the store cannot be read or written.
        """
        return Path(self._checkout.lay_out(tree))

    def is_intact(self, tree: Tree) -> bool:
        """Say whether a tree is laid out and untouched, by stat alone; False if not known."""
        return self._checkout.is_intact(tree)

    def take_verified(self) -> list[list[Any]]:
        """Return which files this process has written or hashed, for `learn` of another one."""
        return self._statcache.take_new()

    def learn(self, verified: list[list[Any]]) -> None:
        """Believe of files what another process has found out."""
        self._statcache.learn(verified)

    def lease(self, key: Digest) -> AbstractContextManager[None]:
        """Hold an action against other processes and threads; waits for who holds it.

        Only saves double work. Whoever gets it asks `find` again first.
        """
        return leases.lease(self._locks, key)

    def try_lease(self, key: Digest) -> int | None:
        """Take the lease if it is free, and return what to give to `release_lease`."""
        return leases.try_lease(self._locks, key)

    def release_lease(self, key: Digest, held: int) -> None:
        """Give back what `try_lease` took."""
        leases.release(self._locks, key, held)

    @_in_words
    def register(self, state: Path) -> None:
        """Say that a workspace, known by its `.ftbuild` folder, uses this store.

        gc spares the actions whose keys the file `keys` in that folder lists, one a line.
        """
        roots.register(self._layout, state)

    @_in_words
    def gc(
        self,
        *,
        max_bytes: int | None = None,
        max_age_s: float | None = None,
        grace_s: float = 24 * 3600,
        in_use: Iterable[Digest] = (),
        dry_run: bool = False,
    ) -> "Collected":
        """Remove what is not in use and beyond the bounds, or in a dry run say what would be.

        Raises:
            MachineError: a build runs, or a workspace's list of keys cannot be read.
        """
        from ftbuild.store import gc  # a build never needs it

        self.flush()
        held = self._exclude(gc.WAIT_S)
        try:
            listed = roots.keys_in_use(self._layout, forget_vanished=not dry_run)
            keys = frozenset(listed.union(in_use))
            policy = gc.Policy(max_bytes, max_age_s, grace_s, keys, dry_run)
            own = None if self._session is None else self._session.name
            return gc.collect(self._layout, policy, own)
        finally:
            if self._journal is not None:
                self._journal.forget()
            leases.leave(self._locks, held)
            self._shared = leases.share(self._locks)

    @_in_words
    def check(self, fetch: "Fetch | None" = None) -> "Checked":
        """Hash every object; damaged ones are moved to quarantine/ and mended if possible.

        `fetch` brings a blob from elsewhere and says whether that worked.
        """
        from ftbuild.store.check import Checker

        self.flush()
        return Checker(self._layout, self._blobs, self.trust, fetch).run()

    def records(self) -> Iterator[Record]:
        """Yield every whole record, whoever made it."""
        from ftbuild.store.check import records

        return records(self._layout)

    def _exclude(self, wait_s: float) -> int:
        if self._shared is not None:
            leases.leave(self._locks, self._shared)
            self._shared = None
        held = leases.exclude(self._locks, wait_s)
        if held is not None:
            return held
        self._shared = leases.share(self._locks)
        raise MachineError(
            f"the store is in use by {_users(self)}",
            code="E0656",
            where=Place(str(self.root)),
            fix="wait until it has ended, then run `ftbuild gc` again",
        )

    def close(self) -> None:
        """Flush and leave the store; may be called twice.

        Raises:
            MachineError: the last flush failed.
        """
        try:
            if self._journal is not None:
                self._journal.close()
        finally:
            self._journal = None
            if self._session is not None:
                self._session.close()
                self._session = None
            if self._shared is not None and self._opened_by == os.getpid():
                leases.leave(self._locks, self._shared)
                self._shared = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _restart(store: Store | None) -> None:
    """Give a forked child folders and locks of its own."""
    if store is not None:
        store._statcache.take_new()  # the parent tells of those itself
        store._start()


def _users(store: Store) -> str:
    """Name the processes that have a session, other than this one."""
    layout = store._layout
    own = None if store._session is None else store._session.name
    names = [name for name in sorted(os.listdir(layout.folder("tmp"))) if name != own]
    living = [name for name in names if not session.is_dead(layout, name)]
    found = [who for name in living if (who := session.owner(layout, name)) is not None]
    told = [f"`{who.get('command')}` (pid {who.get('pid')} on {who.get('host')})" for who in found]
    return ", ".join(told) or "another process"
