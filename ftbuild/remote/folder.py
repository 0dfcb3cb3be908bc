"""A shared folder as a remote store: `cas/<sha256>` and `ac/<key>` below it.

So a web server can serve it as it is. Files appear whole, by a rename or a hard link, and are
readable for all; folders get the mode of the shared folder itself, so that whoever may write
there may write here.
"""

import errno
import os
import stat as stat_module
import threading
from collections.abc import Sequence
from contextlib import suppress

from ftbuild.remote.backend import Data, RemoteError, Want
from ftbuild.store import disk
from ftbuild.store.durability import Flusher

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Folder:
    """A folder of this machine or of a network file system."""

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self._path = path
        self._lock = threading.Lock()
        self._flusher: Flusher | None = None
        self._written: set[str] = set()

    def get(self, path: str, limit: int) -> Data | None:
        """Return an object, None if it is not there."""
        try:
            with open(f"{self._path}/{path}", "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size > limit:
                    raise RemoteError(f"`{path}` has {size:,} bytes, not {limit:,}", is_wrong=True)
                return _read(file.fileno(), limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._trouble(error) from error

    def size(self, path: str) -> int | None:
        """Return how many bytes an object has, None if it is not there."""
        try:
            return os.stat(f"{self._path}/{path}").st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._trouble(error) from error

    def get_all(self, wants: Sequence[Want]) -> list[Data | None]:
        """Return objects, None for each that is not there."""
        return [self.get(want.path, want.limit) for want in wants]

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return how many bytes each object has, None for each that is not there."""
        return [self.size(path) for path in paths]

    def put(self, path: str, data: bytes, *, only_new: bool = False) -> bool:
        """Write an object, whole or not at all; with `only_new` False if there is one already."""
        try:
            return self._put(f"{self._path}/{path}", data, only_new)
        except OSError as error:
            raise self._trouble(error) from error

    def _put(self, target: str, data: bytes, only_new: bool) -> bool:
        self._watch()
        folder = os.path.dirname(target)
        staged = f"{folder}/.{os.path.basename(target)[:16]}-{os.getpid()}-{os.urandom(6).hex()}"
        try:
            disk.write_new(staged, data)
        except FileNotFoundError:
            self._make(folder)
            disk.write_new(staged, data)
        try:
            os.chmod(staged, 0o444)
            if only_new:
                disk.sync(staged)  # a record: what it names is durable before
                return self._link(staged, target)
            os.rename(staged, target)
            staged = ""
            with self._lock:
                self._written.add(target)
            return True
        finally:
            if staged:
                with suppress(OSError):
                    os.unlink(staged)

    def _link(self, staged: str, target: str) -> bool:
        try:
            is_linked = disk.link(staged, target)
        except FileExistsError:
            return False
        if not is_linked:  # no hard links here: two writers at one moment may both think they won
            if os.path.exists(target):
                return False
            os.rename(staged, target)
        disk.sync(os.path.dirname(target))
        return True

    def _watch(self) -> None:
        # Before the first write: syncfs tells of errors since its descriptor was opened.
        with self._lock:
            if self._flusher is None:
                os.makedirs(self._path, exist_ok=True)
                self._flusher = Flusher(self._path)

    def _make(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        with suppress(PermissionError):  # another user made it, and saw to it
            os.chmod(folder, stat_module.S_IMODE(os.stat(self._path).st_mode))

    def settle(self) -> None:
        """Return when what was put is on the disk."""
        with self._lock:
            written, self._written = self._written, set()
            flusher = self._flusher
        if flusher is None or not written:
            return
        try:
            flusher.flush(written, {f"{self._path}/cas", self._path})
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> RemoteError:
        return RemoteError(
            error.strerror or type(error).__name__,
            is_temporary=error.errno in (errno.ESTALE, errno.EAGAIN, errno.EINTR),
            forbids_writing=error.errno in _FORBIDDEN | _FULL,
            is_down=error.errno in (errno.EIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENOTDIR),
        )

    def close(self) -> None:
        """Close the descriptor."""
        if self._flusher is not None:
            self._flusher.close()
            self._flusher = None


def _read(descriptor: int, limit: int) -> bytes:
    blocks = []
    while block := os.read(descriptor, 1 << 22):
        blocks.append(block)
        limit -= len(block)
        if limit < 0:
            raise RemoteError("it grows while it is read")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)
