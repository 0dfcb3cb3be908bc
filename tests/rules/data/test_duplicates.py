"""`dedup` and `leakage`: exact and near duplicates, against a plain comparison of all pairs."""

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat, make_dataset, read_dataset
from ftbuild.errors import RuleError
from ftbuild.kinds import Artifact
from ftbuild.rule import AttributeProblem
from ftbuild.testing import context, run_rule
from ftbuild_rules.data.dedup import dedup
from ftbuild_rules.data.leakage import leakage

WORDS = [f"{a}{b}" for a, b in itertools.product("abcdefghij", "klmnopqrst")]


def sentence(seed: int, count: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def text_dataset(directory: Path, rows: list[str]) -> Artifact:
    return make_dataset(directory, [{"text": row, "n": n} for n, row in enumerate(rows)], "text")


def texts(made: Artifact) -> list[str]:
    return [row["text"] for row in read_dataset(made)]


def jaccard(one: str, other: str, ngram: int) -> float:
    """Compute the similarity of two texts from the sets themselves."""
    sets = []
    for text in (one, other):
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[n : n + ngram]) for n in range(max(1, len(words) - ngram + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_exact_duplicates_go_whatever_their_metadata_and_outer_space(tmp_path: Path) -> None:
    made = text_dataset(tmp_path, ["a", "b", " a\n", "c", "b", "A"])
    ctx = context(tmp_path)
    found = run_rule(dedup, {"dataset": made}, {}, tmp_path, ctx=ctx)
    assert texts(found) == ["a", "b", "c", "A"]
    assert ctx.known == {"rows": 4, "shards": 1, "dropped": 2, "exact_within": 2}
    assert ctx.logs == [
        "row 2 repeats row 0, similarity 1.000",
        "row 4 repeats row 1, similarity 1.000",
    ]


def test_chats_that_differ_in_a_role_alone_are_no_duplicates(tmp_path: Path) -> None:
    first, second = chat("a", "b", "c", "d"), chat("a", "b", "c", "d")
    second["messages"].insert(0, {"role": "system", "content": "x"})
    made = make_dataset(tmp_path, [first, second, first])
    found = run_rule(dedup, {"dataset": made}, {}, tmp_path)
    assert [len(row["messages"]) for row in read_dataset(found)] == [4, 5]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_the_plain_comparison(
    threshold: float, tmp_path: Path
) -> None:
    rows = [" ".join(sentence(seed)) for seed in range(60)]
    rng = random.Random(1)
    for seed in range(40):
        words = sentence(seed)
        for place in rng.sample(range(60), rng.randrange(1, 12)):
            words[place] = "changed"
        rows.append(" ".join(words))
    expected: list[str] = []
    for row in rows:
        similar = [jaccard(row, kept, 3) for kept in expected]
        if max(similar, default=0) < threshold:
            expected.append(row)
    assert 60 < len(expected) < 100
    made = text_dataset(tmp_path, rows)
    params = {"method": "near", "threshold": threshold, "ngram": 3}
    assert texts(run_rule(dedup, {"dataset": made}, params, tmp_path)) == expected


def test_rows_of_other_datasets_go_too(tmp_path: Path) -> None:
    words = sentence(0)
    changed = " ".join(["changed", *words[1:]])
    train = text_dataset(tmp_path / "train", ["new", " ".join(words), changed, "held out"])
    held = text_dataset(tmp_path / "held", ["held out", " ".join(words)])
    inputs: dict[str, Any] = {"dataset": train, "against": (held,)}
    assert texts(run_rule(dedup, inputs, {}, tmp_path)) == ["new", changed]
    ctx = context(tmp_path)
    near = run_rule(dedup, inputs, {"method": "near"}, tmp_path, ctx=ctx)
    assert texts(near) == ["new"]
    assert ctx.known["exact_against"] == 2
    assert ctx.known["near_against"] == 1


def test_dataset_against_itself_is_an_error(tmp_path: Path) -> None:
    made = text_dataset(tmp_path, ["a", "b"])
    with pytest.raises(RuleError, match="all 2 rows repeat rows of `against`"):
        run_rule(dedup, {"dataset": made, "against": (made,)}, {}, tmp_path)


def test_threshold_has_no_meaning_for_exact_duplicates(tmp_path: Path) -> None:
    made = text_dataset(tmp_path, ["a"])
    with pytest.raises(AttributeProblem, match="`threshold` has no meaning"):
        run_rule(dedup, {"dataset": made}, {"threshold": 0.5}, tmp_path)


def test_leakage_is_reported_with_its_rows(tmp_path: Path) -> None:
    words = sentence(0)
    train = text_dataset(tmp_path / "t", ["x", " ".join(words), "held out"])
    judged = text_dataset(tmp_path / "e", ["held out", "fresh", " ".join([*words[:-1], "changed"])])
    ctx = context(tmp_path)
    made = run_rule(leakage, {"train": train, "eval": judged}, {}, tmp_path, ctx=ctx)
    near = round(55 / 57, 6)  # 56 runs of 5 words each, of which the last differs
    assert json.loads((made.path / "report.json").read_text()) == {
        "train_rows": 3,
        "eval_rows": 3,
        "leaked": 2,
        "exact": 1,
        "near": 1,
        "rows": [
            {"eval": 0, "train": 2, "similarity": 1.0},
            {"eval": 2, "train": 1, "similarity": near},
        ],
    }
    assert ctx.warnings == ["2 of 3 rows for evaluation are leaked"]
    with pytest.raises(RuleError, match="2 rows for evaluation are among the rows for training"):
        run_rule(leakage, {"train": train, "eval": judged}, {"max_rows": 1}, tmp_path)
