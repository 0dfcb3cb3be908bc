"""`mix` in pieces: the rows, and the bytes, of one pass over all that is taken."""

import random
from pathlib import Path
from typing import Any

import pytest
import xxhash

from chat_kit import make_dataset, read_dataset
from ftbuild.kinds import Artifact
from ftbuild.testing import context, run_rule
from ftbuild_rules.data import _order
from ftbuild_rules.data._order import _smallest
from ftbuild_rules.data.mix import mix

Rows = list[dict[str, Any]]


def make(directory: Path, count: int, seed: int, texts: int) -> tuple[Artifact, Rows]:
    """Return rows of which many say the same, in all as many texts as said."""
    rng = random.Random(seed)
    rows = [{"text": f"{seed}: {rng.randrange(texts)}", "n": n} for n in range(count)]
    return make_dataset(directory / str(seed), rows, "text"), rows


def by_hand(datasets: list[Rows], counts: list[int], seed: int, *, is_shuffled: bool) -> list[str]:
    """Return the texts of a mix, sorted whole in memory."""

    def place(text: str, copy: int) -> int:
        own = xxhash.xxh3_64_intdigest(text.encode())
        return xxhash.xxh3_64_intdigest(f"{own}:{copy}".encode(), seed=seed)

    taken: list[tuple[int, int, int, int]] = []
    for number, (rows, count) in enumerate(zip(datasets, counts, strict=True)):
        full, rest = divmod(count, len(rows))
        for copy in range(full + 1):
            placed = [(place(r["text"], copy), number, n, copy) for n, r in enumerate(rows)]
            taken += placed if copy < full else sorted(placed)[:rest]
    if not is_shuffled:
        taken.sort(key=lambda entry: entry[1:])
    else:
        taken.sort()
    return [datasets[number][row]["text"] for _, number, row, _ in taken]


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
@pytest.mark.parametrize("seed", [0, 3])
def test_mix_is_that_of_one_sort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, seed: int
) -> None:
    monkeypatch.setattr(_order, "_SORTED_BITS", 9)
    monkeypatch.setattr(_order, "_PIECE_BITS", 7)
    monkeypatch.setattr(_order, "_BLOCK_ROWS", 50)
    made = [make(tmp_path, 2500, 1, 400), make(tmp_path, 900, 2, 10**9), make(tmp_path, 30, 4, 3)]
    inputs = {"datasets": {name: d for name, (d, _) in zip("abc", made, strict=True)}}
    for number, (params, counts) in enumerate(
        [
            ({}, [2500, 900, 30]),
            ({"max_rows": {"a": 1100, "c": 7}}, [1100, 900, 7]),
            (
                {"weights": {"a": 3.0, "b": 2.0, "c": 1.0}, "rows": 6000, "repeat": True},
                [3000, 2000, 1000],
            ),
        ]
    ):
        directory = tmp_path / f"{order}-{number}"
        mixed = run_rule(mix, inputs, {**params, "order": order, "seed": seed}, directory)
        expected = by_hand(
            [rows for _, rows in made], counts, seed, is_shuffled=order == "shuffled"
        )
        assert [row["text"] for row in read_dataset(mixed)] == expected
        # Shards are cut where one pass over the rows cuts them.
        rows = [{"text": row["text"], **_metadata(row)} for row in read_dataset(mixed)]
        assert make_dataset(directory / "plain", rows, "text").digest == mixed.digest


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    import json

    return dict(json.loads(row["metadata"]))


def test_edited_row_makes_the_pieces_it_leaves_and_comes_to_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_order, "_PIECE_BITS", 7)
    rows = [{"text": f"row {n}"} for n in range(5000)]
    memo: dict[str, Any] = {}
    before = make_dataset(tmp_path / "1", rows, "text")
    run_rule(mix, {"datasets": {"a": before}}, {}, tmp_path, ctx=context(tmp_path, memo=memo))
    first = len(memo)
    edited = make_dataset(tmp_path / "2", [*rows[:70], {"text": "new"}, *rows[71:]], "text")
    again = run_rule(
        mix, {"datasets": {"a": edited}}, {}, tmp_path, ctx=context(tmp_path, memo=memo)
    )
    # The places of a shard, two pieces, and what joins the ends of these with their neighbours.
    assert 3 <= len(memo) - first <= 1 + 2 + 4
    assert first > 40
    scratch = run_rule(mix, {"datasets": {"a": edited}}, {}, tmp_path, ctx=context(tmp_path))
    assert again.digest == scratch.digest


def test_smallest_numbers_with_ties() -> None:
    import numpy

    rng = random.Random(7)
    for _ in range(50):
        numbers = [rng.choice([0, 5, 1 << 50, rng.randrange(1 << 64)]) for _ in range(40)]
        count = rng.randint(1, 40)
        parts = [numpy.array(numbers[:13], "<u8"), numpy.array(numbers[13:], "<u8")]
        largest, ties = _smallest(parts, count)
        assert largest == sorted(numbers)[count - 1]
        assert sum(n < largest for n in numbers) + ties == count
