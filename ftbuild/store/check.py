"""Check: every object of a store against its digest. Damaged ones move to quarantine/.

What is damaged is mended where the same bytes are to be had: from a file of an intact tree, or
from where `fetch` finds them. The rest is made again when it is next needed: a record whose bytes
are gone counts as absent.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ftbuild.digest import Digest, hash_file, is_digest
from ftbuild.store import disk
from ftbuild.store.actions import DamagedRecord, Record, decode
from ftbuild.store.blobs import Blobs
from ftbuild.store.layout import Layout
from ftbuild.store.trees import Entry, Tree
from ftbuild.store.trust import Trust

Fetch = Callable[[Digest], bool]
"""Bring a blob from elsewhere into the store; say whether that worked. It is checked again."""
_EXECUTABLE = 0o100


@dataclass(frozen=True)
class Damage:
    """One object that is not what its name says."""

    kind: Literal["blob", "tree", "record"]
    name: str
    how: str
    is_mended: bool


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    blobs: int
    trees: int
    records: int
    size: int
    """Units: bytes that were hashed."""
    damaged: tuple[Damage, ...]
    untrusted: tuple[Damage, ...]
    """Whole records that are not believed; they stay where they are."""


class Checker:
    """Checks one store, once."""

    def __init__(self, layout: Layout, blobs: Blobs, trust: Trust, fetch: Fetch | None) -> None:
        self._layout = layout
        self._blobs = blobs
        self._trust = trust
        self._untrusted: list[Damage] = []
        self._fetch = fetch
        self._hashed: dict[tuple[int, int], Digest] = {}
        """By device and inode: a large blob is one inode with the files of its trees."""
        self._size = 0
        self._intact: dict[Digest, str] = {}
        """A file of an intact tree for each digest."""

    def run(self) -> Checked:
        """Look at everything; trees first, since their files can mend blobs."""
        counts = {"trees": 0, "blobs": 0, "actions": 0, "known": 0}
        damaged: list[Damage] = []
        looks = (
            ("trees", self._tree),
            ("blobs", self._blob),
            ("actions", self._record),
            ("known", self._record),
        )
        for folder, look in looks:
            for path in _objects(self._layout.folder(folder)):
                counts[folder] += 1
                found = look(path)
                if found is not None:
                    damaged.append(found)
        return Checked(
            counts["blobs"],
            counts["trees"],
            counts["actions"] + counts["known"],
            self._size,
            tuple(damaged),
            tuple(self._untrusted),
        )

    def _hash(self, path: str) -> Digest | None:
        """Return the digest of a file, None where it cannot be read."""
        try:
            stat = os.lstat(path)
            inode = (stat.st_dev, stat.st_ino)
            if inode not in self._hashed:
                self._hashed[inode] = hash_file(path)
                self._size += stat.st_size
            return self._hashed[inode]
        except OSError:
            return None

    def _tree(self, path: str) -> Damage | None:
        name = os.path.basename(path)
        entries = [self._entry(path, relative) for relative in sorted(_files(path))]
        whole = [entry for entry in entries if entry is not None]
        if len(whole) == len(entries) and Tree(tuple(whole)).digest == name:
            self._intact.update({entry.digest: f"{path}/{entry.path}" for entry in whole})
            return None
        # It is made again from its blobs where it is needed.
        disk.remove(path)
        return Damage("tree", name, "its files are not those that its digest names", True)

    def _entry(self, tree: str, relative: str) -> Entry | None:
        path = f"{tree}/{relative}"
        digest = self._hash(path)
        if digest is None or os.path.islink(path):
            return None
        stat = os.lstat(path)
        mode = "x" if stat.st_mode & _EXECUTABLE else "f"
        return Entry(relative, mode, stat.st_size, digest)

    def _blob(self, path: str) -> Damage | None:
        name = os.path.basename(path)
        found = self._hash(path)
        if found == name:
            return None
        self._blobs.quarantine(path)
        if not is_digest(name):
            return Damage("blob", name, "its name is no digest", False)
        how = "it cannot be read" if found is None else f"its bytes have the digest {found}"
        return Damage("blob", name, how, self._mend(Digest(name)))

    def _mend(self, digest: Digest) -> bool:
        from pathlib import Path

        path = self._intact.get(digest)
        if path is not None and self._blobs.put_file(Path(path)) == digest:
            return True
        return self._fetch is not None and self._fetch(digest) and self._is_right(digest)

    def _is_right(self, digest: Digest) -> bool:
        try:
            return hash_file(self._layout.blob(digest)) == digest
        except OSError:
            return False

    def _record(self, path: str) -> Damage | None:
        name = os.path.basename(path).removesuffix(".json")
        try:
            record = decode(disk.read(path), Digest(name))
        except (OSError, DamagedRecord) as error:
            self._blobs.quarantine(path)
            return Damage("record", name, str(error), False)
        if objection := self._trust.objection(record):
            self._untrusted.append(Damage("record", name, objection, False))
        return None


def records(layout: Layout) -> Iterator[Record]:
    """Yield every whole record."""
    for path in _objects(layout.folder("actions")):
        with suppress(OSError, DamagedRecord):
            yield decode(disk.read(path), Digest(os.path.basename(path).removesuffix(".json")))


def _objects(folder: str) -> Iterator[str]:
    """Yield the paths of the objects below a folder, in their order."""
    if not os.path.isdir(folder):  # `known` of a store that an earlier ftbuild made
        return
    for name in sorted(os.listdir(folder)):
        inside = f"{folder}/{name}"
        if os.path.isdir(inside):
            yield from (f"{inside}/{found}" for found in sorted(os.listdir(inside)))


def _files(tree: str) -> Iterator[str]:
    """Yield the relative paths of all that is no folder; of a tree that is a file, nothing."""
    for folder, folders, names in os.walk(tree):
        prefix = os.path.relpath(folder, tree)
        linked = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        for name in (*names, *linked):
            yield name if prefix == "." else f"{prefix}/{name}"
