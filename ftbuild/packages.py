"""The FTBUILD.toml files of a workspace: which there are, and what each holds.

A package is read when a label names it, so that a large workspace costs what is used of it.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild import labels, tomlfile
from ftbuild.declaration import FILE_NAME
from ftbuild.root import has_project
from ftbuild.spans import Finding, KeyPath
from ftbuild.wording import shown

_OUTPUT = "ftbuild-out"


@dataclass
class Reading:
    """What has been read so far."""

    root: Path
    texts: dict[str, bytes] = field(default_factory=dict)
    """By package."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By package; empty for one that is named and does not exist."""
    findings: list[Finding] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Packages whose file cannot be read: none of their targets is known."""
    unusable: set[str] = field(default_factory=set)
    """Labels of targets that are declared and wrong, so that nobody calls them unknown."""


def read_all(root: Path, named: Iterable[str], *, everything: bool) -> Reading:
    """Read the root's file, those of the packages `named`, and of all that their labels name."""
    reading = Reading(root)
    pending = {"", *named}
    if everything:
        pending |= _find_all(reading)
    while pending:
        package = min(pending)  # the order of findings follows from no set's order
        pending.discard(package)
        if package not in reading.tables and package not in reading.broken:
            pending |= _read_package(reading, package)
    reading.findings += _alike(sorted(reading.texts))
    return reading


def _alike(read: list[str]) -> list[Finding]:
    """Return a finding for each package whose name differs from another's in case alone."""
    findings = []
    folded: dict[str, str] = {}
    for package in read:
        other = folded.setdefault(package.casefold(), package)
        if other != package:
            what = f"the packages `{other}` and `{package}` differ in case alone"
            fix = "some file systems take them for one: rename one of the folders"
            findings.append(Finding("E0113", what, file_of(package), fix=fix))
    return findings


def file_of(package: str) -> str:
    """Return the path of a package's FTBUILD.toml, relative to the root."""
    return f"{package}/{FILE_NAME}" if package else FILE_NAME


def _read_package(reading: Reading, package: str) -> set[str]:
    """Read one file into `reading`; return the packages that its labels name."""
    file = file_of(package)
    try:
        text, tables, findings = tomlfile.read(reading.root / file, file)
    except (FileNotFoundError, NotADirectoryError):
        if package:  # `graph.build` says which label names it
            reading.tables[package] = {}
            return set()
        text, tables = b"", None
        findings = [Finding("E0102", f"there is no `{file}`", file, fix="ftbuild init")]
    if package and tables is not None and "project" in tables:
        tables = None
        findings = [_own_workspace(package, file)]
    reading.texts[package] = text
    reading.findings += findings
    if tables is None:
        reading.broken.add(package)
        return set()
    named: set[str] = set()
    for path in [path for path in _tables_of(tables) if _scan(_at(tables, path), 2, named)]:
        reading.findings.append(tomlfile.too_deep(file, path))
        reading.unusable.add(labels.join(package, str(path[-1])))
        del _at(tables, path[:-1])[path[-1]]
    reading.tables[package] = tables
    return named


def _own_workspace(package: str, file: str) -> Finding:
    what = f"`{package}` is a workspace of its own"
    fix = "remove its [project] to make it a package of this workspace"
    return Finding("E0117", what, file, ("project",), of="key", fix=fix)


def _tables_of(tables: dict[str, Any]) -> list[KeyPath]:
    """Return the paths of all that stands one below the top, and of what is no table."""
    paths: list[KeyPath] = []
    for key, value in tables.items():
        paths += [(key, name) for name in value] if isinstance(value, dict) else [(key,)]
    return paths


def _at(tables: Any, path: KeyPath) -> Any:
    for key in path:
        tables = tables[key]
    return tables


def _scan(value: Any, depth: int, named: set[str]) -> bool:
    """Say whether `value` nests too deeply; add the packages that labels in it name."""
    if isinstance(value, str):
        package = labels.package_named(value)
        if package:
            named.add(package)
        return False
    if depth > tomlfile.DEEPEST:
        return True
    if isinstance(value, dict):
        for key in value:
            _scan(key, depth, named)  # a profile's tables are named by labels
        return any([_scan(item, depth + 1, named) for item in value.values()])
    return isinstance(value, list) and any([_scan(item, depth + 1, named) for item in value])


def _find_all(reading: Reading) -> set[str]:
    """Return every package below the root; a folder that cannot be one is a finding."""
    found = set()
    for folder, names, files in os.walk(reading.root):
        package = Path(folder).relative_to(reading.root).as_posix().removeprefix(".")
        if package and ("pyvenv.cfg" in files or has_project(Path(folder, FILE_NAME))):
            names.clear()
            continue
        names[:] = sorted(n for n in names if not n.startswith(".") and n != _OUTPUT)
        if FILE_NAME not in files or not package:
            continue
        if labels.PACKAGE.fullmatch(package):
            found.add(package)
        else:
            file = file_of(package)
            what = f"`{shown(package)}` cannot be a package: no label could name it"
            fix = "name its folders with A-Z a-z 0-9 _ . - alone"
            reading.findings.append(Finding("E0112", what, shown(file), fix=fix))
    return found
