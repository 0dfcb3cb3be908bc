"""Work done ahead: while one piece is written, the next ones are computed on other cores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def ahead(tasks: Iterable[Callable[[], Any]], *, workers: int) -> Iterator[Any]:
    """Yield what the tasks return, in their order, computed by so many threads.

    No more than `workers` + 1 results are held. The libraries below let go of the interpreter
    while they compute, and what they compute depends on no other thread.
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
