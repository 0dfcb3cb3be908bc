"""One action, from its document to a record in the store; called in a slot's thread."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftbuild import __version__
from ftbuild.action import Action, Output
from ftbuild.digest import Digest, canonical_json
from ftbuild.errors import ActionError, Problem, problems_from
from ftbuild.graph import Edge
from ftbuild.kinds import KINDS, missing_files
from ftbuild.lockfile import Lock, check_environment
from ftbuild.registry import load_rule
from ftbuild.rows import MAX_BYTES
from ftbuild.sources.resolver import Resolved, Resolver
from ftbuild.store.actions import Record
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree
from ftbuild.workers import Exit, Workers

_KINDS = {kind.kind: kind for kind in KINDS}
Ready = Mapping[tuple[str, str | None], tuple[Output, Tree, Path]]
"""The inputs of an action, laid out, by target and part."""

_TAIL_LINES = 15
_LARGE_BYTES = 64 << 10
"""Smaller input files are copied rather than linked into an output; see Context.link."""


@dataclass(frozen=True)
class Shell:
    """The environment of every action: what a program needs to run at all, and no more."""

    path: str

    def variables(self, work: Path) -> dict[str, str]:
        """Return the variables for an action that works in `work`."""
        return {"PATH": self.path, "HOME": str(work), "TMPDIR": str(work), "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Done:
    """What a finished action leaves to be known."""

    record: Record
    fragments: tuple[int, int] | None
    warnings: tuple[str, ...]


class Failed(ActionError):
    """An action failed; carries the last lines of its log."""

    def __init__(self, problems: Sequence[Problem], log_tail: Sequence[str]) -> None:
        super().__init__(problems[0].what)
        self.problems = tuple(problems)
        self.log_tail = tuple(log_tail)


@dataclass(frozen=True)
class Runner:
    """Runs actions, for one build."""

    root: Path
    store: Store
    resolver: Resolver
    lock: Lock
    workers: Workers
    shell: Shell
    environment: Mapping[str, str]
    logs: Path
    statcache: Path
    """The file of the stat cache, which workers read too."""

    def run(
        self,
        action: Action,
        inputs: Ready,
        *,
        cpus: int,
        gpus: tuple[str, ...],
        on_event: Callable[[dict[str, Any]], None],
    ) -> Done:
        """Run `action`, whose inputs lie ready in `inputs`, and record its output.

        Raises:
            Failed: the rule failed; nothing is recorded.
            FtbuildError: the machine or the environment cannot run it.
        """
        check_environment(action.facts.pins, self.lock, action.target.label)
        place = self.store.workspace()
        try:
            return _Run(self, action, inputs, place, cpus, gpus, on_event).go()
        finally:
            self.store.forget(place)


class _Run:
    def __init__(
        self,
        runner: Runner,
        action: Action,
        inputs: Ready,
        place: Path,
        cpus: int,
        gpus: tuple[str, ...],
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self.runner, self.action, self.inputs = runner, action, inputs
        self.place, self.cpus, self.gpus, self.on_event = place, cpus, gpus, on_event
        self.out, self.work = place / "out", place / "work"
        self.result: dict[str, Any] = {"adopted": {}, "facts": {}, "fragments": None}
        self.problems: tuple[Problem, ...] = ()
        self.warnings: list[str] = []

    def go(self) -> Done:
        os.mkdir(self.out)
        os.mkdir(self.work)
        log_path = self.place / "log"
        began = time.monotonic()
        with open(log_path, "wb") as log:
            runs = self._process if self.action.facts.runs == "process" else self._worker
            end = runs(log.fileno())
        if end.status != 0 or self.problems:
            raise self._failure(end, log_path)
        self._check_sources()
        tree = self._ingest()
        log_digest = self._keep_log(log_path)
        snapshots = self._keep_sources()
        provenance = {
            "seconds": round(time.monotonic() - began, 3),
            "finished_at": int(time.time()),
            "host": socket.gethostname(),
            "ftbuild": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            "label": self.action.target.label,
            "max_rss_bytes": end.max_rss_bytes,
            "is_reproducible": self.action.facts.is_reproducible,
            "facts": self.result["facts"],
            "warnings": self.warnings,
            "log": log_digest,
            "sources": snapshots,
        }
        record = Record(self.action.key, tree, None, self.action.document, provenance)
        self.runner.store.publish(record)
        if self.action.facts.runs == "worker":
            self.runner.store.drop_scratch(self.action.key)
        fragments = self.result["fragments"]
        return Done(record, tuple(fragments) if fragments else None, tuple(self.warnings))

    def _process(self, log: int) -> Exit:
        from ftbuild.worker import rule_inputs  # pydantic: only when a command runs here

        rule = load_rule(self.runner.root, self.action.facts)
        params = rule.params.model_validate_json(canonical_json(self.action.document["params"]))
        given = rule.inputs.model_validate(rule_inputs(self._plain_inputs()))
        command = rule.function(None, given, params)
        environment = {
            **self.runner.shell.variables(self.work),
            **_devices(self.gpus),
            **command.environment,
            "out": str(self.out),
        }
        return self.runner.workers.run_command(command.argv, environment, self.work, log)

    def _worker(self, log: int) -> Exit:
        runner, action = self.runner, self.action
        document = {
            "rule": asdict(action.facts),
            "root": str(runner.root),
            "params": action.document["params"],
            "inputs": self._plain_inputs(),
            "document": action.document,
            "out": str(self.out),
            "work": str(self.work),
            "scratch": str(runner.store.scratch(action.key)),
            "cpus": self.cpus,
            "environment": {**runner.shell.variables(self.work), **_devices(self.gpus)},
            "store": str(runner.store.root),
            "statcache": str(runner.statcache),
            "known": self._linkable(),
        }
        path = self.place / "action.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return runner.workers.run_worker(path, action.facts.preload, log, self._hear)

    def _hear(self, event: dict[str, Any]) -> None:
        if "done" in event:
            self.result = event["done"]
        elif "failed" in event:
            self.problems = problems_from(event["failed"])
        elif "warning" in event:
            self.warnings.append(event["warning"])
            self.on_event(event)
        else:
            self.on_event(event)

    def _plain_inputs(self) -> dict[str, Any]:
        """Return the values of the rule's inputs, sources laid out privately, as plain data."""
        plain: dict[str, Any] = {}
        for edge in self.action.target.edges:
            output, tree, path = self.inputs[slot_of(edge)]
            value = {"artifact": [output.kind, str(path), tree.digest, edge.label]}
            if edge.place is None:
                plain[edge.field] = value
            elif isinstance(edge.place, int):
                plain.setdefault(edge.field, {"list": []})["list"].append(value)
            else:
                plain.setdefault(edge.field, {"table": {}})["table"][edge.place] = value
        for field, found in self.action.sources.items():
            if isinstance(found, dict):
                table = {k: self._plain_source(v, f"{field}/{k}") for k, v in found.items()}
                plain[field] = {"table": table}
            else:
                plain[field] = self._plain_source(found, field)
        for field, name in self.action.target.variables:
            given = {"variable": [name, self.runner.environment.get(name)]}
            plain.setdefault(field, {"list": []})["list"].append(given)
        return plain

    def _plain_source(self, source: Resolved, folder: str) -> dict[str, Any]:
        directory = self.place / "sources" / folder
        files = self.runner.resolver.materialise(source, str(directory))
        if source.function is not None:
            return {"function": [files[0][0], source.function, source.spec]}
        return {"source": files, "spec": str(source.spec)}

    def _linkable(self) -> dict[str, dict[str, Digest]]:
        return {
            str(path): {e.path: e.digest for e in tree.entries if e.size >= _LARGE_BYTES}
            for _, tree, path in self.inputs.values()
        }

    def _check_sources(self) -> None:
        for source in self.action.all_sources():
            if not self.runner.resolver.is_unchanged(source):
                raise ActionError(
                    f"`{source.spec}` changed while `{self.action.target.label}` was reading it",
                    code="E0703",
                    fix="run the build again; nothing was recorded of this one",
                )

    def _ingest(self) -> Tree:
        tree = self.runner.store.put_tree(self.out, adopted=self.result["adopted"])
        target = self.action.target
        missing = missing_files(_KINDS[target.kind], [e.path for e in tree.entries])
        if missing:
            raise ActionError(
                f"`{target.label}` ran, but its output has no {' and no '.join(missing)}",
                code="E0707",
                fix=f"a {target.kind} has these files; `ftbuild log {target.label}` shows the run",
            )
        return tree

    def _keep_log(self, path: Path) -> Digest | None:
        """Keep the log beside the record, if there is anything in it."""
        if path.stat().st_size == 0:
            return None
        return self.runner.store.put_file(path)

    def _keep_sources(self) -> list[Digest]:
        """Keep copies of small local sources: `why` shows the rows that changed since."""
        kept = []
        for source in self.action.all_sources():
            for _, _, where, _ in source.files:
                if where is not None and os.stat(where).st_size <= MAX_BYTES:
                    kept.append(self.runner.store.put_file(Path(where)))
        return kept

    def _failure(self, end: Exit, log: Path) -> Failed:
        label = self.action.target.label
        kept = self.runner.logs / f"{label.strip('/').replace('/', '_').replace(':', '_')}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
        problems = self.problems or (_died(label, end),)
        with open(log, encoding="utf-8", errors="replace") as file:
            tail = file.read().splitlines()[-_TAIL_LINES:]
        return Failed(problems, tail)


def slot_of(edge: Edge) -> tuple[str, str | None]:
    """Return by what an action finds an input: the target that made it, and which part of it."""
    return edge.label, edge.part


def _devices(gpus: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that show an action its own GPUs, and no other's."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def _died(label: str, end: Exit) -> Problem:
    peak = f"its peak memory was {end.max_rss_bytes / 1e6:,.0f} MB"
    if end.status >= 0:
        return Problem("E0701", f"`{label}` failed with exit status {end.status}")
    name = signal.Signals(-end.status).name
    if end.status == -signal.SIGKILL:
        return Problem(
            "E0704",
            f"`{label}` was killed by {name}",
            why=f"likely by the system for want of memory; {peak}",
            fix='lower its batch_size or max_length, or declare resources = { memory = "…" } so '
            "that less runs beside it",
        )
    return Problem("E0704", f"`{label}` was ended by {name}", why=peak)
