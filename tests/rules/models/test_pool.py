"""Pieces of weights that are worked on by several threads, in memory that is used again."""

import threading
from pathlib import Path

import pytest

from ftbuild.api import RuleError
from ftbuild_rules.models._adapter_delta import Delta
from ftbuild_rules.models._apply import changed_rows, is_plain, pieces, summed_rows
from ftbuild_rules.models._pool import Slot, Task, run_all
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors
from ftbuild_rules.models._torch import tensor_bytes


@pytest.mark.parametrize("workers", [1, 2, 5, 20])
def test_all_tasks_run_once_and_those_of_a_queue_in_turn(workers: int) -> None:
    begun: list[tuple[int, int]] = []
    queues = [
        [lambda slot, q=q, n=n: begun.append((q, n)) for n in range(size)]
        for q, size in enumerate([5, 0, 40, 3])
    ]
    assert len(list(run_all(queues, workers=workers))) == 48
    assert len(begun) == 48
    for q, size in enumerate([5, 0, 40, 3]):
        assert [n for queue, n in begun if queue == q] == list(range(size))


def test_each_thread_has_a_queue_of_its_own_and_then_helps() -> None:
    both, helped = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)
    where: list[int] = []

    def at_once(number: int) -> Task:
        def wait(slot: Slot) -> None:
            both.wait()
            where.append(number)

        return wait

    # Each passes only if another thread is at the other queue, then at the same one.
    queues = [
        [at_once(0)],
        [at_once(1), lambda slot: helped.wait() and None, lambda slot: helped.wait() and None],
    ]
    assert len(list(run_all(queues, workers=2))) == 4
    assert sorted(where) == [0, 1]


def test_what_a_task_raises_ends_the_others() -> None:
    ran: list[int] = []

    def fail(slot: Slot) -> None:
        raise RuleError("no")

    endless: list[Task] = [lambda slot: ran.append(1)] * 1_000_000
    with pytest.raises(RuleError, match="no"):
        list(run_all([[fail], endless], workers=2))
    assert len(ran) < 1_000_000


def test_slot_keeps_what_was_made_for_one_key_in_a_row() -> None:
    slot = Slot()
    made = [slot.keep(key, lambda key=key: [key]) for key in ("a", "a", "b", "a")]
    assert made[0] is made[1]
    assert made == [["a"], ["a"], ["b"], ["a"]]
    assert made[3] is not made[0]


def stored(
    folder: Path, dtype: str, shape: tuple[int, int], rank: int, scale: float = 2.0
) -> tuple[StoredTensor, Delta]:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(3)
    weight = (torch.randn(shape, generator=random) * 0.02).to(getattr(torch, dtype))
    a = torch.randn(rank, shape[1], generator=random) * 0.1
    b = torch.randn(shape[0], rank, generator=random) * 0.1
    folder.mkdir(exist_ok=True)
    save_file({"weight": weight}, folder / "weight")
    save_file({"a": a, "b": b}, folder / "pair")
    [found] = read_tensors(folder / "weight")
    pair = {tensor.spec.name: tensor for tensor in read_tensors(folder / "pair")}
    return found, Delta(pair=(pair["a"], pair["b"]), scale=scale)


@pytest.mark.parametrize(
    ("dtype", "shape", "rank", "scale"),
    [
        ("bfloat16", (5632, 2048), 16, 2.0),  # three pieces
        ("float16", (700, 333), 4, 0.25),
        ("float32", (2049 + 64, 2048), 16, 2.0),  # a row is left over
        ("float32", (2049 + 64, 2048), 16, 16 / 3),  # which no addition takes exactly
        ("float32", (300, 2048), 256, 1.0),
        ("float32", (300, 512), 512, 2.0),  # more than is summed up in one go
        ("float32", (40, 200_000), 8, 2.0),  # a row is more than fits the cache
        ("float32", (7, 1), 1, 2.0),
    ],
)
def test_weight_is_what_the_general_way_gives_bit_for_bit(
    tmp_path: Path, dtype: str, shape: tuple[int, int], rank: int, scale: float
) -> None:
    weight, delta = stored(tmp_path, dtype, shape, rank, scale)
    assert is_plain(delta, weight, weight.spec)
    slot = Slot()
    for rows in pieces(weight.spec):
        expected = changed_rows(delta, weight, weight.spec, rows)
        found = b"".join(bytes(block) for block in summed_rows(delta, weight, rows, slot))
        assert found == bytes(tensor_bytes(expected))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_in_each_type(
    tmp_path: Path, dtype: str, value: float
) -> None:
    import torch
    from safetensors.torch import save_file

    _, delta = stored(tmp_path, "float32", (64, 64), 4)
    weight = torch.zeros(64, 64, dtype=getattr(torch, dtype))
    weight[63, 63] = value
    save_file({"weight": weight}, tmp_path / "weight")
    [found] = read_tensors(tmp_path / "weight")
    with pytest.raises(RuleError, match="holds NaN or infinite values"):
        list(summed_rows(delta, found, (0, 64), Slot()))


def test_large_values_are_not_taken_for_infinite(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    _, delta = stored(tmp_path, "float32", (64, 64), 4)
    save_file({"weight": torch.full((64, 64), 3e38, dtype=torch.bfloat16)}, tmp_path / "weight")
    [weight] = read_tensors(tmp_path / "weight")
    [block] = summed_rows(delta, weight, (0, 64), Slot())
    assert bytes(block) == bytes(tensor_bytes(torch.full((64, 64), 3e38, dtype=torch.bfloat16)))


def test_float64_is_not_summed_in_float32(tmp_path: Path) -> None:
    weight, delta = stored(tmp_path, "float64", (64, 64), 4)
    assert not is_plain(delta, weight, weight.spec)


def test_sum_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    weight, delta = stored(tmp_path, "float16", (64, 64), 4)
    too_much = Delta(pair=delta.pair, scale=1e6)
    with pytest.raises(RuleError) as general:
        changed_rows(too_much, weight, weight.spec, (0, 64))
    with pytest.raises(RuleError) as caught:
        list(summed_rows(too_much, weight, (0, 64), Slot()))
    assert str(caught.value) == str(general.value)
