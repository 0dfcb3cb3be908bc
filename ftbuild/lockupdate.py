"""Lock update: FTBUILD.lock completed by a build, or written anew by `lock`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ftbuild import lockfile, locking, workspace
from ftbuild.errors import DifferenceError
from ftbuild.graph import Graph, Target

if TYPE_CHECKING:
    from ftbuild.project import Project


def complete(project: "Project", closure: Sequence[Target]) -> None:
    """Add to the lock what `closure` needs and it does not hold yet; write it if it changed.

    Raises:
        DifferenceError: E0502, `--locked` forbids that; E0504, `--frozen`, and there is no lock.
    """
    if project.options.frozen:
        if not (project.root / lockfile.NAME).exists():
            raise DifferenceError(
                f"there is no `{lockfile.NAME}`, and `--frozen` takes nothing that is not locked",
                code="E0504",
                fix="run `ftbuild lock` and commit the file",
            )
        return
    new = locking.completed(project.locked, closure, project.describer())
    if new == project.locked:
        return
    if project.options.locked:
        raise DifferenceError(
            f"`{lockfile.NAME}` is not complete, and `--locked` forbids to change it",
            code="E0502",
            why="; ".join(lockfile.differences(project.locked, new)),
            fix="run `ftbuild lock` and commit the file",
        )
    lockfile.write(project.root, new)
    project.locked = new


def update(
    project: "Project", upgrade: Sequence[str], *, upgrade_all: bool, check: bool
) -> list[str]:
    """Bring the lock up to date with the whole workspace; return the lines that differ.

    Raises:
        UsageError: E0503, the lock holds nothing of a name in `upgrade`.
    """
    before = project.locked
    graphs = [project.check(), *_profiles(project)]
    new = lockfile.Lock() if upgrade_all else locking.without(before, upgrade, graphs[0])
    for graph in graphs:
        project.locked = new
        new = locking.completed(new, list(graph.targets.values()), project.describer(graph))
    if upgrade_all:  # what is not installed here cannot be looked up: it stays as it was
        new = new.with_libraries(
            {n: v for n, v in before.libraries.items() if n not in new.libraries}
        )
    new = locking.trimmed(new, graphs)
    project.locked = before if check else new
    lines = lockfile.differences(before, new)
    if lines and not check:
        lockfile.write(project.root, new)
    return lines


def _profiles(project: "Project") -> list[Graph]:
    """Return the graph of the workspace under each of its profiles."""
    from ftbuild import manifest

    return [
        workspace.load(project.root, profile=name, overrides=(), everything=True).graph
        for name in manifest.profiles(project.root)
    ]
