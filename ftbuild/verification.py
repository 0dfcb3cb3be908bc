"""Verification: actions run again in a clean place, their outputs compared with what the store has.

Each action gets its recorded inputs, a sandbox, and a store of its own that is empty: nothing of
what was cached for it can come back as its result, fragments included. The outcome is a fact
about the recorded artifact, so nothing here is ever recorded.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftbuild import events, sandbox, slots, viewing
from ftbuild.action import Action, Output
from ftbuild.brief import slot_of
from ftbuild.build import SHELL, sandbox_of, toolchains_of, worker_environment
from ftbuild.errors import FtbuildError, MachineError
from ftbuild.failures import Failed
from ftbuild.graph import Target
from ftbuild.registry import Registry
from ftbuild.run import Done, Runner
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree
from ftbuild.view import View
from ftbuild.workers import Workers

if TYPE_CHECKING:
    from ftbuild.project import Project

Outcome = Literal["identical", "within", "different", "failed", "unbuilt", "skipped"]
LOOSE = 1e-3
"""The tolerance for a rule that says of itself that it is not reproducible."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDifference:
    """One file in which two artifacts differ."""

    path: str
    how: Literal["changed", "missing", "extra"]
    """`missing` in what was rebuilt, or there in excess."""
    at: int | None = None
    """The first byte that differs, of a file that changed."""


@dataclass(frozen=True)
class Verified:
    """What became of one action."""

    label: str
    outcome: Outcome
    key: str | None = None
    recorded: str | None = None
    """The digest of the recorded output."""
    rebuilt: str | None = None
    seconds: float = 0.0
    files: tuple[FileDifference, ...] = ()
    view: View | None = None
    """How a viewer of the rule pack tells the difference: tensors, rows, tokens."""
    tolerance: float = 0.0
    why: str | None = None
    """Of what failed, was skipped or is not built."""
    log_tail: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def distance(self) -> float | None:
        """The largest difference between two numbers, where only numbers differ."""
        return None if self.view is None else self.view.distance


@dataclass(frozen=True)
class Limits:
    """How exactly to compare, and how long to go on."""

    tolerance: float | None = None
    """None: 0 for reproducible rules, `LOOSE` for others."""
    budget_s: float | None = None
    """No action is begun that would not end within this time, by what its last run took."""


OnVerified = Callable[[Verified], None]


class Verifier:
    """Verifies actions of one project, one after another."""

    def __init__(self, project: "Project", limits: Limits, on_event: events.OnEvent) -> None:
        self._project = project
        self._limits = limits
        self._on_event = on_event
        self._describer = project.describer()
        self._supply = project.supply(lambda text: on_event(events.Warned("", text)))
        self._began = time.monotonic()
        self._outputs: dict[str, Output] = {}
        self._found: dict[str, tuple[Action, Record]] = {}
        self._missing: dict[str, str] = {}

    def keys(self, labels: Sequence[str]) -> dict[str, str]:
        """Return the action key of each of these targets that is built."""
        self._look_up(labels)
        return {label: self._found[label][0].key for label in labels if label in self._found}

    def run(self, labels: Sequence[str], on_verified: OnVerified) -> list[Verified]:
        """Verify the targets `labels` in build order; tell each as it is done."""
        self._look_up(labels)
        wanted = set(labels)
        order = [t for t in self._project.graph.closure(labels) if t.label in wanted]
        verified = []
        with self._place() as (runner, place):
            for number, target in enumerate(order):
                found = self._one(target, runner, place / str(number))
                verified.append(found)
                on_verified(found)
        return verified

    def _look_up(self, labels: Sequence[str]) -> None:
        """Find the records of the targets and of all they need: they are the inputs."""
        store = self._project.store
        for target in self._project.graph.closure(labels):
            if target.label in self._found or target.label in self._missing:
                continue
            below = [e.label for e in target.edges if e.label not in self._outputs]
            if below:
                self._missing[target.label] = f"it needs `{below[0]}`, which is not built"
                continue
            try:
                action = self._describer.action(target, self._outputs)
            except FtbuildError as error:
                self._missing[target.label] = error.problems[0].what
                continue
            record = store.find(action.key)
            if record is None and self._supply is not None:
                record = self._supply.find(action.key)
            if record is None:
                objection = store.distrusted.get(action.key)
                self._missing[target.label] = (
                    f"the record in the store is not trusted: {objection}"
                    if objection
                    else "the store has no result of it as it now is"
                )
                continue
            self._found[target.label] = action, record
            self._outputs[target.label] = self._describer.output(target, action.key, record.tree)

    @contextmanager
    def _place(self) -> Iterator[tuple[Runner, Path]]:
        """Give a runner and a folder; both leave nothing behind."""
        project = self._project
        place = project.folder / "verify" / f"{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        work = place / "work"
        work.mkdir(parents=True)
        if reason := sandbox.problem():
            self._on_event(events.Warned("", sandbox.WEAKER.format(reason)))
        workers = Workers(lambda: worker_environment(project, work), work)
        runner = Runner(
            root=project.root,
            store=project.store,
            resolver=self._describer.resolver,
            lock=project.locked,
            workers=workers,
            toolchains=toolchains_of(project),
            shell=SHELL,
            environment=os.environ,
            logs=place / "log",
            has_logs=False,
            statcache=place / "stat.bin",
            sandbox=sandbox_of(project),
        )
        try:
            yield runner, place
        finally:
            workers.stop()
            workers.close()
            _remove(place)

    def _one(self, target: Target, runner: Runner, place: Path) -> Verified:
        label = target.label
        if label not in self._found:
            return Verified(label, "unbuilt", why=self._missing[label], exit_code=2)
        action, record = self._found[label]
        expected_s = float(record.provenance.get("seconds", 0.0))
        if not self._is_time_for(expected_s):
            why = f"its last run took {expected_s:.0f} s, and the time is up"
            return Verified(label, "skipped", action.key, record.tree.digest, why=why)
        self._on_event(events.Started(label, target.rule, "verify"))
        began = time.monotonic()
        store = Store(place / "store", StatCache(place / "stat.bin"))
        try:
            done = self._rebuild(action, replace(runner, store=store, desks=threading.local()))
            found = self._compare(action, record, done, store)
        except FtbuildError as error:
            tail = error.log_tail if isinstance(error, Failed) else ()
            found = Verified(
                label,
                "failed",
                action.key,
                record.tree.digest,
                why=error.render(),
                log_tail=tuple(tail),
                exit_code=error.exit_code,
            )
        finally:
            store.close()
            _remove(place)
        return replace(found, seconds=time.monotonic() - began)

    def _is_time_for(self, expected_s: float) -> bool:
        budget_s = self._limits.budget_s
        return budget_s is None or time.monotonic() - self._began + expected_s <= budget_s

    def _rebuild(self, action: Action, runner: Runner) -> Done:
        target = action.target
        inputs = {}
        for edge in target.edges:
            output, record = self._outputs[edge.label], self._found[edge.label][1]
            tree = record.tree
            if edge.part is not None:
                tree = tree.part(action.facts.parts[edge.field])
            inputs[slot_of(edge)] = (output, tree, self._lay_out(record, tree))
        machine = slots.of_this_machine(self._project.options.jobs)
        share = machine.share(target, action.facts)
        gpus = machine.take(target.label, share) or ()

        def hear(event: dict[str, Any]) -> None:
            if "progress" in event:
                self._on_event(events.Progress(target.label, **event["progress"]))

        return runner.run(action, inputs, cpus=share.cpus, gpus=gpus, on_event=hear)

    def _lay_out(self, record: Record, tree: Tree) -> Path:
        """Return where a part of a recorded output lies, fetched if need be.

        Raises:
            MissingBlob: its bytes are not to be had.
        """
        try:
            return self._project.store.lay_out(tree)
        except MissingBlob:
            if self._supply is None:
                raise
        self._supply.fetch(record, tree)
        return self._project.store.lay_out(tree)

    def _compare(self, action: Action, record: Record, done: Done, store: Store) -> Verified:
        label, kind = action.target.label, action.target.kind
        old, new = record.tree, done.record.tree
        found = Verified(label, "identical", action.key, old.digest, new.digest)
        if old.digest == new.digest:
            return found
        ours = self._lay_out(record, old)
        theirs = store.lay_out(new)
        view = self._view(kind, old, new, ours, theirs)
        tolerance = self._limits.tolerance
        if tolerance is None:
            tolerance = 0.0 if record.provenance.get("is_reproducible", True) else LOOSE
        distance = None if view is None else view.distance
        is_within = distance is not None and tolerance > 0 and distance <= tolerance
        return replace(
            found,
            outcome="within" if is_within else "different",
            exit_code=0 if is_within else 3,
            files=tuple(file_differences(old, new, ours, theirs)),
            view=view,
            tolerance=tolerance,
        )

    def _view(self, kind: str, old: Tree, new: Tree, ours: Path, theirs: Path) -> View | None:
        """Ask a viewer how two artifacts differ; None where there is none, or it cannot tell."""
        project = self._project
        registry = Registry(project.root, project.workspace.project_rules)
        viewer = registry.viewer(kind) or registry.viewer("file")
        if viewer is None:
            return None
        shown = [
            viewing.Shown(kind, ours, old.digest, "recorded"),
            viewing.Shown(kind, theirs, new.digest, "rebuilt"),
        ]
        try:
            return viewing.call(viewer.partition(":")[0], "diff", shown, [])
        except (FtbuildError, MachineError):  # an artifact damaged beyond its format
            return None


def file_differences(old: Tree, new: Tree, ours: Path, theirs: Path) -> Iterator[FileDifference]:
    """Yield each file in which the tree `new`, laid out at `theirs`, differs from `old`."""
    before = {entry.path: entry for entry in old.entries}
    after = {entry.path: entry for entry in new.entries}
    for path in sorted({*before, *after}):
        if path not in after:
            yield FileDifference(path, "missing")
        elif path not in before:
            yield FileDifference(path, "extra")
        elif before[path] != after[path]:
            yield FileDifference(path, "changed", _first_difference(ours / path, theirs / path))


def _first_difference(a: Path, b: Path) -> int | None:
    """Return the first byte at which two files differ; None if only their modes do."""
    start = 0
    with a.open("rb") as one, b.open("rb") as other:
        while True:
            old, new = one.read(_BLOCK_BYTES), other.read(_BLOCK_BYTES)
            if old != new:
                pairs = zip(old, new, strict=False)
                shorter = min(len(old), len(new))
                return start + next((i for i, (x, y) in enumerate(pairs) if x != y), shorter)
            if not old:
                return None
            start += len(old)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, whatever modes its files have."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not os.path.islink(f"{path}/{name}"):
                os.chmod(f"{path}/{name}", 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def exit_code(verified: Sequence[Verified]) -> int:
    """Return 3 where something differs, else the worst of what went wrong, else 0."""
    codes = [found.exit_code for found in verified]
    return 3 if 3 in codes else max(codes, default=0)


def counts(verified: Sequence[Verified]) -> Mapping[str, int]:
    """Return how many actions came to each outcome."""
    names = ("identical", "within", "different", "failed", "unbuilt", "skipped")
    return {name: sum(found.outcome == name for found in verified) for name in names}
