"""Slots: which actions may run beside each other.

A build has so many cores, GPUs and bytes of memory; an action takes a share of each while it
runs. One that asks for more than there is runs alone, rather than never.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from ftbuild.action import Action
from ftbuild.graph import RuleFacts, Target


@dataclass(frozen=True)
class Share:
    """What one action takes."""

    cpus: int
    gpus: int
    memory_bytes: int


@dataclass
class Slots:
    """What the build may use, and what is free of it."""

    cpus: int
    gpus: tuple[str, ...]
    """By the names that CUDA_VISIBLE_DEVICES takes."""
    memory_bytes: int
    _free_gpus: list[str] = field(init=False)
    _used: dict[str, tuple[Share, tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free_gpus = list(self.gpus)

    def share(self, target: Target, facts: RuleFacts) -> Share:
        """Return what the action of `target` takes; no more than there is of anything."""
        wanted: Mapping[str, int] = target.resources
        default = self.cpus if facts.cpus == "all" else 1
        return Share(
            min(wanted.get("cpus", default), self.cpus),
            min(wanted.get("gpus", facts.gpus), len(self.gpus)),
            min(wanted.get("memory", 0), self.memory_bytes),
        )

    @property
    def are_full(self) -> bool:
        """Say whether no core is free, so that nothing can start."""
        return sum(share.cpus for share, _ in self._used.values()) >= self.cpus

    def take(self, label: str, share: Share) -> tuple[str, ...] | None:
        """Reserve `share`; return the names of the GPUs, or None where it does not fit now."""
        used = [s for s, _ in self._used.values()]
        if sum(s.cpus for s in used) + share.cpus > self.cpus:
            return None
        if sum(s.memory_bytes for s in used) + share.memory_bytes > self.memory_bytes:
            return None
        if share.gpus > len(self._free_gpus):
            return None
        gpus = tuple(self._free_gpus[: share.gpus])
        del self._free_gpus[: share.gpus]
        self._used[label] = (share, gpus)
        return gpus

    def give_back(self, label: str) -> None:
        """Free what `label` has reserved."""
        _, gpus = self._used.pop(label)
        self._free_gpus = [name for name in self.gpus if name in {*self._free_gpus, *gpus}]


@dataclass
class StartQueue:
    """Actions that may start, the longest first: what all wait for should not be last to begin."""

    _heap: list[tuple[float, int, Action]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def add(self, action: Action, expected_s: float) -> None:
        """Add an action that is expected to take so long; of equals the first added is first."""
        heappush(self._heap, (-expected_s, next(self._numbers), action))

    def taken(self, slots: Slots) -> Iterator[tuple[Action, Share, tuple[str, ...]]]:
        """Remove and return the actions that fit now, each with its share, which is reserved."""
        passed_over = []
        while self._heap and not slots.are_full:
            waiting = heappop(self._heap)
            action = waiting[-1]
            share = slots.share(action.target, action.facts)
            gpus = slots.take(action.target.label, share)
            if gpus is None:
                passed_over.append(waiting)
            else:
                yield action, share, gpus
        for waiting in passed_over:
            heappush(self._heap, waiting)

    def drained(self) -> Iterator[Action]:
        """Remove and return all actions."""
        while self._heap:
            yield heappop(self._heap)[-1]


def of_this_machine(jobs: int | None) -> Slots:
    """Return the slots of this machine; `jobs` stands for the number of cores."""
    return Slots(jobs or available_cpus(), _visible_gpus(), _memory_bytes())


def available_cpus() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _visible_gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    try:
        # The driver's own listing: asking a library would load it, and start a GPU context.
        return tuple(map(str, range(len(os.listdir("/proc/driver/nvidia/gpus")))))
    except OSError:
        return ()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
