"""Plan -> artifacts: a topological scheduler with slots, early cutoff and keep-going.

Early cutoff is in no line of this file: as soon as all inputs of a target are done its key is
computed from their digests, and a key that the store knows is done as well. In the words of
"Build Systems à la Carte" (Mokhov et al. 2018): topological scheduler, constructive traces.

The main thread decides, one thread a slot runs an action; they talk through one queue.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ftbuild import events
from ftbuild.acting import Input, Job, LostInput, Message, Threads, recorded_tree
from ftbuild.action import Action, Describer, Output
from ftbuild.digest import Digest
from ftbuild.errors import FtbuildError, InterruptedBuild
from ftbuild.failures import Failed
from ftbuild.fetching import Fetcher
from ftbuild.frontier import Frontier, Node
from ftbuild.graph import Graph
from ftbuild.history import Built, History
from ftbuild.plan import Planner, known_output
from ftbuild.run import Done, Runner
from ftbuild.slots import Slots, StartQueue
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree
from ftbuild.tally import Tally

if TYPE_CHECKING:
    from ftbuild.remote.service import Supply

_MAX_RUNS = 2
"""How often one build may run one action: again if an object of its output went missing."""
_NOT_STARTED = "not started, since another target failed"

_FLUSH_S = 1.0
"""While nothing happens, what is finished becomes durable after at most this time."""


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
    _tally: Tally = field(default_factory=Tally, init=False)
    _signals: list[int] = field(default_factory=list, init=False)
    _queue: SimpleQueue[Message] = field(default_factory=SimpleQueue, init=False)

    def interrupt(self, number: int) -> None:
        """End the build because of a signal; called by its handler, in the main thread.

        Nothing is raised there: it could be in the midst of anything. The loop raises.
        """
        self._signals.append(number)
        self._queue.put(Message(""))

    @property
    def exit_code(self) -> int:
        """Of the worst failure; 0 while there is none."""
        return self._tally.exit_code

    def raise_if_interrupted(self) -> None:
        """Raise InterruptedBuild if a signal came."""
        if self._signals:
            raise InterruptedBuild(self._signals[0])

    def run(self, wanted: Sequence[str]) -> events.Summary:
        """Build `wanted` and all they need; say how it went by events, the summary last.

        Raises:
            InterruptedBuild: a signal came; what is finished is kept.
        """
        self._tally = Tally()
        self._wanted = set(wanted)
        self._frontier = Frontier(self.graph.closure(self._wanted))
        self._startable = StartQueue()
        self._running: set[str] = set()
        self._num_aside = 0
        self._threads = Threads(self.store, self.runner, self.supply, self._queue)
        try:
            self._loop()
        except BaseException:
            self.runner.workers.stop()
            raise
        finally:
            self._threads.end()
        return self._tally.summary(0 if self.supply is None else self.supply.got_bytes)

    def _loop(self) -> None:
        while True:
            while self._frontier.ready and not self._signals:
                self._decide(self._frontier.ready.popleft())
            self.raise_if_interrupted()
            self._start_what_fits()
            if not self._running and not self._num_aside:
                if not self._frontier.ready:
                    return
                continue
            try:
                self._hear(self._queue.get(timeout=_FLUSH_S))
            except Empty:
                self.store.flush_if_due()

    def _decide(self, label: str) -> None:
        """Take a target whose inputs are all done: it is fresh, or its action may start."""
        node = self._frontier.nodes[label]
        outputs = {e.label: self._frontier.output_of(e.label) for e in node.target.edges}
        try:
            action = self.describer.action(node.target, outputs)
        except FtbuildError as error:
            return self._fail(label, error, 0.0, ())
        if not node.must_run and label not in self.force:
            output = known_output(action, self.describer, self.store, self.history)
            if output is not None:
                return self._is_fresh(node, action, output)
            if objection := self.store.distrusted.get(action.key):
                told = f"the record in the store is not trusted: {objection}; it is built anew"
                self.on_event(events.Warned(label, told))
            if self.supply is not None:
                self._aside(label, lambda: self._look_up(node, action))
                return
        self._build(action)

    def _build(self, action: Action) -> None:
        label = action.target.label
        if self._tally.has_failed and not self.keep_going:
            self._skip(label, _NOT_STARTED)
            return
        expected = self.history.built.get(label)
        self._startable.add(action, expected.seconds if expected else 0.0)

    def _aside(self, label: str, work: Callable[[], Callable[[], None]]) -> None:
        """Do `work` beside the slots, and in the main thread what it returns."""
        assert self.supply is not None
        self._num_aside += 1

        def go() -> None:
            try:
                then = work()
            except BaseException as error:
                then = partial(self._went_wrong_aside, label, error)
            self._queue.put(Message(label, then=then))

        self.supply.do(go)

    def _went_wrong_aside(self, label: str, error: BaseException) -> None:
        if not isinstance(error, FtbuildError):
            raise error
        self._fail(label, error, 0.0, ())

    def _look_up(self, node: Node, action: Action) -> Callable[[], None]:
        """Ask for a record elsewhere; in a thread of its own, as all that waits for others."""
        assert self.supply is not None
        record = Fetcher(self.store, self.supply).look_up(action)
        if record is None:
            return partial(self._build, action)
        return partial(self._is_elsewhere, node, action, record)

    def _is_elsewhere(self, node: Node, action: Action, record: Record) -> None:
        node.tree = record.tree
        self._is_fresh(node, action, self.describer.output(action.target, action.key, record.tree))

    def _fetch(self, node: Node, output: Output) -> Callable[[], None]:
        """Bring a wanted artifact here; in a thread of its own."""
        assert self.supply is not None
        began = time.monotonic()
        try:
            record = Fetcher(self.store, self.supply).bring(output).record
        except MissingBlob:
            return partial(self._run_again, node.target.label)
        return partial(self._fetched, node, output, record, time.monotonic() - began)

    def _fetched(self, node: Node, output: Output, record: Record, seconds: float) -> None:
        label, cost_s = node.target.label, float(record.provenance.get("seconds", 0.0))
        node.tree = record.tree
        self._tally.count("fetched", cost_s)
        self.history.note(label, Built(output.key, output.tree, output.parts, cost_s))
        event = events.Finished(
            label, "fetched", key=output.key, digest=output.tree, seconds=seconds
        )
        self._finish(node, output, event)

    def _is_fresh(self, node: Node, action: Action, output: Output) -> None:
        label = node.target.label
        below = (self._frontier.nodes[e.label] for e in node.target.edges)
        node.is_cut_off = any(n.runs or n.is_cut_off for n in below)
        seconds = self._cost_s(label, action.key)
        self.history.note(label, Built(action.key, output.tree, output.parts, seconds))
        if not self._is_ready_to_use(node, output):
            return
        self._tally.count("fresh", seconds)
        self._tally.cut_off += node.is_cut_off
        event = events.Finished(
            label, "fresh", key=action.key, digest=output.tree, cut_off=node.is_cut_off
        )
        self._finish(node, output, event)

    def _cost_s(self, label: str, key: Digest) -> float:
        """Return how long the action took when it ran, wherever that was."""
        built = self.history.built.get(label)
        if built is not None and built.key == key:
            return built.seconds
        record = self.store.find(key) or self.store.known(key)
        return 0.0 if record is None else float(record.provenance.get("seconds", 0.0))

    def _is_ready_to_use(self, node: Node, output: Output) -> bool:
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
        trees = {label: node.tree for label, node in self._frontier.nodes.items() if node.tree}
        return {label: tree for label, tree in trees.items() if self.store.is_intact(tree)}

    def _tree_of(self, node: Node, output: Output) -> Tree:
        if node.tree is None or node.tree.digest != output.tree:
            node.tree = recorded_tree(self.store, output.key, output.tree)
        return node.tree

    def _start_what_fits(self) -> None:
        if self._tally.has_failed and not self.keep_going:
            for action in self._startable.drained():
                self._skip(action.target.label, _NOT_STARTED)
        for action, share, gpus in self._startable.taken(self.slots):
            self._start(action, share.cpus, gpus)

    def _start(self, action: Action, cpus: int, gpus: tuple[str, ...]) -> None:
        label = action.target.label
        self._running.add(label)
        self._frontier.nodes[label].runs += 1
        detail = "forced" if label in self.force else self.planner.reasons(action)[0].detail
        self.on_event(events.Started(label, action.target.rule, detail))
        job = Job(
            action,
            {e.label: self._input(e.label) for e in action.target.edges},
            cpus,
            gpus,
            self._frontier.nodes[label].must_run or label in self.force,
        )
        self._threads.start(job, len(self._running))

    def _input(self, label: str) -> Input:
        output, tree = self._frontier.output_of(label), self._frontier.nodes[label].tree
        return Input(output, tree if tree is not None and tree.digest == output.tree else None)

    def _hear(self, message: Message) -> None:
        label = message.label
        if message.then is not None:
            self._num_aside -= 1
            message.then()
        elif message.event is not None:
            self._tell(label, message.event)
        elif message.has_ended:
            self._end(message)

    def _end(self, message: Message) -> None:
        label = message.label
        self._running.discard(label)
        self.slots.give_back(label)
        if isinstance(message.error, LostInput):
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
        node = self._frontier.nodes[label]
        record = done.record
        node.tree, node.must_run = record.tree, False
        output = self.describer.output(node.target, record.key, record.tree)
        cost = float(record.provenance.get("seconds", seconds))
        self.history.note(label, Built(record.key, output.tree, output.parts, cost))
        outcome: events.Outcome = "fresh" if was_shared else "built"
        self._tally.count(outcome, cost if was_shared else 0.0)
        if was_shared:
            node.runs -= 1
        elif self.supply is not None:
            self.supply.offer(record, label)
        event = events.Finished(
            label,
            outcome,
            key=record.key,
            digest=output.tree,
            seconds=seconds,
            fragments=done.fragments,
        )
        self._finish(node, output, event)

    def _finish(self, node: Node, output: Output, event: events.Finished) -> None:
        self.on_event(event)
        self._frontier.finish(node, output)

    def _rebuild_input(self, label: str, lost: str) -> None:
        """Have an input made again whose bytes are gone, then try `label` again."""
        node = self._frontier.nodes[label]
        node.runs -= 1
        node.waits_for.add(lost)
        self._run_again(lost)

    def _run_again(self, label: str) -> None:
        node = self._frontier.nodes[label]
        if node.must_run:  # another of its readers found out before
            return
        if node.runs >= _MAX_RUNS:
            self._fail(label, _keeps_vanishing(label), 0.0, ())
            return
        self._frontier.again(node)

    def _fail(
        self, label: str, error: FtbuildError, seconds: float, log_tail: Sequence[str]
    ) -> None:
        self._tally.count("failed")
        self._tally.exit_code = max(self._tally.exit_code, error.exit_code)
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
        self._skip_readers(label, "failed")

    def _skip(self, label: str, why: str) -> None:
        self._say_skipped(label, why)
        self._skip_readers(label, "was skipped")

    def _skip_readers(self, label: str, what: str) -> None:
        for reader, needed in self._frontier.give_up(label):
            happened = what if needed == label else "was skipped"
            self._say_skipped(reader, f"needs `{needed}`, which {happened}")

    def _say_skipped(self, label: str, why: str) -> None:
        self._tally.count("skipped")
        self.on_event(events.Finished(label, "skipped", error=why))

    def outputs(self) -> dict[str, Output]:
        """Return the outputs of all targets that are done."""
        return self._frontier.outputs()


def _keeps_vanishing(label: str) -> FtbuildError:
    return FtbuildError(
        f"the output of `{label}` vanishes from the store as soon as it is made",
        code="E0603",
        fix="is another program cleaning the store? `ftbuild doctor` shows where it lies",
    )
