"""Artifacts: what is built here, found by the name of its target, and shown."""

from pathlib import Path
from typing import TYPE_CHECKING

from ftbuild.errors import UsageError
from ftbuild.graph import Target
from ftbuild.history import Built, log_of_failure
from ftbuild.store.actions import Record
from ftbuild.view import View

if TYPE_CHECKING:
    from ftbuild.project import Project
    from ftbuild.viewing import Shown

PREVIOUS = "@previous"
"""`diff helper helper@previous`: what a target was before its last build."""


def find(project: "Project", name: str) -> tuple[Target, Record]:
    """Return a target that is built, with its record.

    Raises:
        UsageError: E0010, it is not built; E0011, `name` means several; E0012, its result is no
            longer in the store.
    """
    target, built = _built(project, name)
    return target, _record(project, built, target.label)


def path(project: "Project", name: str) -> Path:
    """Return the directory of an artifact, laid out."""
    return project.store.lay_out(find(project, name)[1].tree)


def log(project: "Project", name: str) -> str:
    """Return what the last run of a target wrote: of a failed one where it failed since."""
    failed = log_of_failure(project.folder / "log", _label(project, name))
    if failed.is_file():
        return failed.read_text(encoding="utf-8", errors="replace")
    digest = find(project, name)[1].provenance.get("log")
    if digest is None or not project.store.has_blob(digest):
        return ""
    return project.store.blob_path(digest).read_text(encoding="utf-8", errors="replace")


def inspect(project: "Project", name: str, row: int | None) -> View:
    """Return an artifact, or one row of it, as a person wants it."""
    from ftbuild import viewing

    shown = _shown(project, name)
    return viewing.call(_viewer_of(project, shown.kind), "inspect", [shown], [row])


def diff(project: "Project", a: str, b: str) -> View:
    """Return how two artifacts differ.

    Raises:
        UsageError: E0013, they are of two kinds; E0014, there is no previous build.
    """
    from ftbuild import viewing

    one, other = _shown(project, a), _shown(project, b)
    if one.kind != other.kind:
        raise UsageError(
            f"`{a}` is a {one.kind} and `{b}` a {other.kind}",
            code="E0013",
            fix="compare two artifacts of one kind",
        )
    return viewing.call(_viewer_of(project, one.kind), "diff", [one, other], [])


def _shown(project: "Project", name: str) -> "Shown":
    from ftbuild.viewing import Shown

    plain, _, _ = name.partition(PREVIOUS)
    target, built = _built(project, plain)
    if name.endswith(PREVIOUS):
        before = project.history.previous.get(target.label)
        if before is None:
            raise UsageError(
                f"`{target.label}` has no previous build with another output here",
                code="E0014",
                fix="compare two targets, or build it again after a change",
            )
        built = before
    tree = _record(project, built, target.label).tree
    label = name if name.endswith(PREVIOUS) else target.label
    return Shown(target.kind, project.store.lay_out(tree), tree.digest, label)


def _label(project: "Project", name: str) -> str:
    found = project.resolve([name])
    if len(found) != 1:
        raise UsageError(
            f"`{name}` is a family of {len(found)} targets",
            code="E0011",
            fix="name one of them: " + ", ".join(found[:5]),
        )
    return found[0]


def _built(project: "Project", name: str) -> tuple[Target, Built]:
    label = _label(project, name)
    built = project.history.built.get(label)
    if built is None:
        raise UsageError(
            f"`{label}` has not been built here", code="E0010", fix=f"ftbuild make {label}"
        )
    return project.graph.targets[label], built


def _record(project: "Project", built: Built, label: str) -> Record:
    record = project.store.find(built.key)
    if record is None:
        raise UsageError(
            f"the result of `{label}` is no longer in the store",
            code="E0012",
            fix=f"ftbuild make {label}",
        )
    return record


def _viewer_of(project: "Project", kind: str) -> str:
    from ftbuild.registry import Registry

    found = Registry(project.root, project.workspace.project_rules).viewer(kind)
    if found is None:
        raise UsageError(
            f"there is no viewer for a {kind}",
            code="E0015",
            fix="`ftbuild path` prints where its files are",
        )
    return found.partition(":")[0]
