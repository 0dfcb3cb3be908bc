"""Trees: the sorted list of the files of an artifact.

    [["config.json", "f", 712, "<sha256>"], ["model.safetensors", "f", 269060552, "<sha256>"]]

Pure values; no file is touched here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from ftbuild.digest import Digest, hash_value, is_digest


class Entry(NamedTuple):
    """One file of a tree."""

    path: str
    """Relative, with `/` between the parts."""
    mode: str
    """`f`, or `x` where the owner may execute it. More of a mode is not kept."""
    size: int
    digest: Digest


@dataclass(frozen=True)
class Tree:
    """The files of an artifact, sorted by path. Empty folders are not part of it."""

    entries: tuple[Entry, ...]

    @cached_property
    def digest(self) -> Digest:
        """The digest of the list, so of all that is in the tree."""
        return hash_value(self.to_plain())

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders that the files are in, outer ones first: `""`, `"data"`, `"data/raw"`."""
        found = {""}
        for entry in self.entries:
            cut = entry.path.rfind("/")
            while cut > 0 and (folder := entry.path[:cut]) not in found:
                found.add(folder)
                cut = entry.path.rfind("/", 0, cut)
        return tuple(sorted(found))

    @property
    def paths(self) -> list[str]:
        """The paths of its files."""
        return [entry.path for entry in self.entries]

    @cached_property
    def size(self) -> int:
        """How many bytes all its files have."""
        return sum(entry.size for entry in self.entries)

    def part(self, patterns: Sequence[str]) -> "Tree":
        """Return the tree of the files that match one of the patterns (`*` matches `/` too)."""
        return Tree(tuple(e for e in self.entries if any(fnmatchcase(e.path, p) for p in patterns)))

    def to_plain(self) -> list[list[Any]]:
        """Return the JSON form."""
        return [list(entry) for entry in self.entries]

    @classmethod
    def from_plain(cls, plain: Any) -> "Tree":
        """Return the tree of a JSON form.

        Raises:
            ValueError: it is not one, or a path in it would leave the tree.
        """
        if not isinstance(plain, list):
            raise ValueError("a tree is a list")
        entries = tuple(_entry(item) for item in plain)
        paths = [entry.path for entry in entries]
        if any(a >= b for a, b in pairwise(paths)):
            raise ValueError("the paths of a tree are sorted, each once")
        tree = cls(entries)
        if not set(tree.folders).isdisjoint(paths):
            raise ValueError("a path of the tree is a file and a folder")
        return tree


def _entry(item: Any) -> Entry:
    if not isinstance(item, list) or len(item) != 4:
        raise ValueError("an entry of a tree has four values")
    path, mode, size, digest = item
    if not isinstance(path, str) or not _is_inside(path):
        raise ValueError(f"the path {path!r} would leave the tree")
    if mode not in ("f", "x") or not is_digest(digest):
        raise ValueError(f"mode or digest of {path!r} is none")
    if type(size) is not int or size < 0:
        raise ValueError(f"the size of {path!r} is none")
    return Entry(path, mode, size, Digest(digest))


def _is_inside(path: str) -> bool:
    # Records may come from others: a path must not be able to leave the folder of its tree.
    if "\0" in path or not is_utf8(path):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))


def is_utf8(text: str) -> bool:
    """Say whether a file name can be written as UTF-8, as it must be to be hashed and shared."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
