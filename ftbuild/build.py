"""Build: one `make` of a project, from the wanted labels to links in `ftbuild-out`."""

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbuild import events, fastpath, lockfile, outputs, sandbox, slots, usersettings
from ftbuild.action import Describer
from ftbuild.digest import Digest
from ftbuild.errors import FtbuildError
from ftbuild.executor import Executor
from ftbuild.registry import Registry
from ftbuild.run import Runner, Shell
from ftbuild.sandbox import Sandbox
from ftbuild.store.statcache import RACY_NS
from ftbuild.store.trees import Tree
from ftbuild.toolchain import Toolchains
from ftbuild.workers import Workers

if TYPE_CHECKING:
    from ftbuild.project import Project


_GLANCE_S = 0.2


@dataclass(frozen=True)
class BuildResult:
    """How a build went: labels by outcome."""

    built: tuple[str, ...]
    fresh: tuple[str, ...]
    fetched: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float
    saved_s: float
    exit_code: int


class Build:
    """One build; used once."""

    def __init__(
        self,
        project: "Project",
        describer: Describer,
        on_event: events.OnEvent,
        *,
        keep_going: bool,
        force: frozenset[str],
    ) -> None:
        self._project = project
        self._describer = describer
        self._on_event = on_event
        self._keep_going = keep_going
        self._force = force
        self._outcomes: dict[str, list[str]] = {}

    def run(self, wanted: Sequence[str]) -> BuildResult:
        """Bring `wanted` up to date.

        Raises:
            InterruptedBuild: SIGINT or SIGTERM; what was finished is kept.
        """
        project, executor = self._project, self._executor
        closure = project.graph.closure(wanted)
        built = project.history.built
        expected = {t.label: built[t.label].seconds for t in closure if t.label in built}
        self._on_event(events.Planned(len(closure), executor.slots.cpus, expected))
        with _signals_to(executor):
            try:
                summary = executor.run(wanted)
                project.store.flush_own()
                summary = self._send_the_rest(executor, summary)
            finally:
                executor.runner.workers.close()
                project.close_supply()
                project.save()
        self._on_event(summary)
        labels = {outcome: tuple(found) for outcome, found in self._outcomes.items()}
        return BuildResult(
            built=labels.get("built", ()),
            fresh=labels.get("fresh", ()),
            fetched=labels.get("fetched", ()),
            failed=labels.get("failed", ()),
            skipped=labels.get("skipped", ()),
            seconds=summary.seconds,
            saved_s=summary.saved_s,
            exit_code=executor.exit_code,
        )

    def _send_the_rest(self, executor: Executor, summary: events.Summary) -> events.Summary:
        """Wait until remote stores have what was built, and count that too."""
        supply = executor.supply
        if supply is None:
            return summary
        began = time.monotonic()
        if supply.num_waiting:
            self._on_event(events.Sending(supply.num_waiting))
        while not supply.drain(_GLANCE_S):
            executor.raise_if_interrupted()
        seconds = summary.seconds + time.monotonic() - began
        return replace(summary, seconds=seconds, sent_bytes=supply.sent_bytes())

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.Finished):
            self._outcomes.setdefault(event.outcome, []).append(event.label)
            if event.digest is not None:
                self._link(event.label, Digest(event.digest), is_new=event.outcome == "built")
        self._on_event(event)

    def _link(self, label: str, digest: Digest, *, is_new: bool) -> None:
        link = outputs.link_path(self._project.root, self._project.graph.targets[label])
        directory = str(self._project.store.tree_path(digest))
        if is_new or os.path.isdir(directory):
            outputs.point(link, directory)
        else:  # known by its record alone, and nobody has needed its files yet
            outputs.remove(link)

    @cached_property
    def _executor(self) -> Executor:
        project = self._project
        work = project.folder / "work"
        work.mkdir(exist_ok=True)

        logs = project.folder / "log"
        runner = Runner(
            root=project.root,
            store=project.store,
            resolver=self._describer.resolver,
            lock=project.locked,
            workers=Workers(lambda: worker_environment(project, work), work),
            toolchains=toolchains_of(project),
            shell=SHELL,
            environment=os.environ,
            logs=logs,
            has_logs=logs.is_dir(),
            statcache=project.folder / "stat.bin",
            sandbox=self._sandbox(),
            trackers=tuple(project.setting("run", "trackers") or ()),
        )
        jobs = project.options.jobs or project.setting("run", "jobs")
        return Executor(
            project.graph,
            self._describer,
            project.store,
            project.history,
            project.planner(self._describer),
            runner,
            slots.of_this_machine(jobs),
            self._hear,
            self._keep_going,
            self._force,
            project.supply(lambda text: self._on_event(events.Warned(None, text))),
        )

    def _sandbox(self) -> Sandbox | None:
        if not self._project.setting("run", "sandbox"):
            return None
        if reason := sandbox.problem():
            self._on_event(events.Warned("", sandbox.WEAKER.format(reason)))
        return sandbox_of(self._project)

    def remember(self, names: Sequence[str], wanted: Sequence[str]) -> None:
        """Note the stats of all that made this answer, so that the next run needs no more.

        Nothing is noted if any of it changed since it was read, or is so young that its stat
        could stay the same over another change: then the next run looks closely again.
        """
        project = self._project
        closure = project.graph.closure(wanted)
        lock = str(project.root / lockfile.NAME)
        watched = [*project.workspace.paths(project.root), *self._describer.resolver.looked_at()]
        absent = [path for path in (lock, usersettings.path()) if not os.path.exists(path)]
        watched += {lock, usersettings.path()} - set(absent)
        trees = self._executor.trees()
        links = {outputs.link_path(project.root, t): self._directory(t.label) for t in closure}
        links = {link: place for link, place in links.items() if os.path.isdir(place)}
        made = [path for label, tree in trees.items() for path in self._paths(label, tree)]
        try:
            stats = {path: fastpath.take_stat(path) for path in (*watched, *made)}
            folders = {os.path.dirname(link) for link in links}
            folder_stats = {path: fastpath.take_stat(path) for path in folders}
            # Only now: what is verified after its stat was taken had that stat when it was right.
            if not fastpath.are_settled([stats[p] for p in watched], RACY_NS):
                return
            if not self._is_current(trees, links):
                return
        except (OSError, FtbuildError):
            return
        options = project.options
        request = fastpath.Request(tuple(names), options.profile, options.overrides)
        answer = fastpath.Answer(
            targets=len(closure),
            stats=stats,
            folders=folder_stats,
            links=links,
            absent=tuple(absent),
            variables={
                name: fastpath.variable_digest(os.environ.get(name))
                for target in closure
                for _, name in target.variables
            },
        )
        fastpath.remember(project.root, project.directory, request, answer)

    def _directory(self, label: str) -> str:
        """Return where the artifact of a target lies ready."""
        return str(self._project.store.tree_path(self._project.history.built[label].tree))

    def _paths(self, label: str, tree: Tree) -> Iterator[str]:
        """Yield the folders and files of an artifact that lies ready."""
        top = self._directory(label)
        folders = {top}
        for entry in tree.entries:
            path = f"{top}/{entry.path}"
            yield path
            while (path := os.path.dirname(path)) not in folders:
                folders.add(path)
        yield from folders

    def _is_current(self, trees: Mapping[str, Tree], links: Mapping[str, str]) -> bool:
        """Say whether files, lock, sources and outputs are still what this build saw or made."""
        project = self._project
        if not project.workspace.is_current(project.root):
            return False
        if lockfile.read(project.root) != project.locked:
            return False
        if not self._describer.resolver.is_current():
            return False
        return all(project.store.is_intact(tree) for tree in trees.values()) and all(
            os.readlink(link) == directory for link, directory in links.items()
        )


SHELL = Shell(
    os.pathsep.join([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"])
)
"""Where actions find programs: beside this Python, then the system's places."""


def worker_environment(project: "Project", work: Path) -> dict[str, str]:
    """Return the environment with which the workers of a build start."""
    registry = Registry(project.root, project.workspace.project_rules)
    return {
        **SHELL.variables(str(work)),
        **registry.environment(),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }


def toolchains_of(project: "Project") -> Toolchains:
    """Return what makes the environments of rules that have one of their own."""

    def packs() -> list[str]:
        return Registry(project.root, project.workspace.project_rules).folders()

    return Toolchains(project.store, packs, is_offline=project.options.offline)


def sandbox_of(project: "Project") -> Sandbox:
    """Return the sandbox of this machine for a project."""
    registry = Registry(project.root, project.workspace.project_rules)
    return sandbox.make(project.root, registry.folders())


@contextmanager
def _signals_to(executor: Executor) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the build in good order; a second one ends it at once."""
    count = itertools.count()

    def interrupt(number: int, _: object) -> None:
        if next(count):
            raise KeyboardInterrupt
        executor.interrupt(number)

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, interrupt)
    except ValueError:  # not the main thread: then the program has its own ways
        pass
    try:
        yield
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
