"""A session: what one process writes before others see it.

Each process has folders of its own, `tmp/<process>/` and `pending/<process>/`, so that two
never write the same file. Whether the process of such folders still lives is told by its
pid and start time where it runs beside us (same boot, same pid namespace), else by the lock
on its file `owner` and, because locks may do nothing, by a day of silence.
"""

import fcntl
import itertools
import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

from ftbuild.digest import canonical_json
from ftbuild.store import disk
from ftbuild.store.layout import Layout

SILENCE_S = 24 * 3600
"""Units: seconds. After this, a process of another machine that holds no lock is gone."""
SETTLE_S = 60
"""Units: seconds. By then the kernel has written what a process left (it begins after 30)."""

_LEFT = "left"
"""The file in a session's folder that says that its process ended well and left records."""


class Session:
    """The private folders of this process, and the number of its next file."""

    def __init__(self, layout: Layout) -> None:
        self.name = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.folder = f"{layout.folder('tmp')}/{self.name}"
        self.pending = f"{layout.folder('pending')}/{self.name}"
        self.leaves_records = False
        """Whether what is pending at the end is meant to wait."""
        self._numbers = itertools.count()
        os.makedirs(self.folder)
        self._lock = _claim(f"{self.folder}/owner")
        os.makedirs(self.pending)

    def fresh(self) -> str:
        """Return a path that nothing has used yet."""
        return f"{self.folder}/{next(self._numbers)}"

    def touch(self) -> None:
        """Show that the process lives."""
        with suppress(OSError):
            os.utime(f"{self.folder}/owner")

    def close(self) -> None:
        """Remove the folders; records that are not durable stay, and who left them, for later."""
        with suppress(OSError):
            os.rmdir(self.pending)
        if self.leaves_records:
            self._leave()
        else:
            with suppress(OSError):
                disk.remove(self.folder)
        os.close(self._lock)

    def _leave(self) -> None:
        with suppress(OSError):
            for name in os.listdir(self.folder):
                if name != "owner":
                    disk.remove(f"{self.folder}/{name}")
            disk.write_new(f"{self.folder}/{_LEFT}", b"")


def _claim(path: str) -> int:
    """Write who we are and lock the file, for as long as we live."""
    disk.write_new(path, canonical_json(identity()))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def identity() -> dict[str, Any]:
    """Return what tells this process from all others, and what a person calls it."""
    pid = os.getpid()
    return {
        "host": os.uname().nodename,
        "pid": pid,
        "since": int(time.time()),
        "command": " ".join(sys.argv)[:200].encode("utf-8", "replace").decode(),
        "place": place(),
        "started": _started(pid),
    }


def place() -> str:
    """Name the boot and the pid namespace in which pids mean what they mean to us."""
    try:
        boot = disk.read("/proc/sys/kernel/random/boot_id").decode().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process began, in ticks since the boot; None if there is none."""
    try:
        # The name in parentheses may hold spaces; the start time is the 22nd field.
        return disk.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def owner(layout: Layout, name: str) -> dict[str, Any] | None:
    """Return the identity of the process of a session; None if it cannot be read."""
    try:
        found = json.loads(disk.read(f"{layout.folder('tmp')}/{name}/owner"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_dead(layout: Layout, name: str) -> bool:
    """Say whether the process of a session is dead or done, as far as pids and locks tell."""
    if _has_left(layout, name):
        return True
    who = owner(layout, name)
    if who is not None and who.get("place") and who["place"] == place():
        return _started(int(who["pid"])) != who.get("started")
    try:
        descriptor = os.open(f"{layout.folder('tmp')}/{name}/owner", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True


def _has_left(layout: Layout, name: str) -> bool:
    return os.path.exists(f"{layout.folder('tmp')}/{name}/{_LEFT}")


def is_settling(layout: Layout, name: str) -> bool:
    """Say whether a process of this boot ended well and left records but a moment ago."""
    who = owner(layout, name)
    if who is None or not who.get("place") or who["place"] != place():
        return False
    try:
        left_at = os.stat(f"{layout.folder('tmp')}/{name}/{_LEFT}").st_mtime
    except OSError:
        return False
    return 0 <= time.time() - left_at < SETTLE_S


def is_abandoned(layout: Layout, name: str) -> bool:
    """Say whether the folders of a session may be removed: dead, and not by a lock's word alone."""
    if not is_dead(layout, name):
        return False
    if _has_left(layout, name):
        return True
    who = owner(layout, name)
    if who is not None and who.get("place") and who["place"] == place():
        return True
    folder = f"{layout.folder('tmp')}/{name}"
    return all(_age_s(path) > SILENCE_S for path in (folder, f"{folder}/owner"))


def _age_s(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return float("inf")
