"""Sources that are files of this machine: whether what a manifest names is there."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftbuild.declaration import Declaration
from ftbuild.spans import Finding, KeyPath
from ftbuild.wording import nearest, shown

SCHEMES = ("hf", "pypi")
"""How sources come that are no files of this machine; `sources.resolver` knows the same."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def is_local(spec: Any) -> bool:
    """Say whether a source is a path, and not an address (`hf:`, `https:`) or a table."""
    return isinstance(spec, str) and _SCHEME.match(spec) is None


def is_glob(path: str) -> bool:
    """Say whether `path` is a pattern."""
    return any(character in path for character in "*?[")


def specs(field: str, sources: dict[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every single source of a field with its path in the target's table."""
    [(shape, value)] = sources.items()
    places: list[tuple[KeyPath, Any]] = [((field,), value)]
    if shape == "list":
        places = [((field, place), item) for place, item in enumerate(value)]
    elif shape == "table":
        places = [((field, name), item) for name, item in value.items()]
    for path, spec in places:
        if isinstance(spec, list):
            yield from (((*path, place), item) for place, item in enumerate(spec))
        else:
            yield path, spec


def missing(root: Path, declaration: Declaration, sources: dict[str, Any]) -> list[Finding]:
    """Return a finding for each local file, folder or pattern that names nothing."""
    findings = []
    for field, one in sources.items():
        for path, spec in specs(field, one):
            if not is_local(spec):
                findings += _unknown_scheme(declaration, path, spec)
                continue
            folder = os.path.join(root, declaration.package)
            if not _is_there(folder, spec):
                what, fix = _explained(Path(folder), spec)
                file, keys = declaration.origin(path)
                findings.append(Finding("E0401", what, file, keys, fix=fix))
    return findings


def _unknown_scheme(declaration: Declaration, path: KeyPath, spec: Any) -> list[Finding]:
    found = _SCHEME.match(spec) if isinstance(spec, str) else None
    if found is None or found[0][:-1] in SCHEMES:
        return []
    file, keys = declaration.origin(path)
    known = " and ".join(f"`{name}:`" for name in SCHEMES)
    what = f"a source cannot come by `{shown(found[0])}`"
    return [Finding("E0404", what, file, keys, fix=f"name a file; besides, there are {known}")]


def _is_there(folder: str, spec: str) -> bool:
    if is_glob(spec):
        return next(glob.iglob(spec, root_dir=folder, recursive=True), None) is not None
    return os.path.exists(os.path.join(folder, spec))


def _explained(folder: Path, spec: str) -> tuple[str, str]:
    if is_glob(spec):
        fix = "`*` stands for a part of a name, `**` for folders of any depth"
        return f"no file matches `{shown(spec)}`", fix
    where = (folder / spec).parent
    beside = sorted(os.listdir(where)) if where.is_dir() else []
    match = nearest(Path(spec).name, beside)
    fix = "a path is relative to the folder of its FTBUILD.toml"
    if match:
        fix = f"did you mean `{Path(spec).with_name(match).as_posix()}`?"
    return f"there is no file or folder `{shown(spec)}`", fix
