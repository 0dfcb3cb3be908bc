"""Pieces of weights that are computed ahead: in their order, in memory that is used again."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import RuleError
from ftbuild_rules.models._adapter_delta import Delta
from ftbuild_rules.models._ahead import Slot, Task, ahead
from ftbuild_rules.models._apply import changed_rows, is_plain, pieces, summed_rows
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors


def task(number: int, computed: list[int]) -> Task:
    def compute(slot: Slot) -> Any:
        import torch

        value = slot.take("value", (3,), torch.int64)
        computed.append(number)
        return value.fill_(number)

    return compute


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_stay_until_the_next_is_asked_for(workers: int) -> None:
    computed: list[int] = []
    found = []
    for value in ahead([task(n, computed) for n in range(40)], workers=workers):
        # What is yielded is read only now, when other tasks may be running.
        found.append(value.tolist())
        assert len(computed) <= len(found) + workers
    assert found == [[n] * 3 for n in range(40)]


def test_slot_keeps_what_was_made_for_one_key_in_a_row() -> None:
    slot = Slot()
    made = [slot.keep(key, lambda key=key: [key]) for key in ("a", "a", "b", "a")]
    assert made[0] is made[1]
    assert made == [["a"], ["a"], ["b"], ["a"]]
    assert made[3] is not made[0]


def stored(
    folder: Path, dtype: str, shape: tuple[int, int], rank: int
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
    return found, Delta(pair=(pair["a"], pair["b"]), scale=2.0)


@pytest.mark.parametrize(
    ("dtype", "shape", "rank"),
    [
        ("bfloat16", (5632, 2048), 16),  # three pieces
        ("float16", (700, 333), 4),
        ("float32", (2049 + 64, 2048), 16),  # a row is left over
        ("float32", (40, 200_000), 8),  # a row is more than fits the cache
        ("float32", (7, 1), 1),
    ],
)
def test_weight_is_what_the_general_way_gives_bit_for_bit(
    tmp_path: Path, dtype: str, shape: tuple[int, int], rank: int
) -> None:
    weight, delta = stored(tmp_path, dtype, shape, rank)
    assert is_plain(delta, weight, weight.spec)
    slot = Slot()
    for rows in pieces(weight.spec):
        expected = changed_rows(delta, weight, weight.spec, rows)
        assert summed_rows(delta, weight, rows, slot).equal(expected)


def test_sum_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    weight, delta = stored(tmp_path, "float16", (64, 64), 4)
    too_much = Delta(pair=delta.pair, scale=1e6)
    with pytest.raises(RuleError) as general:
        changed_rows(too_much, weight, weight.spec, (0, 64))
    with pytest.raises(RuleError) as caught:
        summed_rows(too_much, weight, (0, 64), Slot())
    assert str(caught.value) == str(general.value)
