"""Ingest: a directory that an action filled becomes blobs and a laid-out tree, without a copy.

The directory itself is renamed to its place among the trees; large files become blobs by a
hard link, small ones by writing the bytes that were just hashed. A file whose inode may belong
to somebody else (a hard link that is not ours, another owner) is copied first: what is in the
store must be written by nobody.
"""

import os
import stat as stat_module
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ftbuild.digest import Digest, hash_file
from ftbuild.errors import ActionError, Place
from ftbuild.store import disk, links
from ftbuild.store.blobs import Blobs
from ftbuild.store.checkout import Checkout
from ftbuild.store.disk import SMALL_BYTES
from ftbuild.store.statcache import StatCache, published_mtime_ns
from ftbuild.store.trees import Entry, Tree, is_utf8

_EXECUTABLE = 0o100
_HASHED_ASIDE_BYTES = 16 << 20
"""Several files of this size or more are hashed at once, each on a core."""
_LONGEST = 3072
"""Units: bytes. A whole path has at most 4,096 here, that of the store among them."""


class Ingest:
    """Makes trees of directories, for one store."""

    def __init__(
        self, blobs: Blobs, checkout: Checkout, statcache: StatCache, fresh: Callable[[], str]
    ) -> None:
        self._blobs = blobs
        self._checkout = checkout
        self._statcache = statcache
        self._fresh = fresh

    def put(self, directory: str, adopted: Mapping[str, Digest]) -> Tree:
        """Make `directory` a tree of the store; it is gone from its path afterwards.

        Raises:
            ActionError: it holds what no artifact may hold.
            OSError: the store cannot be written; `directory` is left to the caller.
        """
        files, folders = _scan(directory)
        hashed = _hash_aside(directory, [path for path in files if path not in adopted])
        found = [
            self._put_file(directory, path, adopted.get(path), hashed.get(path))
            for path in sorted(files)
        ]
        tree = Tree(tuple(entry for entry, _ in found))
        is_small = all(stat is not None for _, stat in found)
        if is_small and self._checkout.is_intact(tree):
            disk.remove(directory)  # another action gave the same
            return tree
        for entry, stat in found:
            if stat is not None:
                self._publish(f"{directory}/{entry.path}", stat, entry)
        _remove_empty(directory, folders, tree)
        self._checkout.settle(directory, tree)
        return tree

    def _put_file(
        self, directory: str, relative: str, claimed: Digest | None, hashed: "_Hashed | None"
    ) -> tuple[Entry, os.stat_result | None]:
        """Make a file a blob; its stat comes with it where it is still to be published."""
        path = f"{directory}/{relative}"
        descriptor = _open(path)
        try:
            stat = os.fstat(descriptor)
            if claimed is not None and self._blobs.is_same_inode(stat, claimed):
                self._statcache.vouch(stat, claimed, 0)
                return Entry(relative, "f", stat.st_size, claimed), None
            if not _is_own(stat):
                os.close(descriptor)
                descriptor = -1
                descriptor = _own(path, stat, self._fresh())
                stat = os.fstat(descriptor)
            if stat.st_size >= SMALL_BYTES:
                if hashed is not None and _version(stat) != _version(hashed.stat):
                    raise _unfinished(relative)
                digest = hash_file(path) if hashed is None else hashed.digest
                return self._put_large(path, relative, stat, digest), None
            data = os.read(descriptor, SMALL_BYTES)
            if len(data) != stat.st_size:
                raise _unfinished(relative)
            return Entry(relative, _mode(stat), len(data), self._blobs.put_bytes(data)), stat
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _put_large(self, path: str, relative: str, stat: os.stat_result, digest: Digest) -> Entry:
        entry = Entry(relative, _mode(stat), stat.st_size, digest)
        self._publish(path, stat, entry)
        self._blobs.adopt(path, entry)
        return entry

    def _publish(self, path: str, stat: os.stat_result, entry: Entry) -> None:
        """Give a file the mode and mtime of what is published, and vouch for it."""
        if _version(os.lstat(path)) != _version(stat):
            raise _unfinished(entry.path)
        mode = 0o555 if entry.mode == "x" else 0o444
        if stat_module.S_IMODE(stat.st_mode) != mode:
            os.chmod(path, mode)
        moment = published_mtime_ns(entry.digest)
        os.utime(path, ns=(moment, moment))
        self._statcache.vouch(os.stat(path), entry.digest, 0)


class _Hashed(NamedTuple):
    """The digest of a file, and its stat before it was read."""

    stat: os.stat_result
    digest: Digest


def _hash_aside(directory: str, files: list[str]) -> dict[str, _Hashed]:
    """Hash large files, several at once; what is alone is hashed where it is put."""
    if len(files) < 2:
        return {}
    found = [(path, os.lstat(f"{directory}/{path}")) for path in files]
    large = [
        (path, stat)
        for path, stat in found
        if stat.st_size >= _HASHED_ASIDE_BYTES and _is_own(stat) and stat.st_mode & 0o400
    ]
    if len(large) < 2:
        return {}
    from concurrent.futures import ThreadPoolExecutor

    def look(one: tuple[str, os.stat_result]) -> tuple[str, _Hashed]:
        path, stat = one
        return path, _Hashed(stat, hash_file(f"{directory}/{path}"))

    with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1)) as pool:
        return dict(pool.map(look, large))


def _is_own(stat: os.stat_result) -> bool:
    """Say whether a file is of this user and has no other name."""
    return stat.st_nlink == 1 and stat.st_uid == os.geteuid()


def _version(stat: os.stat_result) -> tuple[int, int, int]:
    """Return what differs after a file was written or replaced."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _mode(stat: os.stat_result) -> str:
    return "x" if stat.st_mode & _EXECUTABLE else "f"


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except PermissionError:
        os.chmod(path, 0o600)  # a rule may leave a file that not even its owner can read
        return os.open(path, flags)


def _own(path: str, stat: os.stat_result, staged: str) -> int:
    """Replace a file by a copy on an inode of its own; return it opened."""
    if not disk.clone(path, staged):
        disk.copy_and_hash(path, staged)
    os.chmod(staged, stat_module.S_IMODE(stat.st_mode) & 0o777)
    os.rename(staged, path)
    return _open(path)


def _scan(directory: str) -> tuple[list[str], list[str]]:
    """Return the relative paths of all files and folders; links are resolved on the way."""
    files: list[str] = []
    folders: list[str] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        os.chmod(f"{directory}/{prefix}", 0o755)
        found: list[str] = []
        with os.scandir(f"{directory}/{prefix}") as entries:
            for entry in entries:
                relative = prefix + entry.name
                if not is_utf8(relative):
                    raise _misnamed(relative)
                if len(os.fsencode(relative)) > _LONGEST:
                    raise _too_long(relative)
                if entry.is_symlink():
                    found.append(relative)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(relative + "/")
                elif entry.is_file(follow_symlinks=False):
                    files.append(relative)
                else:
                    raise _special(relative)
        for relative in found:
            links.resolve(directory, relative)
            is_folder = os.path.isdir(f"{directory}/{relative}")
            (waiting.append(relative + "/") if is_folder else files.append(relative))
        if prefix:
            folders.append(prefix[:-1])
    return files, folders


def _remove_empty(directory: str, folders: list[str], tree: Tree) -> None:
    if len(folders) + 1 == len(tree.folders):
        return
    for folder in sorted(set(folders).difference(tree.folders), reverse=True):
        os.rmdir(f"{directory}/{folder}")


def _misnamed(relative: str) -> ActionError:
    shown = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return ActionError(
        f"the output holds a file whose name is not UTF-8: `{shown}`",
        code="E0712",
        where=Place(shown),
        fix="write it under a name in UTF-8",
    )


def _too_long(relative: str) -> ActionError:
    return ActionError(
        f"the output holds a path that is longer than {_LONGEST:,} bytes: `{relative[:40]}…`",
        code="E0714",
        why="with the folder of the store before it, no program could open it",
        fix="write it under a shorter path",
    )


def _special(relative: str) -> ActionError:
    return ActionError(
        f"the output holds something that is neither a file nor a folder: `{relative}`",
        code="E0710",
        where=Place(relative),
        why="sockets, pipes and devices have no content that could be kept",
        fix="remove it before the action ends",
    )


def _unfinished(relative: str) -> ActionError:
    return ActionError(
        f"the output is still being written to: `{relative}`",
        code="E0713",
        where=Place(relative),
        why="the file changed while it was hashed",
        fix="end all processes that the action starts before it ends itself",
    )
