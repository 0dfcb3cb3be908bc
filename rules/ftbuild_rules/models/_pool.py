"""Many pieces of work on a few threads, each in memory that is used again."""

import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

MAX_WORKERS = 8
"""More of them would wait for the memory of the machine, and hold much of it."""


@dataclass
class Slot:
    """Room for one task at a time. Memory that is used again costs no page faults."""

    _buffers: dict[str, Any] = field(default_factory=dict)
    _kept: tuple[Hashable, Any] | None = None

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a tensor that holds anything, until the next one of this name is taken."""
        import torch

        size = math.prod(shape) * dtype.itemsize
        found = self._buffers.get(name)
        if found is None or found.numel() < size:
            found = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return found[:size].view(dtype).reshape(shape)

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` gives, made once for tasks of one `key` in a row."""
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, make())
        return self._kept[1]


Task = Callable[[Slot], None]


def run_all(queues: Sequence[Sequence[Task]], *, workers: int) -> Iterator[None]:
    """Run all tasks on so many threads; yield after each of them.

    Those of one queue begin in their order. A thread stays at its queue as long as that lasts,
    and then goes where the fewest are: threads that write to one file wait for each other.
    The libraries below let go of the interpreter while they compute, and what they compute
    depends on no other thread. What a task raises ends the others, each after its present task.
    """
    left, done = _Queues(queues), SimpleQueue[bool]()

    def work() -> None:
        slot = Slot()
        try:
            while (task := left.take()) is not None:
                task(slot)
                done.put(False)
        except BaseException:
            left.empty()
            raise
        finally:
            done.put(True)

    workers = min(workers, MAX_WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            ended = 0
            while ended < workers:
                if done.get():
                    ended += 1
                else:
                    yield
        finally:
            left.empty()
        for each in running:
            each.result()


class _Queues:
    """The tasks that no thread has begun."""

    def __init__(self, queues: Sequence[Sequence[Task]]) -> None:
        self._lock = threading.Lock()
        self._queues = [deque(queue) for queue in queues]
        self._at: dict[int, int] = {}
        """Where each thread is."""

    def take(self) -> Task | None:
        me = threading.get_ident()
        with self._lock:
            here = self._at.pop(me, None)
            if here is None or not self._queues[here]:
                here = self._best()
            if here is None:
                return None
            self._at[me] = here
            return self._queues[here].popleft()

    def empty(self) -> None:
        with self._lock:
            for queue in self._queues:
                queue.clear()

    def _best(self) -> int | None:
        """Return the queue where the fewest are, and of several the longest."""
        others = list(self._at.values())
        found = [number for number, queue in enumerate(self._queues) if queue]
        return min(found, key=lambda n: (others.count(n), -len(self._queues[n]), n), default=None)
