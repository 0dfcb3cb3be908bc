"""Plan -> artifacts: a topological scheduler with slots, early cutoff and keep-going.

Early cutoff is in no line of this file: as soon as all inputs of a target are done its key is
computed from their digests, and a key that the store knows is done as well. In the words of
"Build Systems à la Carte" (Mokhov et al. 2018): topological scheduler, constructive traces.

The main thread decides, one thread a slot runs an action; they talk through one queue.
"""

import itertools
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ftbuild import events
from ftbuild.action import Action, Describer, Output
from ftbuild.digest import Digest
from ftbuild.errors import FtbuildError, InterruptedBuild
from ftbuild.fetching import Fetcher
from ftbuild.graph import Graph, Target
from ftbuild.history import Built, History
from ftbuild.plan import Planner, known_output
from ftbuild.run import Done, Failed, Runner, slot_of
from ftbuild.slots import Slots
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree

if TYPE_CHECKING:
    from ftbuild.remote.service import Supply

_MAX_RUNS = 2
"""How often one build may run one action: again if an object of its output went missing."""
_NOT_STARTED = "not started, since another target failed"

_PATIENCE_S = 5.0
_LEASE_S = 0.1
_FLUSH_S = 1.0
"""While nothing happens, what is finished becomes durable after at most this time."""


@dataclass
class _Node:
    """How far one target is."""

    target: Target
    waits_for: set[str]
    readers: list[str] = field(default_factory=list)
    output: Output | None = None
    tree: Tree | None = None
    runs: int = 0
    must_run: bool = False
    is_over: bool = False
    is_cut_off: bool = False


@dataclass(frozen=True)
class _Message:
    """What a slot's thread has to say: an event, or how its action ended."""

    label: str
    event: dict[str, Any] | None = None
    done: Done | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    was_shared: bool = False
    then: Callable[[], None] | None = None
    """What the main thread is to do now that work beside the slots is over."""

    @property
    def has_ended(self) -> bool:
        """Say whether an action ended; a message may also just wake the main thread."""
        return self.done is not None or self.error is not None


@dataclass
class Executor:
    """Brings targets up to date, once."""

    graph: Graph
    describer: Describer
    store: Store
    history: History
    planner: Planner
    runner: Runner
    slots: Slots
    on_event: events.OnEvent
    keep_going: bool = False
    force: frozenset[str] = frozenset()
    supply: "Supply | None" = None
    """Where results may be besides the store."""
    exit_code: int = field(default=0, init=False)
    """Of the worst failure; 0 while there is none."""
    _signals: list[int] = field(default_factory=list, init=False)
    _is_stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _queue: SimpleQueue[_Message] = field(default_factory=SimpleQueue, init=False)

    def interrupt(self, number: int) -> None:
        """End the build because of a signal; called by its handler, in the main thread.

        Nothing is raised there: it could be in the midst of anything. The loop raises.
        """
        self._signals.append(number)
        self._queue.put(_Message(""))

    def raise_if_interrupted(self) -> None:
        """Raise InterruptedBuild if a signal came."""
        if self._signals:
            raise InterruptedBuild(self._signals[0])

    def run(self, wanted: Sequence[str]) -> events.Summary:
        """Build `wanted` and all they need; say how it went by events, the summary last.

        Raises:
            InterruptedBuild: a signal came; what is finished is kept.
        """
        self._began = time.monotonic()
        self._wanted = set(wanted)
        self._nodes: dict[str, _Node] = {}
        self._ready: deque[str] = deque()
        self._startable: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        self._running: set[str] = set()
        self._num_aside = 0
        self._counts = dict.fromkeys(("built", "fresh", "fetched", "failed", "skipped"), 0)
        self._cut_off = 0
        self._saved_s = 0.0
        self._has_failed = False
        self._idle: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._enter(self.graph.closure(self._wanted))
        try:
            self._loop()
        except BaseException:
            self.runner.workers.stop()
            raise
        finally:
            self._end_threads()
        return self._summary()

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._idle.put(None)
        self._is_stopping.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _enter(self, targets: Iterable[Target]) -> None:
        for target in targets:
            needs = {edge.label for edge in target.edges}
            self._nodes[target.label] = _Node(target, set(needs))
            for label in needs:
                self._nodes[label].readers.append(target.label)
            if not needs:
                self._ready.append(target.label)

    def _loop(self) -> None:
        while True:
            while self._ready and not self._signals:
                self._decide(self._ready.popleft())
            self.raise_if_interrupted()
            self._start_what_fits()
            if not self._running and not self._num_aside:
                if not self._ready:
                    return
                continue
            try:
                self._hear(self._queue.get(timeout=_FLUSH_S))
            except Empty:
                self.store.flush_if_due()

    def _decide(self, label: str) -> None:
        """Take a target whose inputs are all done: it is fresh, or its action may start."""
        node = self._nodes[label]
        outputs = {e.label: self._output_of(e.label) for e in node.target.edges}
        try:
            action = self.describer.action(node.target, outputs)
        except FtbuildError as error:
            self._fail(label, error, 0.0, ())
            return
        if not node.must_run and label not in self.force:
            output = known_output(action, self.describer, self.store, self.history)
            if output is not None:
                self._is_fresh(node, action, output)
                return
            if objection := self.store.distrusted.get(action.key):
                told = f"the record in the store is not trusted: {objection}; it is built anew"
                self.on_event(events.Warned(label, told))
            if self.supply is not None:
                self._aside(label, lambda: self._look_up(node, action))
                return
        self._build(action)

    def _build(self, action: Action) -> None:
        label = action.target.label
        if self._has_failed and not self.keep_going:
            self._skip(label, _NOT_STARTED)
            return
        self._may_start(action)

    def _aside(self, label: str, work: Callable[[], Callable[[], None]]) -> None:
        """Do `work` beside the slots, and in the main thread what it returns."""
        assert self.supply is not None
        self._num_aside += 1

        def go() -> None:
            try:
                then = work()
            except BaseException as error:
                then = partial(self._went_wrong_aside, label, error)
            self._queue.put(_Message(label, then=then))

        self.supply.do(go)

    def _went_wrong_aside(self, label: str, error: BaseException) -> None:
        if not isinstance(error, FtbuildError):
            raise error
        self._fail(label, error, 0.0, ())

    def _look_up(self, node: _Node, action: Action) -> Callable[[], None]:
        """Ask for a record elsewhere; in a thread of its own, as all that waits for others."""
        assert self.supply is not None
        record = Fetcher(self.store, self.supply).look_up(action)
        if record is None:
            return partial(self._build, action)
        return partial(self._is_elsewhere, node, action, record)

    def _is_elsewhere(self, node: _Node, action: Action, record: Record) -> None:
        node.tree = record.tree
        self._is_fresh(node, action, self.describer.output(action.target, action.key, record.tree))

    def _fetch(self, node: _Node, output: Output) -> Callable[[], None]:
        """Bring a wanted artifact here; in a thread of its own."""
        assert self.supply is not None
        began = time.monotonic()
        try:
            record = Fetcher(self.store, self.supply).bring(output).record
        except MissingBlob:
            return partial(self._run_again, node.target.label)
        return partial(self._fetched, node, output, record, time.monotonic() - began)

    def _fetched(self, node: _Node, output: Output, record: Record, seconds: float) -> None:
        label, cost_s = node.target.label, float(record.provenance.get("seconds", 0.0))
        node.tree = record.tree
        self._counts["fetched"] += 1
        self._saved_s += cost_s
        self.history.note(label, Built(output.key, output.tree, output.parts, cost_s))
        event = events.Finished(
            label, "fetched", key=output.key, digest=output.tree, seconds=seconds
        )
        self._finish(node, output, event)

    def _output_of(self, label: str) -> Output:
        output = self._nodes[label].output
        assert output is not None
        return output

    def _is_fresh(self, node: _Node, action: Action, output: Output) -> None:
        label = node.target.label
        below = [self._nodes[e.label] for e in node.target.edges]
        node.is_cut_off = any(n.runs or n.is_cut_off for n in below)
        seconds = self._cost_s(label, action.key)
        self.history.note(label, Built(action.key, output.tree, output.parts, seconds))
        if not self._is_ready_to_use(node, output):
            return
        self._counts["fresh"] += 1
        self._cut_off += node.is_cut_off
        self._saved_s += seconds
        self._finish(
            node,
            output,
            events.Finished(
                label, "fresh", key=action.key, digest=output.tree, cut_off=node.is_cut_off
            ),
        )

    def _cost_s(self, label: str, key: Digest) -> float:
        """Return how long the action took when it ran, wherever that was."""
        built = self.history.built.get(label)
        if built is not None and built.key == key:
            return built.seconds
        record = self.store.find(key) or self.store.known(key)
        return 0.0 if record is None else float(record.provenance.get("seconds", 0.0))

    def _is_ready_to_use(self, node: _Node, output: Output) -> bool:
        """Hold that what the user asked for lies there whole; else have it made again.

        What lies below is mended from its blobs where it was tampered with; where that cannot be
        it is taken away, since it may never be needed.
        """
        is_wanted = node.target.label in self._wanted
        try:
            tree = self._tree_of(node, output)
            if not self.store.is_intact(tree) and (
                is_wanted or self.store.tree_path(tree.digest).exists()
            ):
                self.store.lay_out(tree)
        except MissingBlob:
            node.tree = None
            if is_wanted and self.supply is not None:
                self._aside(node.target.label, lambda: self._fetch(node, output))
                return False
            if is_wanted:
                self._run_again(node.target.label)
                return False
            self.store.take_away(output.tree)
        return True

    def trees(self) -> dict[str, Tree]:
        """Return the artifacts of this build that lie ready, by label."""
        trees = {label: node.tree for label, node in self._nodes.items() if node.tree}
        return {label: tree for label, tree in trees.items() if self.store.is_intact(tree)}

    def _tree_of(self, node: _Node, output: Output) -> Tree:
        if node.tree is None or node.tree.digest != output.tree:
            record = self.store.find(output.key) or self.store.known(output.key)
            if record is None or record.tree.digest != output.tree:
                raise MissingBlob(output.tree, node.target.label)
            node.tree = record.tree
        return node.tree

    def _start_what_fits(self) -> None:
        passed_over = []
        while self._startable and not self.slots.are_full:
            waiting = heappop(self._startable)
            action = waiting[-1]
            if self._has_failed and not self.keep_going:
                self._skip(action.target.label, _NOT_STARTED)
                continue
            share = self.slots.share(action.target, action.facts)
            gpus = self.slots.take(action.target.label, share)
            if gpus is None:
                passed_over.append(waiting)
            else:
                self._start(action, share.cpus, gpus)
        for waiting in passed_over:
            heappush(self._startable, waiting)

    def _may_start(self, action: Action) -> None:
        # Longest first: what the rest waits for should not be the last to begin.
        expected_s = self._expected_s(action.target.label)
        heappush(self._startable, (-expected_s, next(self._numbers), action))

    def _expected_s(self, label: str) -> float:
        built = self.history.built.get(label)
        return built.seconds if built else 0.0

    def _start(self, action: Action, cpus: int, gpus: tuple[str, ...]) -> None:
        label = action.target.label
        self._running.add(label)
        self._nodes[label].runs += 1
        detail = "forced" if label in self.force else self.planner.reasons(action)[0].detail
        self.on_event(events.Started(label, action.target.rule, detail))
        if len(self._running) > len(self._threads):
            self._threads.append(threading.Thread(target=self._serve, daemon=True))
            self._threads[-1].start()
        self._idle.put(lambda: self._act(action, cpus, gpus))

    def _serve(self) -> None:
        while (work := self._idle.get()) is not None:
            work()

    def _act(self, action: Action, cpus: int, gpus: tuple[str, ...]) -> None:
        """Run an action in this thread; whatever happens is told to the main thread."""
        label = action.target.label
        began = time.monotonic()

        def hear(event: dict[str, Any]) -> None:
            self._queue.put(_Message(label, event=event))

        try:
            inputs = self._lay_out_inputs(action)
            with self._lease(action):
                record = None
                if not self._nodes[label].must_run and label not in self.force:
                    record = self.store.find(action.key)
                if record is not None:
                    # Somebody else built it while this build waited for the lease.
                    done, was_shared = Done(record, None, ()), True
                else:
                    done = self.runner.run(action, inputs, cpus=cpus, gpus=gpus, on_event=hear)
                    was_shared = False
            message = _Message(
                label, done=done, seconds=time.monotonic() - began, was_shared=was_shared
            )
        except BaseException as error:
            message = _Message(label, error=error, seconds=time.monotonic() - began)
        self._queue.put(message)

    @contextmanager
    def _lease(self, action: Action) -> Iterator[None]:
        """Hold an action against other builds; says so while it waits, and stops with the build."""
        held = self.store.try_lease(action.key)
        if held is None:
            self._queue.put(_Message(action.target.label, event={"waiting": True}))
        while held is None:
            if self._is_stopping.wait(_LEASE_S):
                raise InterruptedBuild(signal.SIGTERM)
            held = self.store.try_lease(action.key)
        try:
            yield
        finally:
            self.store.release_lease(action.key, held)

    def _lay_out_inputs(
        self, action: Action
    ) -> dict[tuple[str, str | None], tuple[Output, Tree, Path]]:
        ready: dict[tuple[str, str | None], tuple[Output, Tree, Path]] = {}
        for edge in action.target.edges:
            node = self._nodes[edge.label]
            output = self._output_of(edge.label)
            patterns = None if edge.part is None else action.facts.parts[edge.field]
            try:
                ready[slot_of(edge)] = (output, *self._lay_out(node, output, patterns))
            except MissingBlob as error:
                raise _LostInput(edge.label) from error
        return ready

    def _lay_out(
        self, node: _Node, output: Output, patterns: Sequence[str] | None
    ) -> tuple[Tree, Path]:
        """Return an artifact or a part of it, laid out; what is not here is fetched."""
        try:
            whole = self._tree_of(node, output)
            tree = whole if patterns is None else whole.part(patterns)
            return tree, self.store.lay_out(tree)
        except MissingBlob:
            if self.supply is None:
                raise
            brought = Fetcher(self.store, self.supply).bring(output, patterns)
            return brought.tree, brought.path

    def _hear(self, message: _Message) -> None:
        label = message.label
        if message.then is not None:
            self._num_aside -= 1
            message.then()
        elif message.event is not None:
            self._tell(label, message.event)
        elif message.has_ended:
            self._end(message)

    def _end(self, message: _Message) -> None:
        label = message.label
        self._running.discard(label)
        self.slots.give_back(label)
        if isinstance(message.error, _LostInput):
            self._rebuild_input(label, message.error.label)
        elif isinstance(message.error, FtbuildError):
            tail = message.error.log_tail if isinstance(message.error, Failed) else ()
            self._fail(label, message.error, message.seconds, tail)
        elif message.error is not None:
            raise message.error
        else:
            assert message.done is not None
            self._built(label, message.done, message.seconds, message.was_shared)

    def _tell(self, label: str, event: dict[str, Any]) -> None:
        if "progress" in event:
            self.on_event(events.Progress(label, **event["progress"]))
        elif "waiting" in event:
            self.on_event(events.Waiting(label))
        elif "warning" in event:
            self.on_event(events.Warned(label, event["warning"]))

    def _built(self, label: str, done: Done, seconds: float, was_shared: bool) -> None:
        node = self._nodes[label]
        record = done.record
        node.tree, node.must_run = record.tree, False
        output = self.describer.output(node.target, record.key, record.tree)
        cost = float(record.provenance.get("seconds", seconds))
        self.history.note(label, Built(record.key, output.tree, output.parts, cost))
        outcome: events.Outcome = "built"
        if was_shared:
            outcome = "fresh"
            node.runs -= 1
            self._saved_s += cost
        elif self.supply is not None:
            self.supply.offer(record, label)
        self._counts[outcome] += 1
        self._finish(
            node,
            output,
            events.Finished(
                label,
                outcome,
                key=record.key,
                digest=output.tree,
                seconds=seconds,
                fragments=done.fragments,
            ),
        )

    def _finish(self, node: _Node, output: Output, event: events.Finished) -> None:
        """Note what a target gave, and free those that waited for it."""
        label = node.target.label
        node.output, node.is_over = output, True
        self.on_event(event)
        for reader in node.readers:
            waiting = self._nodes[reader]
            if label in waiting.waits_for:
                waiting.waits_for.discard(label)
                if not waiting.waits_for and not waiting.is_over:
                    self._ready.append(reader)

    def _rebuild_input(self, label: str, lost: str) -> None:
        """Have an input made again whose bytes are gone, then try `label` again."""
        node = self._nodes[label]
        node.runs -= 1
        node.waits_for.add(lost)
        self._run_again(lost)

    def _run_again(self, label: str) -> None:
        node = self._nodes[label]
        if node.must_run:  # another of its readers found out before
            return
        if node.runs >= _MAX_RUNS:
            self._fail(label, _keeps_vanishing(label), 0.0, ())
            return
        node.must_run, node.is_over = True, False
        self._ready.append(label)

    def _fail(
        self, label: str, error: FtbuildError, seconds: float, log_tail: Sequence[str]
    ) -> None:
        self._has_failed = True
        self._counts["failed"] += 1
        self._nodes[label].is_over = True
        self.exit_code = max(self.exit_code, error.exit_code)
        self.on_event(
            events.Finished(
                label,
                "failed",
                seconds=seconds,
                error=error.render(),
                where=error.problems[0].where,
                log_tail=tuple(log_tail),
            )
        )
        self._skip_readers(label)

    def _skip_readers(self, label: str) -> None:
        for reader in self._nodes[label].readers:
            if not self._nodes[reader].is_over:
                self._skip(reader, f"needs `{label}`, which failed")

    def _skip(self, label: str, why: str) -> None:
        self._nodes[label].is_over = True
        self._counts["skipped"] += 1
        self.on_event(events.Finished(label, "skipped", error=why))
        for reader in self._nodes[label].readers:
            if not self._nodes[reader].is_over:
                self._skip(reader, f"needs `{label}`, which was skipped")

    def outputs(self) -> dict[str, Output]:
        """Return the outputs of all targets that are done."""
        return {label: n.output for label, n in self._nodes.items() if n.output is not None}

    def _summary(self) -> events.Summary:
        return events.Summary(
            **self._counts,
            cut_off=self._cut_off,
            seconds=time.monotonic() - self._began,
            saved_s=self._saved_s,
            fetched_bytes=0 if self.supply is None else self.supply.got_bytes,
        )


class _LostInput(Exception):
    def __init__(self, label: str) -> None:
        super().__init__(label)
        self.label = label


def _keeps_vanishing(label: str) -> FtbuildError:
    return FtbuildError(
        f"the output of `{label}` vanishes from the store as soon as it is made",
        code="E0603",
        fix="is another program cleaning the store? `ftbuild doctor` shows where it lies",
    )
