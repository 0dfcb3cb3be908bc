"""Work done ahead: while one piece is written, the next ones are computed on other cores."""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

MAX_WORKERS = 8
"""One thread writes what all others compute; more of them would only hold memory."""


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


Task = Callable[[Slot], Any]


def ahead(tasks: Iterable[Task], *, workers: int) -> Iterator[Any]:
    """Yield what the tasks return, in their order, computed by so many threads.

    What is yielded may lie in a task's slot: it is valid until the next one is asked for. The
    libraries below let go of the interpreter while they compute, and what they compute depends
    on no other thread.
    """
    workers = min(workers, MAX_WORKERS)
    slots = [Slot() for _ in range(workers + 1)]
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for number, task in enumerate(tasks):
            # The slot is that of the task whose result was yielded last, and is used up.
            waiting.append(pool.submit(task, slots[number % len(slots)]))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
