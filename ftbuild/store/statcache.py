"""Which files still have the digest that they had: asked of their stat, not of their bytes.

A stat is size, mtime, ctime, inode and device. ctime is in it because `cp -p` and `rsync -t`
put an old mtime back; no program can put a ctime back.

The rule for racy timestamps is git's (Documentation/technical/racy-git.txt). Two writes
within one tick of the file system's clock leave one and the same stat, so a stat proves
nothing while the clock may still show what it showed at the last write. Therefore a digest
is noted only if mtime and ctime both lie `RACY_NS` or more before the moment at which reading
the file began; a file that is younger, or of the future, is hashed again the next time.

The files that the store itself makes are younger than that when they are noted, and there
are thousands. Each gets as its mtime a function of its digest, a moment in the years 2000
to 2008 (`published_mtime_ns`). From then on the racy rule has no object: whatever writes to
the file (write, truncate, a store through mmap) sets mtime to the present, which no clock
shows as 2008, however coarse its ticks. An unchanged stat thus proves that nothing was
written since. What remains is a program that writes and then puts that mtime back, within
the tick of the ctime we saw; a program that sets out to deceive is not what a stat cache
guards against. The mtime differs with the content for the sake of readers that cache by path
and mtime, as `datasets.load_dataset` does. Where the file system does not keep nanoseconds the
mtime read back is another one, and the racy rule holds for these files as for all.

Files of the store are found by inode instead of by path: a hard link moves the ctime of all
paths of an inode, and one entry is then set right for all of them. Sources are found by path,
because there are file systems (FUSE) on which inode numbers are not unique.

A lost or damaged cache costs time, never truth.
"""

import marshal
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest, hash_bytes, hash_file

RACY_NS = 2_000_000_000
"""Units: nanoseconds. The coarsest clock of a file system in use (FAT) ticks every 2 s."""

_MAGIC = f"ftbuild statcache 1 {sys.implementation.cache_tag}\n".encode()
_KEPT = 50_000
"""So many entries may stay that a run did not look at; else the file would only grow."""

_Stat = tuple[int, int, int, int, int]
_Vouch = tuple[int, int, int, Digest]


def published_mtime_ns(digest: Digest) -> int:
    """Return the mtime that the store gives to files with this content."""
    seconds = 946_684_800 + int(digest[:7], 16)  # 2000-01-01; ZIP knows nothing before 1980
    return seconds * 1_000_000_000 + int(digest[7:14], 16)


class StatCache:
    """Digests of files by their stat, in one file; several threads may use it."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._lock = threading.Lock()
        self._changed = False
        self._used: set[object] = set()
        self._files: dict[str, tuple[_Stat, Digest]] = {}
        self._inodes: dict[tuple[int, int], _Vouch] = {}
        self._load()
        self._new: dict[tuple[int, int], None] = {}

    def digest_of(self, path: str) -> Digest:
        """Return the digest of a file; its bytes are read only if its stat is new or racy.

        `path` is absolute. The digest of a file that changes meanwhile is not kept.

        Raises:
            OSError: the file cannot be read.
        """
        before = os.stat(path)
        found = self._known(path, before)
        if found is not None:
            return found
        read_at_ns = time.time_ns()
        digest = hash_file(path)
        after = os.stat(path)
        if _stat(after) == _stat(before):
            self.note(path, digest, after, read_at_ns)
        return digest

    def known(self, path: str) -> Digest | None:
        """Return the digest of a file if its stat tells it; nothing is read.

        Raises:
            OSError: there is no such file.
        """
        return self._known(path, os.stat(path))

    def _known(self, path: str, stat: os.stat_result) -> Digest | None:
        entry = self._files.get(path)
        if entry is None or entry[0] != _stat(stat):
            return None
        self._used.add(path)
        return entry[1]

    def note(self, path: str, digest: Digest, stat: os.stat_result, read_at_ns: int) -> None:
        """Keep a digest, unless it is racy.

        `stat` was the same before and after reading; reading began at `read_at_ns`. The end
        would not do: a write just after the start could still share its tick with the stat.
        """
        if _is_settled(stat, read_at_ns):
            self._files[path] = (_stat(stat), digest)
            self._used.add(path)
            self._changed = True
        elif self._files.pop(path, None) is not None:
            self._changed = True

    def vouches(self, stat: os.stat_result, digest: Digest) -> bool:
        """Say whether the inode with this stat is known to hold this content."""
        inode = (stat.st_dev, stat.st_ino)
        if self._inodes.get(inode) != _vouch(stat, digest):
            return False
        self._used.add(inode)
        return True

    def vouch(self, stat: os.stat_result, digest: Digest, read_at_ns: int) -> None:
        """Keep that an inode of the store holds this content (or lists this tree).

        Racy entries are not kept, but for the store's own mtime, which none but it sets.
        """
        inode = (stat.st_dev, stat.st_ino)
        if stat.st_mtime_ns == published_mtime_ns(digest) or _is_settled(stat, read_at_ns):
            self._inodes[inode] = _vouch(stat, digest)
            self._used.add(inode)
            self._new[inode] = None
            self._changed = True
        elif self._inodes.pop(inode, None) is not None:
            self._changed = True

    def take_new(self) -> list[list[Any]]:
        """Return, as a JSON value, what was vouched for since the last time.

        For the process that saves the cache: others, which were forked from it or read its file,
        would take what they have hashed with them.
        """
        new, self._new = self._new, {}
        return [[*inode, *self._inodes[inode]] for inode in new if inode in self._inodes]

    def learn(self, new: list[list[Any]]) -> None:
        """Believe what `take_new` of another process returned, but of files known here already.

        Such a process runs code of others. One of these files that is not what it was is hashed
        again, whatever is said of it.
        """
        for device, number, *vouch in new:
            size, mtime_ns, ctime_ns, digest = vouch
            inode = (device, number)
            found = (size, mtime_ns, ctime_ns, digest)
            if self._inodes.setdefault(inode, found) != found:
                continue
            self._used.add(inode)
            self._new[inode] = None
            self._changed = True

    def save(self) -> None:
        """Write the cache, if it changed, by a new file that replaces the old one.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            self._forget_unused()
            payload = marshal.dumps((dict(self._files), dict(self._inodes)), 2)
            staged = f"{self._path}.{os.getpid()}-{os.urandom(4).hex()}"
            try:
                with open(staged, "xb") as file:
                    file.write(_MAGIC + hash_bytes(payload).encode() + payload)
                os.replace(staged, self._path)
            except OSError:
                if os.path.exists(staged):
                    os.unlink(staged)
                raise

    def _load(self) -> None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                data = file.read() or b""
        except OSError:
            return
        start = len(_MAGIC)
        payload = data[start + 64 :]
        # marshal may crash on damaged bytes, so that they must not reach it.
        if data[:start] == _MAGIC and data[start : start + 64] == hash_bytes(payload).encode():
            self._files, self._inodes = marshal.loads(payload)

    def _forget_unused(self) -> None:
        if len(self._files) + len(self._inodes) <= _KEPT + 2 * len(self._used):
            return
        # Through lists: another thread may add an entry meanwhile.
        self._files = {k: v for k, v in list(self._files.items()) if k in self._used}
        self._inodes = {k: v for k, v in list(self._inodes.items()) if k in self._used}


def _stat(stat: os.stat_result) -> _Stat:
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)


def _vouch(stat: os.stat_result, digest: Digest) -> _Vouch:
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest)


def _is_settled(stat: os.stat_result, read_at_ns: int) -> bool:
    return max(stat.st_mtime_ns, stat.st_ctime_ns) < read_at_ns - RACY_NS
