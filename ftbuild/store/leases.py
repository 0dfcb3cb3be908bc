"""Leases: who works on an action now, so that nobody does the same work beside them.

A lease is a lock on one byte of one file, at an offset that follows from the key. So there
are no lock files to make, to clean up or to find stale, and the kernel frees the byte when
its holder dies. The lock belongs to the open file (F_OFD_SETLK of Linux), not to the
process: two threads exclude each other too.

Nothing may rest on a lease. On some network file systems locks succeed for everybody
(huggingface_hub #4306); then work is done twice and the store is as right as ever.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ftbuild.digest import Digest

_IN_USE = 1 << 62
"""The byte that everyone who uses the store locks for reading, and gc for writing."""

_FIRST_WAIT_S = 0.01
_LAST_WAIT_S = 0.2


class LockFile:
    """The file whose bytes are locked; it is opened anew for each lock."""

    def __init__(self, path: str) -> None:
        self._path = path

    def lock(self, offset: int, kind: int) -> int | None:
        """Lock a byte and return what to give to `unlock`; None if another holds it.

        A file system without locks counts as one on which nobody else is.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return -1
        try:
            _set(descriptor, offset, kind)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            pass
        return descriptor

    def unlock(self, descriptor: int, offset: int) -> None:
        """Free a byte. Closing alone would not: a forked child may hold the file open."""
        if descriptor < 0:
            return
        with suppress(OSError):
            _set(descriptor, offset, fcntl.F_UNLCK)
        os.close(descriptor)


def _set(descriptor: int, offset: int, kind: int) -> None:
    # struct flock of 64-bit Linux: type, whence, start, length, pid (0, or EINVAL).
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, offset, 1, 0))


@contextmanager
def lease(locks: LockFile, key: Digest) -> Iterator[None]:
    """Hold the lease of an action; waits while another process or thread holds it."""
    offset = _offset(key)
    descriptor = _wait(locks, offset, fcntl.F_WRLCK, None)
    assert descriptor is not None
    try:
        yield
    finally:
        locks.unlock(descriptor, offset)


def try_lease(locks: LockFile, key: Digest) -> int | None:
    """Take the lease of an action if it is free; return what to give to `release`."""
    return locks.lock(_offset(key), fcntl.F_WRLCK)


def release(locks: LockFile, key: Digest, held: int) -> None:
    """Give back what `try_lease` took."""
    locks.unlock(held, _offset(key))


def share(locks: LockFile) -> int:
    """Say that the store is in use; waits while gc runs."""
    descriptor = _wait(locks, _IN_USE, fcntl.F_RDLCK, None)
    assert descriptor is not None
    return descriptor


def exclude(locks: LockFile, wait_s: float) -> int | None:
    """Have the store alone; None if others still use it after `wait_s`."""
    return _wait(locks, _IN_USE, fcntl.F_WRLCK, wait_s)


def leave(locks: LockFile, held: int) -> None:
    """Give back what `share` or `exclude` took."""
    locks.unlock(held, _IN_USE)


def _offset(key: Digest) -> int:
    return int(key[:15], 16)


def _wait(locks: LockFile, offset: int, kind: int, wait_s: float | None) -> int | None:
    # Asked again and again instead of F_OFD_SETLKW: a signal must be able to end the wait
    # also in a thread that is not the main one.
    end = None if wait_s is None else time.monotonic() + wait_s
    pause = _FIRST_WAIT_S
    while (descriptor := locks.lock(offset, kind)) is None:
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _LAST_WAIT_S)
    return descriptor
