"""Which actions may run beside each other; nothing runs here."""

import os
import random
from typing import Literal

import pytest

from ftbuild import slots
from ftbuild.nodes import RuleFacts, Target
from ftbuild.slots import Share, Slots

GB = 10**9


def machine(cpus: int = 4, gpus: tuple[str, ...] = ("0", "1"), memory: int = 16 * GB) -> Slots:
    return Slots(cpus, gpus, memory)


def target(**resources: int) -> Target:
    return Target("t", "", "t", "t", "r", "file", {}, (), {}, (), resources, "", ())


def facts(cpus: Literal["one", "all"] = "one", gpus: int = 0) -> RuleFacts:
    return RuleFacts(
        name="r", version=1, source=None, pins=(), parts={}, runs="worker",
        cpus=cpus, gpus=gpus, preload=(), module="m", file="f", files=(), is_reproducible=True,
    )  # fmt: skip


def test_share_follows_from_the_rule_where_the_target_says_nothing() -> None:
    assert machine().share(target(), facts()) == Share(1, 0, 0)
    assert machine().share(target(), facts("all", 1)) == Share(4, 1, 0)


def test_target_has_the_last_word() -> None:
    wanted = target(cpus=2, gpus=0, memory=8 * GB)
    assert machine().share(wanted, facts("all", 1)) == Share(2, 0, 8 * GB)


def test_nobody_takes_more_than_there_is() -> None:
    wanted = target(cpus=64, gpus=8, memory=999 * GB)
    assert machine().share(wanted, facts()) == Share(4, 2, 16 * GB)
    assert machine(gpus=()).share(wanted, facts(gpus=1)) == Share(4, 0, 16 * GB)


def test_cores_run_out() -> None:
    free = machine(cpus=3)
    assert free.take("a", Share(2, 0, 0)) == ()
    assert free.take("b", Share(2, 0, 0)) is None
    assert free.take("c", Share(1, 0, 0)) == ()
    free.give_back("a")
    assert free.take("b", Share(2, 0, 0)) == ()


def test_memory_runs_out() -> None:
    free = machine()
    assert free.take("a", Share(1, 0, 10 * GB)) == ()
    assert free.take("b", Share(1, 0, 7 * GB)) is None
    assert free.take("c", Share(1, 0, 6 * GB)) == ()


def test_each_gpu_belongs_to_one_action() -> None:
    free = machine(gpus=("3", "5", "7"))
    assert free.take("a", Share(1, 1, 0)) == ("3",)
    assert free.take("b", Share(1, 2, 0)) == ("5", "7")
    assert free.take("c", Share(1, 1, 0)) is None
    free.give_back("a")
    assert free.take("c", Share(1, 1, 0)) == ("3",)


def test_gpus_come_back_in_their_order() -> None:
    free = machine(gpus=("b", "a", "c"))
    for name in ("x", "y", "z"):
        free.take(name, Share(1, 1, 0))
    for name in ("z", "x", "y"):
        free.give_back(name)
    assert free.take("all", Share(1, 3, 0)) == ("b", "a", "c")


def test_refused_action_has_taken_nothing() -> None:
    free = machine(cpus=1)
    free.take("a", Share(1, 0, 0))
    assert free.take("b", Share(1, 2, 0)) is None
    free.give_back("a")
    assert free.take("c", Share(1, 2, 0)) == ("0", "1")


def test_any_order_of_taking_and_giving_back_keeps_the_books() -> None:
    for seed in range(200):
        dice, free = random.Random(seed), machine(3, ("0", "1", "2"), 10)
        taken: dict[str, tuple[Share, tuple[str, ...]]] = {}
        for step in range(30):
            if taken and dice.random() < 0.4:
                free.give_back(name := dice.choice(list(taken)))
                del taken[name]
                continue
            share = Share(dice.randint(1, 3), dice.randint(0, 3), dice.randint(0, 10))
            gpus = free.take(str(step), share)
            used = [s for s, _ in taken.values()]
            fits = (
                sum(s.cpus for s in used) + share.cpus <= 3
                and sum(s.gpus for s in used) + share.gpus <= 3
                and sum(s.memory_bytes for s in used) + share.memory_bytes <= 10
            )
            assert (gpus is not None) == fits
            if gpus is not None:
                taken[str(step)] = (share, gpus)
            held = [gpu for _, owned in taken.values() for gpu in owned]
            assert len(held) == len(set(held))
            assert all(len(owned) == share.gpus for share, owned in taken.values())


def test_jobs_stand_for_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 7")
    found = slots.of_this_machine(5)
    assert (found.cpus, found.gpus) == (5, ("2", "7"))
    assert slots.of_this_machine(None).cpus == len(os.sched_getaffinity(0))
    assert found.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_hidden_gpus_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.of_this_machine(None).gpus == ()
