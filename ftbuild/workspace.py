"""The checked graph of a workspace, from its files or from the cache of an earlier check.

The cache (`.ftbuild/graph.bin`) holds the graph as plain data, with the digests of all bytes
that it follows from: the FTBUILD.toml files, the project's rule files, and by stat the files
of the standard rules. Loading it takes milliseconds and imports neither a TOML parser nor a
validation library.
"""

import marshal
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild import __version__
from ftbuild.digest import hash_bytes, hash_file
from ftbuild.graph import Graph
from ftbuild.history import FOLDER, replace_file, workspace_folder

_NAME = "graph.bin"
_FORMAT = ("graph 4", __version__, sys.implementation.cache_tag)
_KEPT = 4


@dataclass(frozen=True)
class Workspace:
    """A graph and the tables that stand beside it."""

    graph: Graph
    name: str
    """Of the project."""
    project_rules: tuple[str, ...]
    run: dict[str, Any]
    cache: dict[str, Any]
    files: dict[str, str]
    """Digests of the files that it follows from, by absolute path."""
    stats: dict[str, tuple[int, int]]
    """Size and mtime of the standard rules' files."""

    def paths(self, root: Path) -> list[str]:
        """Return all files that the graph follows from."""
        return [*self.files, *(os.path.join(root, path) for path in self.stats)]

    def is_current(self, root: Path) -> bool:
        """Say whether all these files are as they were when the graph was made.

        Raises:
            OSError: one of them is gone.
        """
        return all(
            _stat(os.path.join(root, p)) == known for p, known in self.stats.items()
        ) and all(hash_file(path) == digest for path, digest in self.files.items())


Request = tuple[str, str | None, tuple[str, ...], bool, tuple[str, ...]]


def load(
    root: Path,
    *,
    profile: str | None,
    overrides: Sequence[str],
    everything: bool = False,
    wanted: Sequence[str] = (),
) -> Workspace:
    """Return the checked graph of the workspace at `root`.

    `wanted` are labels whose packages must be read; `everything` reads all packages.

    Raises:
        ManifestError: with all that is wrong in all files.
    """
    packages = tuple(sorted({name.partition(":")[0] for name in wanted if name.startswith("//")}))
    # The root too: a copied workspace brings graphs along that follow from the original's files.
    request = (str(root.resolve()), profile, tuple(overrides), everything, packages)
    # What `everything` consists of is not known before looking: never taken from the cache.
    found = None if everything else _cached(root, request)
    if found is None:
        found = _read(root, request, wanted)
        _keep(root, request, found)
    return found


def _read(root: Path, request: Request, wanted: Sequence[str]) -> Workspace:
    from ftbuild import graph, manifest
    from ftbuild.registry import Registry

    _, profile, overrides, everything, _ = request
    read = manifest.read(
        root, profile=profile, overrides=overrides, everything=everything, wanted=wanted
    )
    registry = Registry(root, read.project.rules)
    built = graph.build(read, registry)
    files: dict[str, str] = {str(root / n): hash_bytes(text) for n, text in read.texts.items()}
    stats = {}
    for name in read.project.rules:
        files[str(root / name)] = hash_file(root / name)
    for facts in built.rules.values():
        for name in facts.files:
            files[str(root / name)] = hash_file(root / name)
        if facts.version is not None:
            stats[facts.file] = _stat(os.path.join(root, facts.file))
    return Workspace(
        built, read.project.name, read.project.rules, read.run, read.cache, files, stats
    )


def _stat(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _answers(root: Path) -> dict[Request, Any]:
    try:
        form, answers = marshal.loads((root / FOLDER / _NAME).read_bytes())
        return answers if form == _FORMAT else {}
    except (OSError, ValueError, EOFError, TypeError, AttributeError):
        return {}


def _cached(root: Path, request: Request) -> Workspace | None:
    answer = _answers(root).get(request)
    if answer is None:
        return None
    try:
        plain, *rest = answer
        found = Workspace(Graph.from_plain(plain), *rest)
        return found if found.is_current(root) else None
    except (OSError, TypeError, ValueError):  # gone, or written by a build of other classes
        return None


def _keep(root: Path, request: Request, workspace: Workspace) -> None:
    answers = _answers(root)
    answers.pop(request, None)
    while len(answers) >= _KEPT:
        del answers[next(iter(answers))]
    w = workspace
    answers[request] = (
        w.graph.to_plain(),
        w.name,
        w.project_rules,
        w.run,
        w.cache,
        w.files,
        w.stats,
    )
    try:
        data = marshal.dumps((_FORMAT, answers))
    except ValueError:  # a value that marshal has no form for, such as a TOML date
        return
    replace_file(workspace_folder(root) / _NAME, data)
