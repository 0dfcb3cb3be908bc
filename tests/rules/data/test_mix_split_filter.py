"""`mix`, `split` and `filter`: which rows are in the result, exactly, and which do not move."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat, make_dataset, read_dataset
from ftbuild.errors import RuleError
from ftbuild.kinds import Artifact
from ftbuild.rule import AttributeProblem
from ftbuild.testing import context, run_rule
from ftbuild_rules.data._expression import ExpressionError, compile_condition
from ftbuild_rules.data._hashing import exact_counts
from ftbuild_rules.data.filter import filter
from ftbuild_rules.data.mix import mix
from ftbuild_rules.data.split import split


def dataset_of(directory: Path, name: str, count: int) -> Artifact:
    rows = [{"text": f"{name} {number}", "n": number} for number in range(count)]
    return make_dataset(directory / name, rows, "text")


def texts(made: Artifact) -> list[str]:
    return [row["text"] for row in read_dataset(made)]


def mixed(directory: Path, sizes: dict[str, int], **params: Any) -> tuple[list[str], Any]:
    datasets = {name: dataset_of(directory, name, size) for name, size in sizes.items()}
    ctx = context(directory)
    made = run_rule(mix, {"datasets": datasets}, params, directory, ctx=ctx)
    return texts(made), ctx.known["counts"]


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ({"a": 1, "b": 1, "c": 1}, 10, {"a": 4, "b": 3, "c": 3}),
        ({"a": 7, "b": 3}, 10, {"a": 7, "b": 3}),
        ({"a": 0.1, "b": 0.2}, 10, {"a": 3, "b": 7}),
    ],
)
def test_counts_are_exact(weights: dict[str, float], total: int, expected: dict[str, int]) -> None:
    assert exact_counts(weights, total) == expected


def test_mix_without_weights_takes_all_rows_shuffled(tmp_path: Path) -> None:
    found, counts = mixed(tmp_path, {"a": 30, "b": 20})
    expected = [f"a {n}" for n in range(30)] + [f"b {n}" for n in range(20)]
    assert counts == {"a": 30, "b": 20}
    assert sorted(found) == sorted(expected)
    assert found != expected


def test_mix_of_one_dataset_in_its_order_is_that_dataset(tmp_path: Path) -> None:
    rows = [chat("Hi", f"Hello {n}", id=n) for n in range(100)]
    made = make_dataset(tmp_path / "d", rows)
    inputs = {"datasets": {"d": made}}
    assert run_rule(mix, inputs, {"order": "sequential"}, tmp_path).digest == made.digest


def test_weights_give_as_many_rows_as_there_are(tmp_path: Path) -> None:
    found, counts = mixed(tmp_path, {"a": 30, "b": 100}, weights={"a": 3.0, "b": 1.0})
    assert counts == {"a": 30, "b": 10}
    assert len(set(found)) == 40


def test_caps_and_rows(tmp_path: Path) -> None:
    _, counts = mixed(tmp_path, {"a": 30, "b": 9}, max_rows={"a": 5})
    assert counts == {"a": 5, "b": 9}
    _, counts = mixed(tmp_path / "2", {"a": 30, "b": 9}, weights={"a": 2.0, "b": 1.0}, rows=9)
    assert counts == {"a": 6, "b": 3}


def test_rows_are_repeated_only_when_asked(tmp_path: Path) -> None:
    params: dict[str, Any] = {"weights": {"a": 1.0, "b": 1.0}, "rows": 20}
    with pytest.raises(RuleError, match="`b` should give 10 rows; it may give 4"):
        mixed(tmp_path, {"a": 30, "b": 4}, **params)
    found, counts = mixed(tmp_path / "2", {"a": 30, "b": 4}, **params, repeat=True)
    assert counts == {"a": 10, "b": 10}
    assert sorted(Counter(text for text in found if text[0] == "b").values()) == [2, 2, 3, 3]


def test_seed_decides_which_rows_and_an_edit_moves_no_other(tmp_path: Path) -> None:
    params: dict[str, Any] = {"weights": {"a": 1.0, "b": 1.0}, "rows": 40}
    first, _ = mixed(tmp_path / "1", {"a": 100, "b": 100}, **params)
    again, _ = mixed(tmp_path / "2", {"a": 100, "b": 100}, **params)
    other, _ = mixed(tmp_path / "3", {"a": 100, "b": 100}, **params, seed=1)
    longer, _ = mixed(tmp_path / "4", {"a": 101, "b": 100}, **params)
    assert first == again
    assert set(first) != set(other)
    assert len(set(longer) - set(first)) <= 1
    kept = [text for text in first if text in longer]
    assert kept == [text for text in longer if text in kept]


def test_forms_do_not_mix(tmp_path: Path) -> None:
    inputs = {
        "datasets": {
            "a": dataset_of(tmp_path, "a", 1),
            "b": make_dataset(tmp_path / "b", [chat("Hi", "Hello")]),
        }
    }
    with pytest.raises(RuleError, match="`a` is `text`, `b` is `messages`"):
        run_rule(mix, inputs, {}, tmp_path)


def parts_of(directory: Path, rows: list[dict[str, Any]], **params: Any) -> dict[str, list[str]]:
    made = make_dataset(directory, rows, "text")
    return {
        part: texts(run_rule(split, {"dataset": made}, {"part": part, **params}, directory))
        for part in params.get("fractions", {"train": 0, "eval": 0})
    }


def test_parts_are_the_whole_and_nothing_is_in_two(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(2000)]
    fractions = {"train": 0.8, "eval": 0.15, "test": 0.05}
    found = parts_of(tmp_path, rows, fractions=fractions)
    whole = [text for texts in found.values() for text in texts]
    assert sorted(whole) == sorted(row["text"] for row in rows)
    for part, fraction in fractions.items():
        assert abs(len(found[part]) - 2000 * fraction) < 60, part


def test_added_row_moves_no_other_across_the_split(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(300)]
    before = parts_of(tmp_path / "1", rows)
    after = parts_of(tmp_path / "2", [{"text": "new"}, *rows])
    for part in before:
        assert [text for text in after[part] if text != "new"] == before[part]


def test_rows_that_say_the_same_are_on_one_side(tmp_path: Path) -> None:
    rows = [{"text": f"row {n % 100}", "id": n} for n in range(500)]
    found = parts_of(tmp_path, rows)
    assert not set(found["train"]) & set(found["eval"])


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "user": n % 50} for n in range(500)]
    found = parts_of(tmp_path, rows, fractions={"train": 0.5, "eval": 0.5}, group="user")
    sides = [{int(text.split()[1]) % 50 for text in part} for part in found.values()]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(50))


def test_seed_decides_the_side(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(300)]
    assert parts_of(tmp_path / "1", rows) != parts_of(tmp_path / "2", rows, seed=1)


def test_empty_part_and_wrong_fractions_are_errors(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, [{"text": "a"}], "text")
    fractions = {"train": 1 - 1e-12, "eval": 1e-12}
    with pytest.raises(RuleError, match="none of 1 rows fall into the part `eval`"):
        run_rule(split, {"dataset": made}, {"part": "eval", "fractions": fractions}, tmp_path)
    with pytest.raises(AttributeProblem, match=r"the fractions add up to 0\.7"):
        run_rule(
            split,
            {"dataset": made},
            {"part": "a", "fractions": {"a": 0.5, "b": 0.2}},
            tmp_path,
        )


ROWS = [
    {"text": "Guten Tag", "language": "de", "score": 0.5},
    {"text": "Good day, as an AI", "language": "en", "score": 0.9},
    {"text": "Bonjour à tous", "language": "fr"},
]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"where": 'language == "de"'}, [0]),
        ({"where": 'language in ["de", "fr"] and "AI" not in text'}, [0, 2]),
        ({"where": "score > 0.4"}, [0, 1]),
        ({"where": "score == None or score >= 0.9"}, [1, 2]),
        ({"where": "not (words < 3) and characters % 2 == 0"}, [1, 2]),
        ({"where": 'startswith(lower(text), "g") and len(language) == 2'}, [0, 1]),
        ({"where": "0.4 < score < 0.6"}, [0]),
        ({"min_characters": 10}, [1, 2]),
        ({"max_characters": 9}, [0]),
        ({"min_characters": 10, "where": "words == 3"}, [2]),
    ],
)
def test_rows_that_fulfil_a_condition_are_kept(
    params: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    made = make_dataset(tmp_path, ROWS, "text")
    found = run_rule(filter, {"dataset": made}, params, tmp_path)
    assert texts(found) == [ROWS[n]["text"] for n in expected]


def test_turns_of_conversations_are_counted(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, [chat("1", "2"), chat("1", "2", "3", "4")])
    found = run_rule(filter, {"dataset": made}, {"min_turns": 3}, tmp_path)
    assert [len(row["messages"]) for row in read_dataset(found)] == [4]


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os').system('true')",
        "text.__class__",
        "(lambda: 1)()",
        "[x for x in text]",
        "text is None",
        "9 ** 9 ** 9",
        "f'{text}'",
        "open('x')",
        "text ==",
        "x := 1",
    ],
)
def test_condition_that_is_more_than_one_is_refused(condition: str) -> None:
    with pytest.raises(ExpressionError):
        compile_condition(condition)


def test_condition_that_no_row_fulfils_is_an_error(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, ROWS, "text")
    with pytest.raises(RuleError, match="none of 3 rows fulfil the condition"):
        run_rule(filter, {"dataset": made}, {"where": 'language == "xx"'}, tmp_path)


def test_condition_without_meaning_for_a_row_names_it(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, ROWS, "text")
    with pytest.raises(RuleError, match="the condition has no meaning for row 0"):
        run_rule(filter, {"dataset": made}, {"where": "language > 3"}, tmp_path)
