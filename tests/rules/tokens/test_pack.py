"""Packed rows: which rows go together, and what each holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_kit import BOS, CHATML, EOS, chat, make_dataset, make_model, read_tokens
from ftbuild.api import AttributeProblem
from ftbuild.testing import RecordingContext, context, run_rule
from ftbuild_rules.tokens._pack import Packing, best_fit, first_fit, pack
from ftbuild_rules.tokens.tokens import tokens


def row(first: int, length: int) -> tuple[list[int], list[int]]:
    ids = list(range(first, first + length))
    return ids, [-100, *ids[1:]]


@pytest.mark.parametrize(
    ("lengths", "best", "first"),
    [
        ([3, 7, 5, 5], [[1, 0], [2, 3]], [[1, 0], [2, 3]]),
        ([7, 6, 2, 3], [[0, 3], [1, 2]], [[0, 3], [1, 2]]),
        ([6, 7, 3, 2, 2], [[1, 2], [0, 3, 4]], [[1, 2], [0, 3, 4]]),
        ([5, 6, 2, 1], [[1, 2, 3], [0]], [[1, 2, 3], [0]]),
        ([4, 8, 7, 2], [[1, 3], [2], [0]], [[1, 3], [2], [0]]),
        ([6, 8, 2, 2], [[1, 2], [0, 3]], [[1, 2], [0, 3]]),
        ([10, 10], [[0], [1]], [[0], [1]]),
        ([], [], []),
    ],
)
def test_rows_that_go_together(
    lengths: list[int], best: list[list[int]], first: list[list[int]]
) -> None:
    assert best_fit(lengths, 10) == best
    assert first_fit(lengths, 10) == first


def test_best_fit_takes_the_fullest_bin_and_first_fit_the_first() -> None:
    # 42 fits beside 55 alone; then 3 fits beside 60, and just beside 55 and 42.
    assert best_fit([60, 55, 42, 3], 100) == [[0], [1, 2, 3]]
    assert first_fit([60, 55, 42, 3], 100) == [[0, 3], [1, 2]]


@given(st.lists(st.integers(1, 20), max_size=40), st.sampled_from(["bfd", "ffd", "wrapped"]))
def test_every_document_is_packed_once_and_whole(lengths: list[int], packing: Packing) -> None:
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    rows = [row(start, length) for start, length in zip(starts, lengths, strict=True)]
    packed = [
        (ids.tolist(), labels.tolist(), ends) for ids, labels, ends in pack(rows, packing, 20)[0]
    ]
    documents = []
    for ids, labels, ends in packed:
        assert len(ids) == len(labels) == sum(ends) <= 20
        at = 0
        for length in ends:
            documents.append(ids[at : at + length])
            assert labels[at : at + length] == [-100, *ids[at + 1 : at + length]]
            at += length
    if packing == "wrapped":
        assert [i for ids, _, _ in packed for i in ids] == list(range(sum(lengths)))
        assert all(len(ids) == 20 for ids, _, _ in packed[:-1])
    else:
        assert sorted(documents) == [ids for ids, _ in rows]


@given(st.lists(st.integers(1, 20), max_size=30))
def test_best_fit_is_what_trying_every_bin_gives(lengths: list[int]) -> None:
    bins: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        rooms = [(20 - sum(lengths[n] for n in one), k) for k, one in enumerate(bins)]
        fitting = [(room, k) for room, k in rooms if room >= lengths[place]]
        if fitting:
            bins[min(fitting)[1]].append(place)
        else:
            bins.append([place])
    assert best_fit(lengths, 20) == bins


def build(directory: Path, rows: list[Any], ctx: RecordingContext | None = None, **p: Any) -> Any:
    format_name = "text" if "text" in rows[0] else "openai"
    inputs = {
        "dataset": make_dataset(directory / "data", rows, format_name),
        "model": make_model(directory / "model", CHATML),
    }
    return run_rule(tokens, inputs, p, directory, ctx=ctx)


def test_texts_packed_by_best_fit(tmp_path: Path) -> None:
    rows = [{"text": "abcd"}, {"text": "ab"}, {"text": "xyz"}]
    made = build(tmp_path, rows, packing="bfd", max_length=10)
    assert read_tokens(made) == [
        {
            "input_ids": [BOS, *b"abcd", EOS, BOS, *b"ab", EOS],
            "labels": [-100, *b"abcd", EOS, -100, *b"ab", EOS],
            "seq_lengths": [6, 4],
        },
        {"input_ids": [BOS, *b"xyz", EOS], "labels": [-100, *b"xyz", EOS], "seq_lengths": [5]},
    ]
    about = json.loads((made.path / "tokens.json").read_bytes())
    assert (about["rows"], about["documents"], about["packing"]) == (2, 3, "bfd")
    assert (about["tokens"], about["trainable_tokens"]) == (15, 12)


def test_texts_wrapped(tmp_path: Path) -> None:
    rows = [{"text": "abcdef"}, {"text": "xy"}]
    made = build(tmp_path, rows, packing="wrapped", max_length=5)
    assert read_tokens(made) == [
        {"input_ids": [BOS, *b"abcd"], "labels": [-100, *b"abcd"], "seq_lengths": [5]},
        {
            "input_ids": [*b"ef", EOS, BOS, *b"x"],
            "labels": [-100, *b"f", EOS, -100, *b"x"],
            "seq_lengths": [3, 2],
        },
        {"input_ids": [*b"y", EOS], "labels": [-100, EOS], "seq_lengths": [2]},
    ]


def test_conversations_keep_their_masks(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello"), chat("Ho", "Hallo")]
    plain = read_tokens(build(tmp_path / "a", rows))
    (packed,) = read_tokens(build(tmp_path / "b", rows, packing="ffd", max_length=64))
    assert packed == {
        "input_ids": plain[0]["input_ids"] + plain[1]["input_ids"],
        "labels": plain[0]["labels"] + plain[1]["labels"],
        "seq_lengths": [28, 28],
    }


def test_edit_of_a_row_packs_one_shard(tmp_path: Path) -> None:
    rows = [{"text": f"text number {number}"} for number in range(300)]
    ctx = context(tmp_path / "first")
    build(tmp_path / "a", rows, ctx, packing="bfd", max_length=64)
    shards = len(ctx.memo)
    rows[150] = {"text": "another"}
    again = context(tmp_path / "second", memo=ctx.memo)
    build(tmp_path / "b", rows, again, packing="bfd", max_length=64)
    assert shards > 3
    assert len(ctx.memo) - shards <= 2


def test_overflow_beside_wrapped_is_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(AttributeProblem, match="`overflow` has no effect"):
        build(tmp_path, [{"text": "a"}], packing="wrapped", overflow="drop")
