"""Sources that are files of this machine: whether what a manifest names is there."""

import ast
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftbuild.declaration import Declaration
from ftbuild.spans import Finding, KeyPath
from ftbuild.wording import nearest, shown

SCHEMES = ("hf", "pypi", "https", "http")
"""How sources come that are no files of this machine."""
BUCKETS = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"}
    | {"hdfs", "webhdfs", "webdav", "sftp", "ssh", "ftp", "smb", "memory"}
)
"""What fsspec reaches besides, by `NAME://…`."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def is_local(spec: Any) -> bool:
    """Say whether a source is a path, and not an address (`hf:`, `https:`) or a table."""
    return isinstance(spec, str) and _SCHEME.match(spec) is None


def is_bucket(spec: str) -> bool:
    """Say whether a source is an address for fsspec."""
    name, separator, _ = spec.partition("://")
    return bool(separator) and name in BUCKETS


def is_glob(path: str) -> bool:
    """Say whether `path` is a pattern."""
    return any(character in path for character in "*?[")


def specs(field: str, sources: dict[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every single source of a field with its path in the target's table."""
    [(shape, value)] = sources.items()
    places: list[tuple[KeyPath, Any]] = [((field,), value)]
    if shape in ("list", "functions"):
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
        if "function" in one or "functions" in one:
            for path, spec in specs(field, one):
                findings += _missing_function(root, declaration, path, spec)
            continue
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


def _missing_function(
    root: Path, declaration: Declaration, at: KeyPath, spec: str
) -> list[Finding]:
    """Return a finding where the file of a function is not there, is no Python, or lacks it."""
    name, _, function = spec.rpartition(":")
    path = root / declaration.package / name
    where, keys = declaration.origin(at)
    if not path.is_file():
        what, fix = _explained(root / declaration.package, name)
        return [Finding("E0401", what, where, keys, fix=fix)]
    if not path.resolve().is_relative_to(root.resolve()):
        what = f"`{shown(name)}` is outside the workspace, so what it imports cannot be known"
        return [Finding("E0405", what, where, keys, fix="copy the file into the workspace")]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        what = f"`{shown(name)}` is no Python: {error}"
        return [Finding("E0405", what, where, keys, fix="mend it")]
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if function in defined:
        return []
    match = nearest(function, defined)
    fix = f"did you mean `{name}:{match}`?" if match else f"define `def {function}(…):` there"
    return [Finding("E0405", f"`{shown(name)}` has no function `{function}`", where, keys, fix=fix)]


def _unknown_scheme(declaration: Declaration, path: KeyPath, spec: Any) -> list[Finding]:
    found = _SCHEME.match(spec) if isinstance(spec, str) else None
    if found is None or found[0][:-1] in SCHEMES or is_bucket(spec):
        return []
    file, keys = declaration.origin(path)
    known = ", ".join(f"`{name}:`" for name in SCHEMES[:-1])
    what = f"a source cannot come by `{shown(found[0])}`"
    fix = f"name a file; besides, there are {known} and addresses such as `s3://…`"
    return [Finding("E0404", what, file, keys, fix=fix)]


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
