"""Spread work over threads; torch lets go of the interpreter while it computes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(worker: Callable[[], Callable[[int], T]], firsts: range, threads: int) -> list[T]:
    """Return what a worker gives for each number, in their order.

    Each thread makes a worker of its own, with memory of its own, and takes every so-manieth
    number. What is written for one number must be its own part, so that their order is nothing.
    """
    threads = max(1, min(threads, len(firsts)))

    def share(thread: int) -> list[T]:
        work = worker()
        return [work(first) for first in firsts[thread::threads]]

    if threads == 1:
        return share(0)
    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(share, range(threads)))
    return [shares[place % threads][place // threads] for place in range(len(firsts))]
