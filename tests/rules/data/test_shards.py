"""Where shards end: an edit changes one of them and moves no other boundary."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat, make_dataset
from ftbuild.digest import hash_file
from ftbuild.kinds import Artifact
from ftbuild_rules.data import _shards
from ftbuild_rules.data._shards import COARSE, FINE, SizedRow, cut, size_row


def row_of(text: str, metadata: str = "{}") -> SizedRow:
    return size_row({"text": text, "metadata": metadata})


def rows_of(count: int, seed: int = 1) -> list[SizedRow]:
    rng = random.Random(seed)
    return [row_of(f"row {number} {rng.random()}") for number in range(count)]


def texts(shards: Sequence[Sequence[SizedRow]]) -> list[tuple[str, ...]]:
    return [tuple(row.columns["text"] for row in shard) for shard in shards]


def text_where(ends: bool, grain: _shards.Grain) -> str:
    """Return a text after which a shard ends, or does not."""
    for number in range(100_000):
        row = row_of(f"wanted {number}")
        if grain.ends_shard(row.fingerprint, row.text_bytes) is ends:
            return f"wanted {number}"
    raise AssertionError


def test_shards_hold_all_rows_in_their_order() -> None:
    rows = rows_of(5000)
    shards = list(cut(rows))
    assert [row for shard in shards for row in shard] == rows
    assert 3 <= len(shards) <= 12


def test_mean_size_is_a_thousand_rows() -> None:
    sizes = [len(shard) for shard in cut(rows_of(100_000))]
    assert 800 < 100_000 / len(sizes) < 1250


def test_large_rows_make_shards_of_a_mebibyte() -> None:
    rng = random.Random(0)
    rows = [row_of(f"{rng.random()}" + "x" * 10_000) for _ in range(5000)]
    shards = list(cut(rows))
    assert 0.6 < 5000 * 10_018 / len(shards) / (1 << 20) < 1.6


@pytest.mark.parametrize("count", [60, 5000])
@pytest.mark.parametrize("place", ["head", "middle", "tail"])
@pytest.mark.parametrize("edit", ["insert", "edit", "delete"])
def test_edit_of_one_row_changes_one_shard(count: int, place: str, edit: str) -> None:
    grain = FINE if count == 60 else COARSE
    rows = rows_of(count)
    inner = [n for n, row in enumerate(rows) if not grain.ends_shard(row.fingerprint, 30)]
    at = {"head": inner[0], "middle": inner[len(inner) // 2], "tail": inner[-1]}[place]
    new = row_of(text_where(False, grain))
    edited = [*rows]
    edited[at : at + (edit != "insert")] = [] if edit == "delete" else [new]

    before, after = texts(list(cut(rows))), texts(list(cut(edited)))
    assert len(before) == len(after) >= 2
    assert sum(old != changed for old, changed in zip(before, after, strict=True)) == 1


def test_row_that_becomes_a_boundary_splits_its_shard_and_no_other() -> None:
    rows = rows_of(5000)
    before = texts(list(cut(rows)))
    middle = len(before[0]) + len(before[1]) // 2
    edited = [*rows[:middle], row_of(text_where(True, COARSE)), *rows[middle + 1 :]]
    after = texts(list(cut(edited)))
    assert after[0] == before[0]
    assert after[3:] == before[2:]
    assert len(after[1]) + len(after[2]) == len(before[1])


def test_boundary_row_that_goes_joins_two_shards_and_no_other() -> None:
    rows = rows_of(5000)
    before = texts(list(cut(rows)))
    boundary = len(before[0]) - 1
    after = texts(list(cut([*rows[:boundary], *rows[boundary + 1 :]])))
    assert after[0] == before[0][:-1] + before[1]
    assert after[1:] == before[2:]


@pytest.mark.parametrize("grain", [COARSE, FINE])
def test_metadata_and_outer_space_move_no_boundary(grain: _shards.Grain) -> None:
    text = text_where(True, grain)
    row, other = row_of(text), row_of(f"  {text}\n", '{"id":7}')
    assert row.fingerprint == other.fingerprint
    assert row.text_bytes == other.text_bytes


def test_equal_rows_without_end_are_cut_at_the_largest_size() -> None:
    row = row_of(text_where(False, COARSE))
    sizes = [len(shard) for shard in cut([row] * 40_000)]
    assert sizes == [16_000, 16_000, 8_000]


def test_row_of_a_mebibyte_ends_its_shard() -> None:
    rows = [row_of("x" * (1 << 20) + str(number)) for number in range(20)]
    assert [len(shard) for shard in cut(rows)] == [1] * 20


def test_reading_ahead_stops_at_the_shard() -> None:
    taken = 0

    def rows() -> Any:
        nonlocal taken
        for row in rows_of(20_000):
            taken += 1
            yield row

    next(cut(rows()))
    assert taken < 16_000


def shard_digests(artifact: Artifact) -> list[str]:
    return [hash_file(path) for path in sorted((artifact.path / "data").iterdir())]


def test_files_of_unchanged_shards_keep_their_bytes(tmp_path: Path) -> None:
    rows = [chat(f"What is {n} plus {n}?", f"It is {2 * n}.") for n in range(60)]
    before = shard_digests(make_dataset(tmp_path / "a", rows))
    rows[30] = chat("What is 30 plus 30?", "Sixty.")
    after = shard_digests(make_dataset(tmp_path / "b", rows))
    assert len(before) == len(after) > 1
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
