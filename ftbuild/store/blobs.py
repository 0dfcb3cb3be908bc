"""Blobs: immutable bytes under the name of their digest.

A blob appears at its name by a rename or a hard link, whole or not at all. Small ones are
copies of the bytes that were hashed; a large one is one inode with the file of the tree that
brought it. A blob is never given out unverified: small ones are hashed as they are copied,
large ones unless the stat cache vouches for the inode.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ftbuild.digest import Digest, hash_bytes, hash_file
from ftbuild.errors import CorruptError, Place
from ftbuild.store import disk, partial
from ftbuild.store.disk import SMALL_BYTES
from ftbuild.store.layout import Layout
from ftbuild.store.partial import Partial
from ftbuild.store.statcache import StatCache, published_mtime_ns
from ftbuild.store.trees import Entry

_RENEW_S = 3600


class MissingBlob(CorruptError):
    """A blob is not there, or was damaged and moved to quarantine/: what made it must run."""

    code = "E0601"

    def __init__(self, digest: Digest, path: str) -> None:
        super().__init__(
            f"blob `{digest[:12]}` of the store is missing or damaged",
            where=Place(path),
            fix="run again: the action that makes it will be done anew",
        )
        self.digest = digest


class Blobs:
    """The blobs of one store; `fresh` names a private file to write to first."""

    def __init__(self, layout: Layout, statcache: StatCache, fresh: Callable[[], str]) -> None:
        self._layout = layout
        self._statcache = statcache
        self._fresh = fresh
        self._can_clone = True

    def has(self, digest: Digest) -> bool:
        """Say whether there is a blob of this name; its bytes are not looked at."""
        return os.path.exists(self._layout.blob(digest))

    def put_bytes(self, data: bytes) -> Digest:
        """Make `data` a blob, unless an intact one is there, and return its digest."""
        digest = hash_bytes(data)
        path = self._layout.blob(digest)
        if self._holds(path, data):
            return digest
        staged = self._fresh()
        disk.write_new(staged, data, 0o444)
        self._move(staged, digest)
        return digest

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            stat = os.fstat(descriptor)
            if stat.st_size != len(data) or os.read(descriptor, len(data) + 1) != data:
                return False
            if time.time() - stat.st_ctime > _RENEW_S:
                # gc spares what is young. Of another user's blob only its lock keeps gc away.
                with suppress(PermissionError):
                    os.utime(path)
            return True
        finally:
            os.close(descriptor)

    def put_file(self, source: Path) -> Digest:
        """Copy a file into the store and return its digest; what is hashed is the copy.

        Raises:
            OSError: `source` cannot be read, or the store written; the store is unchanged.
        """
        staged = self._fresh()
        if disk.clone(str(source), staged):
            digest, size = hash_file(staged), os.stat(staged).st_size
        else:
            digest, size = disk.copy_and_hash(str(source), staged)
        if self.is_intact(digest, size):
            os.unlink(staged)
            return digest
        self._finish(staged, Entry("", "f", size, digest), "f")
        self._move(staged, digest)
        return digest

    def receive(
        self, digest: Digest, blocks: Iterable[bytes | bytearray], begun: Partial | None = None
    ) -> bool:
        """Make what comes in `blocks` a blob if it has this digest; say whether it has.

        With `begun` they go on with what that has. What `blocks` raises is passed on; what came
        until then of a large file is kept for the next try.
        """
        staged = begun.path if begun is not None else partial.name(self._fresh(), digest)
        hasher = begun.hasher if begun is not None else None
        try:
            if disk.write_and_hash(staged, blocks, hasher) != digest:
                disk.remove(staged)
                return False
            self._finish(staged, Entry("", "f", 0, digest), "f")
        except OSError:
            disk.remove(staged)
            raise
        except BaseException:
            self._break_off(staged)
            raise
        self._move(staged, digest)
        return True

    def _break_off(self, staged: str) -> None:
        if os.stat(staged).st_size < partial.WORTH_BYTES:
            disk.remove(staged)
        else:
            partial.keep(self._layout, staged)

    def adopt(self, path: str, entry: Entry) -> None:
        """Make a large file a blob without copying it, or make it one with the blob there is.

        The file has been hashed to `entry.digest`, and has the mode and mtime of its entry.
        """
        blob = self._layout.blob(entry.digest)
        if self.is_intact(entry.digest, entry.size):
            self._replace_by_link(blob, path, entry)
            return
        # Mode and mtime belong to the inode: an executable file needs one of its own.
        if entry.mode == "f" and self._link_blob(path, blob, entry.digest):
            return
        staged = self._fresh()
        self._copy(path, staged, entry)
        self._finish(staged, entry, "f")
        self._move(staged, entry.digest)

    def _link_blob(self, path: str, blob: str, digest: Digest) -> bool:
        """Give a file of a tree its second name; False where there can be no link."""
        before = os.lstat(path)
        os.makedirs(os.path.dirname(blob), exist_ok=True)
        try:
            if not disk.link(path, blob):
                return False
        except FileExistsError:
            return True  # another process has just put the same bytes
        self.renew(path, before, digest)
        return True

    def _move(self, staged: str, digest: Digest) -> None:
        """Rename a finished file to its name as a blob."""
        blob = self._layout.blob(digest)
        try:
            before = os.lstat(staged)
            disk.rename_into(staged, blob)
            self.renew(blob, before, digest)
        except OSError:
            disk.remove(staged)
            raise

    def _replace_by_link(self, blob: str, path: str, entry: Entry) -> None:
        if entry.mode != "f" or os.path.samefile(blob, path):
            return
        staged = self._fresh()
        before = os.stat(blob)
        if disk.link(blob, staged):
            os.rename(staged, path)
            self.renew(path, before, entry.digest)

    def is_intact(self, digest: Digest, size: int) -> bool:
        """Say whether the blob is there with the right bytes; a damaged one is moved away."""
        path = self._layout.blob(digest)
        try:
            stat = os.lstat(path)
        except FileNotFoundError:
            return False
        if stat.st_size == size and self.holds(path, stat, digest):
            return True
        self.quarantine(path)
        return False

    def holds(self, path: str, stat: os.stat_result, digest: Digest) -> bool:
        """Say whether a file of the store has this content: by its stat, else by hashing it."""
        if self._statcache.vouches(stat, digest):
            return True
        read_at_ns = time.time_ns()
        if hash_file(path) != digest:
            return False
        after = os.lstat(path)
        if (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
            stat.st_ino,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        ):
            self._statcache.vouch(after, digest, read_at_ns)
        return True

    def is_same_inode(self, stat: os.stat_result, digest: Digest) -> bool:
        """Say whether a file is the inode of a blob, unwritten since it was published.

        Its ctime is not asked for: the hard link by which the file came has moved it. Any
        write would have moved its mtime.
        """
        if stat.st_mtime_ns != published_mtime_ns(digest):
            return False
        try:
            blob = os.lstat(self._layout.blob(digest))
        except FileNotFoundError:
            return False
        return (blob.st_dev, blob.st_ino) == (stat.st_dev, stat.st_ino)

    def distrust(self, stat: os.stat_result, digest: Digest) -> None:
        """Move a blob away if it is the inode with this stat, which was found damaged."""
        path = self._layout.blob(digest)
        try:
            blob = os.lstat(path)
        except FileNotFoundError:
            return
        if (blob.st_dev, blob.st_ino) == (stat.st_dev, stat.st_ino):
            self.quarantine(path)

    def restore(self, path: str, entry: Entry) -> None:
        """Make a blob that is missing of a file of a tree that was just verified."""
        if self.has(entry.digest):
            return
        if entry.size < SMALL_BYTES:
            self.put_bytes(disk.read(path))
        else:
            self.adopt(path, entry)

    def place(self, entry: Entry, destination: str) -> None:
        """Make the file of an entry at `destination`, which must not exist, from its blob.

        Raises:
            MissingBlob: there is no intact blob.
        """
        if entry.size < SMALL_BYTES:
            self._place_small(entry, destination)
            return
        if not self.is_intact(entry.digest, entry.size):
            raise MissingBlob(entry.digest, self._layout.blob(entry.digest))
        blob = self._layout.blob(entry.digest)
        before = os.lstat(blob)
        if self._clone(blob, destination):
            self._finish(destination, entry, entry.mode)
        elif entry.mode == "f" and disk.link(blob, destination):
            self.renew(destination, before, entry.digest)
        else:
            self._copy(blob, destination, entry)
            self._finish(destination, entry, entry.mode)

    def _place_small(self, entry: Entry, destination: str) -> None:
        path = self._layout.blob(entry.digest)
        try:
            data = disk.read(path)
        except FileNotFoundError:
            raise MissingBlob(entry.digest, path) from None
        if hash_bytes(data) != entry.digest:
            self.quarantine(path)
            raise MissingBlob(entry.digest, path)
        disk.write_new(destination, data)
        self._finish(destination, entry, entry.mode)

    def _copy(self, source: str, destination: str, entry: Entry) -> None:
        if self._clone(source, destination):
            return
        digest, _ = disk.copy_and_hash(source, destination)
        if digest != entry.digest:
            os.unlink(destination)
            raise MissingBlob(entry.digest, source)

    def _clone(self, source: str, destination: str) -> bool:
        # Asked once: a file system that cannot clone one file clones none.
        self._can_clone = self._can_clone and disk.clone(source, destination)
        return self._can_clone

    def _finish(self, path: str, entry: Entry, mode: str) -> None:
        """Give a new file its mode and mtime, and vouch for it."""
        read_at_ns = time.time_ns()
        os.chmod(path, 0o555 if mode == "x" else 0o444)
        moment = published_mtime_ns(entry.digest)
        os.utime(path, ns=(moment, moment))
        self._statcache.vouch(os.lstat(path), entry.digest, read_at_ns)

    def renew(self, path: str, before: os.stat_result, digest: Digest) -> None:
        """Vouch for an inode again after a link that we made or removed has moved its ctime."""
        if not self._statcache.vouches(before, digest):
            return
        after = os.lstat(path)
        if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            self._statcache.vouch(after, digest, time.time_ns())

    def quarantine(self, path: str) -> None:
        """Move something damaged out of the way, to where a person can look at it."""
        name = f"{os.path.basename(path)}-{os.getpid()}-{os.urandom(4).hex()}"
        target = f"{self._layout.folder('quarantine')}/{name}"
        try:
            disk.rename_into(path, target)
        except FileNotFoundError:
            return  # another process was quicker
        except OSError:
            # A store that may only be read: what is damaged stays, and is a miss each time.
            return
