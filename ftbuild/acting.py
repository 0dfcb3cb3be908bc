"""Acting: the threads of the slots, in which actions run from their inputs to their record.

They decide nothing. What happens is told to the main thread in messages, through one queue.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ftbuild.action import Action, Output
from ftbuild.brief import Ready, slot_of
from ftbuild.digest import Digest
from ftbuild.errors import InterruptedBuild
from ftbuild.fetching import Fetcher
from ftbuild.run import Done, Runner
from ftbuild.store import disk
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree

if TYPE_CHECKING:
    from ftbuild.remote.service import Supply

_PATIENCE_S = 5.0
_LEASE_S = 0.1


@dataclass(frozen=True)
class Input:
    """What another target of this build gave."""

    output: Output
    tree: Tree | None
    """None where it is not known: the store has the digest alone, or nothing."""


@dataclass(frozen=True)
class Job:
    """An action with what it takes to run it."""

    action: Action
    inputs: Mapping[str, Input]
    """By label."""
    cpus: int
    gpus: tuple[str, ...]
    must_run: bool
    """Whether a record that there already is will not do."""


@dataclass(frozen=True)
class Message:
    """What a thread has to say: an event, how its action ended, or what is to be done now."""

    label: str
    event: dict[str, Any] | None = None
    done: Done | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    was_shared: bool = False
    """Whether another build ran the action."""
    then: Callable[[], None] | None = None
    """What the main thread is to do now that work beside the slots is over."""

    @property
    def has_ended(self) -> bool:
        """Say whether an action ended; a message may also just wake the main thread."""
        return self.done is not None or self.error is not None


class LostInput(Exception):
    """The bytes of an input are gone, and must be made again."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self.label = label


@dataclass
class Threads:
    """As many threads as actions ever ran at once; one that is idle waits for the next job."""

    store: Store
    runner: Runner
    supply: "Supply | None"
    messages: SimpleQueue[Message]
    _threads: list[threading.Thread] = field(default_factory=list, init=False)
    _idle: SimpleQueue[Job | None] = field(default_factory=SimpleQueue, init=False)
    _is_stopping: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self, job: Job, num_running: int) -> None:
        """Run a job, which is one of `num_running` that run now."""
        if num_running > len(self._threads):
            self._threads.append(threading.Thread(target=self._serve, daemon=True))
            self._threads[-1].start()
        self._idle.put(job)

    def end(self) -> None:
        """Let the threads end; one that waits for another build does no longer."""
        for _ in self._threads:
            self._idle.put(None)
        self._is_stopping.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _serve(self) -> None:
        while (job := self._idle.get()) is not None:
            self._act(job)

    def _act(self, job: Job) -> None:
        label = job.action.target.label
        began = time.monotonic()
        try:
            inputs = self._lay_out_inputs(job)
            with self._lease(job.action):
                done, was_shared = self._shared(job) or (self._run(job, inputs), False)
            message = Message(
                label, done=done, seconds=time.monotonic() - began, was_shared=was_shared
            )
        except BaseException as error:
            message = Message(label, error=self._told(error), seconds=time.monotonic() - began)
        self.messages.put(message)

    def _told(self, error: BaseException) -> BaseException:
        """Return the error in words where it is about the store, as when that was deleted."""
        inside = isinstance(error, OSError) and str(error.filename).startswith(str(self.store.root))
        if isinstance(error, OSError) and inside:
            return disk.machine_error(error, str(self.store.root))
        return error

    def _shared(self, job: Job) -> tuple[Done, bool] | None:
        """Return what another build recorded while this one waited for the lease."""
        record = None if job.must_run else self.store.find(job.action.key)
        return None if record is None else (Done(record, None, ()), True)

    def _run(self, job: Job, inputs: Ready) -> Done:
        label = job.action.target.label

        def hear(event: dict[str, Any]) -> None:
            self.messages.put(Message(label, event=event))

        return self.runner.run(job.action, inputs, cpus=job.cpus, gpus=job.gpus, on_event=hear)

    @contextmanager
    def _lease(self, action: Action) -> Iterator[None]:
        """Hold an action against other builds; says so while it waits, and stops with the build."""
        held = self.store.try_lease(action.key)
        if held is None:
            self.messages.put(Message(action.target.label, event={"waiting": True}))
        while held is None:
            if self._is_stopping.wait(_LEASE_S):
                raise InterruptedBuild(signal.SIGTERM)
            held = self.store.try_lease(action.key)
        try:
            yield
        finally:
            self.store.release_lease(action.key, held)

    def _lay_out_inputs(self, job: Job) -> Ready:
        ready: dict[tuple[str, str | None], tuple[Output, Tree, Path]] = {}
        for edge in job.action.target.edges:
            given = job.inputs[edge.label]
            patterns = None if edge.part is None else job.action.facts.parts[edge.field]
            try:
                ready[slot_of(edge)] = (given.output, *self._lay_out(given, patterns))
            except MissingBlob as error:
                raise LostInput(edge.label) from error
        return ready

    def _lay_out(self, given: Input, patterns: tuple[str, ...] | None) -> tuple[Tree, Path]:
        """Return an artifact or a part of it, laid out; what is not here is fetched."""
        try:
            whole = given.tree or recorded_tree(self.store, given.output.key, given.output.tree)
            tree = whole if patterns is None else whole.part(patterns)
            return tree, self.store.lay_out(tree)
        except MissingBlob:
            if self.supply is None:
                raise
            brought = Fetcher(self.store, self.supply).bring(given.output, patterns)
            return brought.tree, brought.path


def recorded_tree(store: Store, key: Digest, digest: Digest) -> Tree:
    """Return the tree of that digest which the action `key` gave.

    Raises:
        MissingBlob: the store has no record of it.
    """
    record = store.find(key) or store.known(key)
    if record is None or record.tree.digest != digest:
        raise MissingBlob(digest, str(store.tree_path(digest)))
    return record.tree
