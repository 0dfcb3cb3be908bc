"""Local sources: a file, a list, a glob, a folder, relative to their FTBUILD.toml.

What is found is sorted by path, so that it does not depend on the order of a directory. A
file by itself has no name of its own in the key (renaming it changes nothing), only its
endings, by which rules tell formats apart; in a folder a file's path is content.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path

from ftbuild.errors import FtbuildError
from ftbuild.kinds import Part

_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz"})


@dataclass(frozen=True)
class FoundFile:
    """A file of a source: where it is, and its path within the source."""

    path: str
    relative: str


@dataclass
class Found:
    """What a local source consists of, and what was looked at to find it."""

    files: list[FoundFile] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    """Folders whose listings decide which files there are."""


def find(spec: str | list[str], base: Path, part: Part | None = None) -> Found:
    """Return the files that `spec` names, seen from the folder `base`.

    Of a folder only what `part` holds counts, where the rule gives one; hidden files and
    folders never do.

    Raises:
        FtbuildError: E0401, there is no such file, or a pattern matches none.
    """
    found = Found()
    if isinstance(spec, str) and not _is_pattern(spec, base) and (base / spec).is_dir():
        _walk(os.path.normpath(base / spec), part, found)
        if not found.files:
            raise _absent(spec, "the folder holds no file that counts")
        return found
    paths = [
        path
        for one in ([spec] if isinstance(spec, str) else spec)
        for path in _paths(one, base, found)
    ]
    alone = len(paths) == 1
    for number, path in enumerate(paths):
        stem = "file" if alone else f"{number:05d}"
        found.files.append(FoundFile(path, stem + endings(path)))
    return found


def endings(path: str) -> str:
    """Return the endings by which formats are told apart: `.jsonl`, `.json.gz`."""
    stem, last = os.path.splitext(path)
    return os.path.splitext(stem)[1] + last if last in _COMPRESSED else last


def _paths(spec: str, base: Path, found: Found) -> list[str]:
    if _is_pattern(spec, base):
        paths = sorted(
            os.path.normpath(base / match)
            for match in glob(spec, root_dir=base, recursive=True)
            if (base / match).is_file()
        )
        found.directories.update(_folders(spec, base))
        if not paths:
            raise _absent(spec, "the pattern matches no file")
        return paths
    path = os.path.normpath(base / spec)
    if not os.path.isfile(path):
        raise _absent(spec, "a folder cannot stand in a list" if os.path.isdir(path) else None)
    return [path]


def _is_pattern(spec: str, base: Path) -> bool:
    """Say whether `spec` is a pattern, and not a file whose name only looks like one."""
    return has_magic(spec) and not (base / spec).exists()


def _folders(pattern: str, base: Path) -> Iterator[str]:
    """Yield the folders whose listings decide what matches: also those where nothing does yet."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if has_magic(part))
    for number in range(first, len(parts)):
        above = "/".join(parts[:number]) or ("/" if number else ".")
        for match in glob(above, root_dir=base, recursive=True):
            if (base / match).is_dir():
                yield os.path.normpath(base / match)


def _walk(top: str, part: Part | None, found: Found) -> None:
    for directory, folders, names in os.walk(top, followlinks=True):
        found.directories.add(directory)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, top).replace(os.sep, "/")
            if not name.startswith(".") and (part is None or part.holds(relative)):
                found.files.append(FoundFile(path, relative))
    found.files.sort(key=lambda f: f.relative)


def _absent(spec: str, why: str | None) -> FtbuildError:
    error = FtbuildError(f"there is no file `{spec}`", code="E0401", why=why)
    error.exit_code = 2
    return error
