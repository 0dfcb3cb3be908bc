"""Doctor: what is and is not as ftbuild needs it on this machine."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ftbuild import sandbox
from ftbuild.errors import FtbuildError
from ftbuild.lockfile import installed_version

if TYPE_CHECKING:
    from ftbuild.project import Project

_LOW_BYTES = 10 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warn", "error"]
    what: str
    fix: str | None = None


def examine(project: "Project") -> list[Finding]:
    """Look at Python, the store, the disk, the manifest, and the locked libraries."""
    return [*_python(), *_manifest(project)]


def _python() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    if shutil.which("sh") is None:
        yield Finding("error", "there is no /bin/sh: `command` targets cannot run")
    if reason := sandbox.problem():
        yield Finding("warn", sandbox.WEAKER.format(reason), "apt install bubblewrap")
    else:
        yield Finding("ok", "bubblewrap: a sandbox shows an action its declared inputs alone")


def _manifest(project: "Project") -> Iterator[Finding]:
    try:
        graph = project.check()
    except FtbuildError as error:
        yield Finding("error", error.problems[0].what, "`ftbuild check` shows all")
        return
    yield Finding("ok", f"workspace {project.root}: {len(graph.targets)} targets")
    yield from _store(project)
    yield from _libraries(project)


def _store(project: "Project") -> Iterator[Finding]:
    try:
        root = project.store.root
    except FtbuildError as error:
        yield Finding("error", error.problems[0].what, error.problems[0].fix)
        return
    yield Finding("ok", f"store {root}")
    free = shutil.disk_usage(root).free
    level: Literal["ok", "warn"] = "warn" if free < _LOW_BYTES else "ok"
    fix = "`ftbuild gc` makes room" if level == "warn" else None
    yield Finding(level, f"{free / 1e9:,.1f} GB free on its disk", fix)
    if os.stat(root).st_dev != os.stat(project.root).st_dev:
        yield Finding("ok", "the store is on another file system than the workspace")


def _libraries(project: "Project") -> Iterator[Finding]:
    for name, locked in project.locked.libraries.items():
        installed = installed_version(name)
        if installed == locked:
            yield Finding("ok", f"{name} {locked}")
        elif installed is None:
            yield Finding("warn", f"{name} {locked} is locked, but not installed")
        else:
            yield Finding(
                "warn",
                f"{name} {locked} is locked, but {installed} is installed",
                f"pip install '{name}=={locked}', or `ftbuild lock --upgrade {name}`",
            )
