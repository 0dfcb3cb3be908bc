"""Many requests at once, their answers in order, never more than a few of them in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Sized(Protocol):
    """What has a size in bytes."""

    @property
    def size(self) -> int:
        """Its bytes."""


S = TypeVar("S", bound=Sized)

THREADS = 8
_AHEAD = 2 * THREADS
"""So many chunks of 4 MiB at most are in memory: 64 MiB."""


def in_order(
    pool: ThreadPoolExecutor, ask: Callable[[A], B], items: Iterable[A]
) -> Generator[B, None, None]:
    """Yield `ask(item)` for each item, in their order, asked in the threads of `pool`.

    What `ask` raises is raised here, and what was not begun is then not done.
    """
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(ask, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def pool(name: str) -> ThreadPoolExecutor:
    """Return threads for requests."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix=name)


def grouped(items: Iterable[S], *, most_bytes: int, most_items: int) -> Iterator[list[S]]:
    """Yield the items in groups, in their order; a group ends as soon as it reaches a bound."""
    group: list[S] = []
    size = 0
    for item in items:
        group.append(item)
        size += item.size
        if size >= most_bytes or len(group) >= most_items:
            yield group
            group, size = [], 0
    if group:
        yield group
