"""Checkout: trees as ready directories, `trees/ab/<digest>/`, verified before they are given.

A tree is intact if each of its folders and files has a stat for which the stat cache vouches.
A folder gets the mtime of its tree's digest, as a file that of its own, so that a name that
was added, removed or replaced shows in the folder's stat. What is not vouched for is hashed;
what is wrong is made again from its blob, each file by a rename, so that others who read the
directory meanwhile see the old file or the new one.

Copies of small blobs are never flushed. A power cut leaves them short, which their size shows.
"""

import errno
import os
import stat as stat_module
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from ftbuild.digest import Digest
from ftbuild.store import disk
from ftbuild.store.blobs import Blobs, MissingBlob
from ftbuild.store.layout import Layout
from ftbuild.store.statcache import StatCache, published_mtime_ns
from ftbuild.store.trees import Entry, Tree

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_PASSES = 3


class Checkout:
    """The laid-out trees of one store; `fresh` names a private path to work at."""

    def __init__(
        self, layout: Layout, blobs: Blobs, statcache: StatCache, fresh: Callable[[], str]
    ) -> None:
        self._layout = layout
        self._blobs = blobs
        self._statcache = statcache
        self._fresh = fresh
        self._mending: dict[Digest, threading.Lock] = {}

    def is_intact(self, tree: Tree) -> bool:
        """Say whether the tree is laid out and untouched, by stat alone; False if not known."""
        path = self._layout.tree(tree.digest)
        vouches = self._statcache.vouches
        try:
            for folder in _folders(path, tree):
                if not vouches(os.lstat(folder), tree.digest):
                    return False
            for entry in tree.entries:
                if not vouches(os.lstat(f"{path}/{entry.path}"), entry.digest):
                    return False
        except OSError:
            return False
        return True

    def lay_out(self, tree: Tree) -> str:
        """Return the directory that holds the tree, made or mended if need be.

        Raises:
            MissingBlob: a file is missing or damaged, and so is its blob.
        """
        path = self._layout.tree(tree.digest)
        if self.is_intact(tree):
            return path
        # Two threads that need one large model need not both hash it.
        with self._mending.setdefault(tree.digest, threading.Lock()):
            if self.is_intact(tree):
                return path
            if not disk.exists(path) and self._make(tree):
                return path
            for _ in range(_PASSES):
                self._stamp(path, tree)
                if not self._mend(path, tree):
                    self._vouch(path, tree)
                    break
        return path

    def settle(self, directory: str, tree: Tree) -> None:
        """Move a directory that holds exactly the tree to its place; it is gone afterwards."""
        if self._move(directory, tree):
            return
        path = self.lay_out(tree)
        # The files of `directory` are links to blobs: removing them moves the blobs' ctime.
        large = [entry for entry in tree.entries if entry.size >= disk.SMALL_BYTES]
        before = [os.lstat(f"{path}/{entry.path}") for entry in large]
        disk.remove(directory)
        for entry, stat in zip(large, before, strict=True):
            self._blobs.renew(f"{path}/{entry.path}", stat, entry.digest)

    def _make(self, tree: Tree) -> bool:
        """Lay a tree out in one go; False if another process did meanwhile."""
        staged = self._fresh()
        try:
            for folder in _folders(staged, tree):
                os.mkdir(folder)
                os.chmod(folder, 0o755)
            for entry in tree.entries:
                self._blobs.place(entry, f"{staged}/{entry.path}")
            if self._move(staged, tree):
                return True
        except BaseException:
            disk.remove(staged)
            raise
        disk.remove(staged)
        return False

    def _move(self, directory: str, tree: Tree) -> bool:
        """Rename a directory to the place of the tree; False if the place is taken."""
        path = self._layout.tree(tree.digest)
        self._stamp(directory, tree)
        try:
            disk.rename_into(directory, path)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        self._vouch(path, tree)
        return True

    def _stamp(self, path: str, tree: Tree) -> None:
        """Give the folders their mtime; whatever is changed in them later will move it."""
        moment = published_mtime_ns(tree.digest)
        for folder in _folders(path, tree):
            # One that is missing is made later, and one that is not ours is checked each time.
            with suppress(OSError):
                if os.lstat(folder).st_mtime_ns != moment:
                    os.utime(folder, ns=(moment, moment), follow_symlinks=False)

    def _vouch(self, path: str, tree: Tree) -> None:
        # The listing was right after the mtime was set: so it is if the mtime is still that.
        read_at_ns = time.time_ns()
        for folder in _folders(path, tree):
            self._statcache.vouch(os.lstat(folder), tree.digest, read_at_ns)

    def _mend(self, path: str, tree: Tree) -> bool:
        """Put right what is wrong; False if nothing was."""
        was_wrong = False
        expected = {folder: True for folder in tree.folders}
        expected.update((entry.path, False) for entry in tree.entries)
        for stranger in _strangers(path, expected):
            self._blobs.quarantine(stranger)
            was_wrong = True
        for folder in _folders(path, tree):
            if not os.path.isdir(folder):
                os.makedirs(folder, exist_ok=True)
                was_wrong = True
        for entry in tree.entries:
            target = f"{path}/{entry.path}"
            if not self._is_good(target, entry):
                self._replace(target, entry)
                was_wrong = True
        return was_wrong

    def _replace(self, path: str, entry: Entry) -> None:
        staged = self._fresh()
        try:
            self._blobs.place(entry, staged)
        except MissingBlob:
            disk.remove(path)  # a record must not be found because of a damaged file
            raise
        before = os.lstat(staged)
        os.rename(staged, path)
        self._blobs.renew(path, before, entry.digest)

    def _is_good(self, path: str, entry: Entry) -> bool:
        try:
            stat = os.lstat(path)
        except FileNotFoundError:
            return False
        if stat.st_size != entry.size or not self._blobs.holds(path, stat, entry.digest):
            self._blobs.distrust(stat, entry.digest)
            return False
        mode = 0o555 if entry.mode == "x" else 0o444
        if stat_module.S_IMODE(stat.st_mode) != mode:
            with suppress(PermissionError):
                os.chmod(path, mode)
                self._blobs.renew(path, stat, entry.digest)
        self._blobs.restore(path, entry)
        return True


def _folders(path: str, tree: Tree) -> Iterator[str]:
    """Return the paths of the folders of a tree that lies at `path`, outer ones first."""
    for folder in tree.folders:
        # Without a slash at the end, which would make lstat follow a link.
        yield f"{path}/{folder}" if folder else path


def _strangers(path: str, expected: dict[str, bool]) -> Iterator[str]:
    """Return what does not belong into a tree: other names, links, files for folders."""
    if not stat_module.S_ISDIR(os.lstat(path).st_mode):
        yield path
        return
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(f"{path}/{prefix}") as found:
            entries = list(found)
        for entry in entries:
            relative = prefix + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            is_file = entry.is_file(follow_symlinks=False)
            if expected.get(relative) is not is_folder or not (is_folder or is_file):
                yield entry.path
            elif is_folder:
                waiting.append(relative + "/")
