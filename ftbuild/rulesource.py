"""The identity of a rule's code: what it does, not how it is written down.

A comment, a docstring or a line break more changes no key; a changed number does. Followed are
imports of files beside the rule (`import helper`, `from helper import x`), wherever they stand
in the file. What is imported by a computed name is not seen.
"""

import ast
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest, hash_value

_WITHOUT_MEANING = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def normalised_source(path: Path) -> str:
    """Return what the Python file at `path` means: equal texts do the same.

    The text is the same under Python 3.11 to 3.14: fields that are empty are left out, so
    those that a newer Python adds change nothing.

    Raises:
        SyntaxError: the file is no Python.
    """
    return _dump(ast.parse(path.read_bytes(), str(path)))


def source_digest(path: Path, within: Path) -> tuple[Digest, tuple[Path, ...]]:
    """Return one digest of the file and of all files below `within` that it imports; and those.

    Files count under their path relative to the folder of `path`, so moving the project or
    the folder of its rules changes nothing.

    Raises:
        SyntaxError: one of the files is no Python.
    """
    path, within = path.resolve(), within.resolve()
    trees: dict[Path, ast.Module] = {}
    pending = [path]
    while pending:
        file = pending.pop()
        if file not in trees:
            trees[file] = ast.parse(file.read_bytes(), str(file))
            pending += _imported(trees[file], file, path.parent, within)
    named = {os.path.relpath(file, path.parent): _dump(tree) for file, tree in trees.items()}
    own = named.pop(path.name)  # the name of a rule's file is not part of what it does
    return hash_value([own, sorted(named.items())]), tuple(sorted(trees))


def _imported(tree: ast.Module, file: Path, beside: Path, within: Path) -> Iterator[Path]:
    """Yield the files below `within` that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name.split("."), (beside, within.parent), within)
        elif isinstance(node, ast.ImportFrom):
            bases: tuple[Path, ...] = (beside, within.parent)
            if node.level:
                bases = (file.parents[node.level - 1],)
            parts = node.module.split(".") if node.module else []
            for alias in node.names:  # `from a import b`: b may be a module as well
                yield from _files([*parts, alias.name], bases, within)


def _files(parts: list[str], bases: Iterable[Path], within: Path) -> Iterator[Path]:
    """Yield the files that importing the module `parts` runs, from the first base that has it."""
    for base in bases:
        found = []
        for count in range(1, len(parts) + 1):
            place = base.joinpath(*parts[:count])
            found += [
                f
                for f in (place.with_name(f"{place.name}.py"), place / "__init__.py")
                if f.is_file() and f.is_relative_to(within)
            ][:1]
        if found:
            yield from found
            return


def _dump(node: Any) -> str:
    """Return an AST as text, without what has no meaning and what differs among Pythons."""
    if isinstance(node, ast.Constant):
        return f"Constant({_constant(node.value)})"
    if isinstance(node, ast.AST):
        fields = []
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                value = [item for item in value if not _does_nothing(item)]
            if value not in (None, []) and name not in _WITHOUT_MEANING:
                fields.append(f"{name}={_dump(value)}")
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(_dump(item) for item in node)}]"
    return ascii(node)


def _constant(value: Any) -> str:
    # `ascii`, for `repr` asks the Unicode tables of its Python; hex for numbers too long to print.
    return hex(value) if type(value) is int else ascii(value)


def _does_nothing(node: Any) -> bool:
    """Say whether a statement is `pass` or a docstring, also of a field."""
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
