"""Files as the store handles them: written once, copied cheaply, errors in a user's words."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, Place

SMALL_BYTES = 64 << 10
"""Below this a file is copied where a larger one is linked: a copy costs about as much as
the link, and a damaged copy is mended from its blob without running anything."""

_BLOCK_BYTES = 1 << 20
_MAX_BATCH = 512
"""Half of what one `writev` takes."""
_BEHIND = 4
_Block = bytes | bytearray
_FICLONE = 0x40049409
_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.ENOSYS}
_NO_LINK = {errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def read(path: str) -> bytes:
    """Return all bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    assert data is not None
    return data


def write_new(path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file that must not exist yet; on an error it does not exist either."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError:
        os.unlink(path)
        raise


def write_durable(path: str, data: bytes, staged: str) -> None:
    """Write a file, whole or not at all, that a power cut neither empties nor loses.

    For the few files that are written once in the life of a store; objects are flushed in
    batches.
    """
    write_new(staged, data)
    sync(staged)
    os.rename(staged, path)
    sync(os.path.dirname(path))


def sync(path: str) -> None:
    """Return when a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`, however little each write takes."""
    done = os.write(descriptor, data)
    while done < len(data):
        done += os.write(descriptor, memoryview(data)[done:])


def copy_and_hash(source: str, destination: str) -> tuple[Digest, int]:
    """Copy to a file that must not exist yet; return digest and size of what was written."""
    hasher, size = hashlib.sha256(), 0
    output = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            with open(source, "rb", buffering=0) as file:
                while block := file.read(_BLOCK_BYTES):
                    hasher.update(block)
                    write_all(output, block)
                    size += len(block)
        finally:
            os.close(output)
    except OSError:
        os.unlink(destination)
        raise
    return Digest(hasher.hexdigest()), size


def write_and_hash(
    path: str, blocks: Iterable[bytes | bytearray], begun: "hashlib._Hash | None" = None
) -> Digest:
    """Write `blocks` to a file that must not exist yet; return the digest of all of them.

    With `begun` the file has a beginning, which that has hashed, and they go on with it.

    A large file is hashed by a thread of its own, a few pieces behind the writing: either takes
    some 0.8 s of a gigabyte.
    """
    hasher = begun or hashlib.sha256()
    how = os.O_CREAT | os.O_EXCL if begun is None else os.O_APPEND
    output = os.open(path, os.O_WRONLY | os.O_CLOEXEC | how, 0o644)
    try:
        batches = _batches(blocks)
        first = next(batches, [])
        _write(output, first)
        _hash(hasher, first)
        if sum(map(len, first)) >= _BLOCK_BYTES:
            _write_beside(output, hasher, batches)
    finally:
        os.close(output)
    return Digest(hasher.hexdigest())


def _write_beside(output: int, hasher: "hashlib._Hash", batches: Iterable[list[_Block]]) -> None:
    """Write while a thread hashes what was written before."""
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    behind: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as beside:
        for batch in batches:
            behind.append(beside.submit(_hash, hasher, batch))
            _write(output, batch)
            if len(behind) > _BEHIND:
                behind.popleft().result()
        for hashing in behind:
            hashing.result()


def _batches(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Yield blocks together that are small, for fewer calls."""
    batch: list[_Block] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += len(block)
        if size >= _BLOCK_BYTES or len(batch) >= _MAX_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(descriptor: int, batch: list[_Block]) -> None:
    done = os.writev(descriptor, batch) if batch else 0
    for block in batch:
        if done < len(block):
            write_all(descriptor, memoryview(block)[done:])
        done = max(0, done - len(block))


def _hash(hasher: "hashlib._Hash", batch: list[_Block]) -> None:
    for block in batch:
        hasher.update(block)


def clone(source: str, destination: str) -> bool:
    """Make `destination` a reflink of `source`; False where the file system has none.

    Both then share their blocks until one is written to: the copy costs nothing, and
    unlike with a hard link a write to one leaves the other as it was.
    """
    with open(source, "rb", buffering=0) as file:
        output = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.ioctl(output, _FICLONE, file.fileno())
        except OSError as error:
            os.unlink(destination)
            if error.errno in _NO_CLONE:
                return False
            raise
        finally:
            os.close(output)
    return True


def link(source: str, destination: str) -> bool:
    """Make a hard link; False where there can be none (65,000 on ext4, other devices)."""
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def rename_into(source: str, destination: str) -> None:
    """Rename; the folder of `destination` is made if it is missing."""
    try:
        os.rename(source, destination)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(destination), exist_ok=True)
        os.rename(source, destination)


def exists(path: str) -> bool:
    """Say whether there is something at `path`, a dangling link too."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def remove(path: str) -> None:
    """Remove a file or a folder with all in it, whatever their modes; absent is fine."""
    # Not shutil.rmtree: it stops at a folder that a rule made read-only, and importing
    # shutil costs a tenth of a start.
    try:
        os.unlink(path)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    try:
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            names = [entry.path for entry in entries]
        for name in names:
            remove(name)
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _remove_deep(path)


def _remove_deep(path: str) -> None:
    """Remove a folder that goes deeper than a path can name, from folder to folder."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def is_full(path: str) -> bool:
    """Say whether the disk of `path` has no room for anything that an action would write."""
    try:
        space = os.statvfs(path)
    except OSError:
        return False
    no_inodes = space.f_files > 0 and space.f_favail == 0
    return no_inodes or space.f_bavail * space.f_frsize < _NOTHING_BYTES


_NOTHING_BYTES = 64 << 10
"""What is left when a write did not fit depends on how large it was; more than this, and
something else was wrong."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def machine_error(error: OSError, path: str, *, needed: int | None = None) -> MachineError:
    """Return what the user is told when the store at `path` met `error`."""
    # A call on a descriptor names its number.
    named = isinstance(error.filename, str | bytes)
    where = Place(os.fsdecode(error.filename) if named else path)
    if error.errno in _FULL:
        return MachineError(
            _full(error, path, needed),
            code="E0650",
            where=where,
            fix="free some space, `ftbuild gc` frees the store's, and run again: "
            "what is finished is kept",
        )
    if error.errno == errno.ENAMETOOLONG:
        return MachineError(
            "a path is longer than the system takes: a name 255 bytes, all of it 4,096",
            code="E0653",
            where=Place(f"{where.path[:200]}…"),
            fix="write shorter names, or fewer folders in one another",
        )
    if error.errno in _CLOSED:
        return MachineError(
            f"the store cannot be written: {error.strerror}",
            code="E0652",
            where=where,
            fix="make the folder writable, or set FTBUILD_CACHE to another one",
        )
    return MachineError(
        f"the store cannot be used: {error.strerror or error}",
        code="E0653",
        where=where,
        fix="run again; if it stays, set FTBUILD_CACHE to another folder",
    )


def _full(error: OSError, path: str, needed: int | None) -> str:
    if error.errno == errno.EDQUOT:
        return f"the disk quota is used up{_needed(needed)}"
    try:
        space = os.statvfs(path)
    except OSError:
        return f"the disk is full{_needed(needed)}"
    free = space.f_bavail * space.f_frsize
    if space.f_files and not space.f_favail:
        return f"the disk has no free inodes ({free:,} bytes are free)"
    return f"the disk is full: {free:,} bytes are free{_needed(needed)}"


def _needed(needed: int | None) -> str:
    return "" if needed is None else f", {needed:,} are needed"
