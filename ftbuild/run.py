"""One action, from its document to a record in the store; called in a slot's thread."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbuild import __version__, toolchain
from ftbuild.action import Action
from ftbuild.brief import Ready, plain_inputs, rule_files, trust_of_workers
from ftbuild.curves import Curves
from ftbuild.desk import Desk
from ftbuild.digest import Digest, canonical_json
from ftbuild.errors import ActionError, Problem, problems_from
from ftbuild.failures import Failed, died, failed
from ftbuild.graph import RuleFacts, pins_of
from ftbuild.history import log_of_failure
from ftbuild.kinds import KINDS_BY_NAME, missing_files
from ftbuild.lockfile import Lock, check_environment
from ftbuild.redaction import Redactor, of_environment
from ftbuild.registry import load_rule
from ftbuild.rows import MAX_BYTES
from ftbuild.sandbox import NETWORK_TAG, Sandbox, View
from ftbuild.sources.resolver import Resolver
from ftbuild.store.actions import Record
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree
from ftbuild.toolchain import Toolchains
from ftbuild.workers import Exit, Workers

if TYPE_CHECKING:
    from ftbuild.rule import Rule

_HOST = socket.gethostname()
_PYTHON = ".".join(map(str, sys.version_info[:3]))
_IN_SANDBOX = "it ran in a sandbox, which shows it its declared inputs alone, and no network"
_LARGE_BYTES = 64 << 10
"""Smaller input files are copied rather than linked into an output; see Context.link."""


@dataclass(frozen=True)
class Shell:
    """The environment of every action: what a program needs to run at all, and no more."""

    path: str

    def variables(self, work: str) -> dict[str, str]:
        """Return the variables for an action that works in `work`."""
        return {"PATH": self.path, "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Done:
    """What a finished action leaves to be known."""

    record: Record
    fragments: tuple[int, int] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Runner:
    """Runs actions, for one build."""

    root: Path
    store: Store
    resolver: Resolver
    lock: Lock
    workers: Workers
    toolchains: Toolchains
    shell: Shell
    environment: Mapping[str, str]
    logs: Path
    statcache: Path
    """The file of the stat cache, which workers read too."""
    has_logs: bool
    """Whether earlier builds left logs of failures."""
    sandbox: Sandbox | None = None
    """Around each action, which then sees its declared inputs alone."""
    trackers: tuple[str, ...] = ()
    """From [run]; what they log lies in the folder `trackers` beside the logs."""
    desks: threading.local = field(default_factory=threading.local)
    """A desk for each thread."""
    _rules: dict[str, "Rule"] = field(default_factory=dict)

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
        python = None
        if action.facts.toolchain:
            python = toolchain.python_of(self.toolchains.folder(action.facts, self.lock))
        else:
            check_environment(pins_of(action.target, action.facts), self.lock, action.target.label)
        if not hasattr(self.desks, "desk"):
            self.desks.desk = Desk(self.store.workspace())
        desk: Desk = self.desks.desk
        out = self.store.workspace()
        try:
            return _Run(self, action, inputs, desk, out, cpus, gpus, on_event, python).go()
        finally:
            self.store.forget(out)
            desk.clear()

    def rule(self, facts: RuleFacts) -> "Rule":
        """Return a rule that this process itself calls, loaded once."""
        if facts.name not in self._rules:
            self._rules[facts.name] = load_rule(self.root, facts)
        return self._rules[facts.name]


class _Run:
    def __init__(
        self,
        runner: Runner,
        action: Action,
        inputs: Ready,
        desk: Desk,
        out: Path,
        cpus: int,
        gpus: tuple[str, ...],
        on_event: Callable[[dict[str, Any]], None],
        python: Path | None,
    ) -> None:
        self.python = python
        self.runner, self.action, self.inputs = runner, action, inputs
        self.desk, self.out = desk, out
        self.cpus, self.gpus, self.on_event = cpus, gpus, on_event
        self.result: dict[str, Any] = {"adopted": {}, "facts": {}, "fragments": None}
        self.problems: tuple[Problem, ...] = ()
        self.warnings: list[str] = []
        self.curves = Curves()
        self.published: list[Digest] = []
        """Keys of the fragments that the worker recorded, where they are to be signed."""

    def go(self) -> Done:
        began = time.monotonic()
        log = os.open(self.desk.log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            runs = self._process if self.action.facts.runs == "process" else self._worker
            end = runs(log)
        finally:
            is_silent = os.fstat(log).st_size == 0
            os.close(log)
            if not is_silent:
                self.secrets.file(self.desk.log)
            self._sign_fragments()
        if end.status != 0 or self.problems:
            problems = self.problems or (died(self.action.target.label, end),)
            raise self._failure(problems)
        self._check_sources()
        tree = self._ingest()
        log_digest = None if is_silent else self.runner.store.put_file(Path(self.desk.log))
        snapshots = self._keep_sources()
        facts = self.result["facts"]
        provenance = {
            "seconds": round(time.monotonic() - began, 3),
            "finished_at": int(time.time()),
            "host": _HOST,
            "ftbuild": __version__,
            "python": _PYTHON,
            "label": self.action.target.label,
            "max_rss_bytes": end.max_rss_bytes,
            "is_reproducible": self.action.facts.is_reproducible,
            "facts": self.secrets.value(facts) if facts else {},
            "curves": self.curves.to_plain(),
            "warnings": self.warnings,
            "log": log_digest,
            "sources": snapshots,
        }
        store = self.runner.store
        record = store.trust.sign(
            Record(self.action.key, tree, None, self.action.document, provenance)
        )
        store.publish(record)
        if self.runner.has_logs:
            log_of_failure(self.runner.logs, self.action.target.label).unlink(missing_ok=True)
        if self.action.facts.runs == "worker":
            self.runner.store.drop_scratch(self.action.key)
        fragments = self.result["fragments"]
        return Done(record, tuple(fragments) if fragments else None, tuple(self.warnings))

    @cached_property
    def secrets(self) -> Redactor:
        """What takes secrets out of all that the action says."""
        return of_environment(name for _, name in self.action.target.variables)

    def _sign_fragments(self) -> None:
        """Sign what the worker has published: it has no key, since it runs code of others."""
        store = self.runner.store
        for key in self.published:
            record = store.look_up(key)
            if record is not None and record.signature is None:
                store.publish(store.trust.sign(record))

    def _process(self, log: int) -> Exit:
        from ftbuild.worker import rule_inputs  # pydantic: only when a command runs here

        rule = self.runner.rule(self.action.facts)
        params = rule.params.model_validate_json(canonical_json(self.action.document["params"]))
        given = rule.inputs.model_validate(rule_inputs(self._plain_inputs(), rule))
        command = rule.function(None, given, params)
        environment = {
            **self.runner.shell.variables(self.desk.work),
            **_devices(self.gpus),
            **command.environment,
            "out": str(self.out),
        }
        view = self._view()
        workers = self.runner.workers
        return workers.run_script(command.script, environment, self.desk.work, log, view)

    def _worker(self, log: int) -> Exit:
        runner, action = self.runner, self.action
        document = {
            "rule": asdict(action.facts),
            "root": str(runner.root),
            "params": action.document["params"],
            "inputs": self._plain_inputs(),
            "document": action.document,
            "out": str(self.out),
            "work": self.desk.work,
            "scratch": str(runner.store.scratch(action.key)),
            "cpus": self.cpus,
            "environment": {
                **self._shell().variables(self.desk.work),
                **_devices(self.gpus),
                **self._tracking(),
            },
            "store": str(runner.store.root),
            "statcache": str(runner.statcache),
            "known": self._linkable(),
            "trust": trust_of_workers(runner.store.trust),
        }
        view = self._view()
        if view is not None and view.sandbox.bwrap is None:
            document["guard"] = {"paths": view.paths(), "has_network": view.has_network}
        with open(self.desk.document, "w", encoding="utf-8") as file:
            json.dump(document, file)
        if view is not None or self.python is not None:
            return runner.workers.run_alone(self.desk.document, view, log, self._hear, self.python)
        return runner.workers.run_worker(self.desk.document, action.facts.preload, log, self._hear)

    def _shell(self) -> Shell:
        """Return the shell in which programs of the rule's own environment come first."""
        if self.python is None:
            return self.runner.shell
        return Shell(os.pathsep.join([str(self.python.parent), self.runner.shell.path]))

    def _tracking(self) -> dict[str, str]:
        """Return the variables of trackers; theirs alone pass from the user's environment."""
        runner = self.runner
        if not runner.trackers:
            return {}
        own = tuple(f"{name.upper()}_" for name in runner.trackers)
        return {
            "FTBUILD_TRACKERS": " ".join(runner.trackers),
            "FTBUILD_TRACKER_FOLDER": str(runner.logs.parent / "trackers"),
            "FTBUILD_TRACKER_RUN": self.action.target.label.strip("/").replace("/", "-"),
            **{name: value for name, value in runner.environment.items() if name.startswith(own)},
        }

    def _hear(self, event: dict[str, Any]) -> None:
        if "done" in event:
            self.result = event["done"]
        elif "failed" in event:
            self.problems = problems_from(self.secrets.value(event["failed"]))
        elif "verified" in event:
            self.runner.store.learn(event["verified"])
        elif "published" in event:
            self.published.append(event["published"])
        elif "warning" in event:
            told = self.secrets.text(event["warning"])
            self.warnings.append(told)
            self.on_event({"warning": told})
        else:
            if "progress" in event:
                self.curves.note(event["progress"]["step"], event["progress"]["metrics"])
            self.on_event(event)

    def _view(self) -> View | None:
        """Return what the action may see, if it runs in a sandbox."""
        runner, action = self.runner, self.action
        if runner.sandbox is None:
            return None
        blob = runner.resolver.store.blob_path
        reads = [str(path) for _, _, path in self.inputs.values()]
        for source in action.all_sources():
            reads += [where or str(blob(digest)) for _, digest, where, _ in source.files]
        if os.path.isdir(self.desk.sources):
            reads.append(self.desk.sources)
        writes = [str(self.out), self.desk.work]
        if action.facts.runs == "worker":
            reads += [self.desk.document, *rule_files(runner.root, action.facts)]
            if self.python is not None:
                reads.append(str(self.python.parents[1]))
            # Fragments are found in the store and put there, so such a rule sees all of it.
            writes += [str(runner.store.root), str(runner.store.scratch(action.key))]
        return View(
            runner.sandbox,
            tuple(os.path.abspath(path) for path in reads),
            tuple(writes),
            self.desk.work,
            has_network=NETWORK_TAG in action.target.tags,
            has_gpus=bool(self.gpus),
        )

    def _plain_inputs(self) -> dict[str, Any]:
        runner = self.runner
        return plain_inputs(
            self.action, self.inputs, runner.resolver, runner.environment, self.desk.sources
        )

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
        missing = missing_files(KINDS_BY_NAME[target.kind], [e.path for e in tree.entries])
        if missing:
            raise ActionError(
                f"`{target.label}` ran, but its output has no {' and no '.join(missing)}",
                code="E0707",
                fix=f"a {target.kind} has these files; `ftbuild log {target.label}` shows the run",
            )
        return tree

    def _keep_sources(self) -> list[Digest]:
        """Keep copies of small local sources: `why` shows the rows that changed since."""
        kept = []
        for source in self.action.all_sources():
            for _, _, where, _ in source.files:
                if where is not None and os.stat(where).st_size <= MAX_BYTES:
                    kept.append(self.runner.store.put_file(Path(where)))
        return kept

    def _failure(self, problems: tuple[Problem, ...]) -> Failed:
        runner = self.runner
        kept = log_of_failure(runner.logs, self.action.target.label)
        if runner.sandbox is not None:
            problems = tuple(replace(p, why=p.why or _IN_SANDBOX) for p in problems)
        return failed(problems, self.desk.log, kept, str(runner.store.root))


def _devices(gpus: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that show an action its own GPUs, and no other's."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
