"""Rules between datasets, shard by shard: the bytes of one pass, and an edit redoes one piece."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chat_kit import make_dataset, read_dataset
from ftbuild.kinds import Artifact
from ftbuild.rule import Fragment, Function
from ftbuild.testing import context, run_rule
from ftbuild_rules.data import _duplicates
from ftbuild_rules.data.dedup import dedup
from ftbuild_rules.data.filter import filter
from ftbuild_rules.data.split import split
from ftbuild_rules.data.transform import transform

Rows = list[dict[str, Any]]
COUNT = 4000
CODE = "def change(row):\n    row['text'] += '!'\n    return None if 'x' in row['text'] else row\n"


def rows_of(seed: int) -> Rows:
    rng = random.Random(seed)
    return [{"text": f"{rng.randrange(3000)} {rng.choice('xyz')}", "n": n} for n in range(COUNT)]


def without_repeats(rows: Rows) -> Rows:
    seen: set[str] = set()
    return [row for row in rows if not (row["text"] in seen or seen.add(row["text"]))]  # type: ignore[func-returns-value]  # a set's add gives None


def cases() -> dict[str, tuple[Any, dict[str, Any], Callable[[Rows], Rows]]]:
    """Return for each case a rule, its params, and what its rows should be by plain Python."""
    return {
        "filter": (filter, {"where": "n % 3 != 0"}, lambda rows: [r for r in rows if r["n"] % 3]),
        "transform": (
            transform,
            {},
            lambda rows: [{**r, "text": r["text"] + "!"} for r in rows if "x" not in r["text"]],
        ),
        "dedup": (dedup, {}, without_repeats),
    }


def run(
    name: str, made: Artifact, directory: Path, memo: dict[str, Fragment] | None = None
) -> Artifact:
    rule, params, _ = cases()[name]
    inputs: dict[str, Any] = {"dataset": made}
    if name == "transform":
        (directory / "rows.py").write_text(CODE)
        inputs["function"] = Function(directory / "rows.py", "change", "rows.py:change")
    ctx = context(directory, memo={} if memo is None else memo)
    return run_rule(rule, inputs, params, directory, ctx=ctx)


@pytest.mark.parametrize("name", cases())
def test_shards_are_those_of_the_rows_themselves(name: str, tmp_path: Path) -> None:
    rows = rows_of(1)
    made = run(name, make_dataset(tmp_path / "all", rows, "text"), tmp_path)
    expected = cases()[name][2](rows)
    assert 700 < len(expected) < COUNT
    assert made.digest == make_dataset(tmp_path / "expected", expected, "text").digest


@pytest.mark.parametrize("name", cases())
def test_edit_of_a_row_redoes_its_shard(name: str, tmp_path: Path) -> None:
    rows, memo = rows_of(1), dict[str, Fragment]()
    run(name, make_dataset(tmp_path / "all", rows, "text"), tmp_path, memo)
    before = len(memo)
    rows[2000] = {"text": "edited", "n": 2000}
    changed = make_dataset(tmp_path / "changed", rows, "text")
    made = run(name, changed, tmp_path, memo)
    # Its shard, and what joins that to its neighbours; of dedup its signatures too.
    assert 1 <= len(memo) - before <= 5 < before
    expected = cases()[name][2](rows)
    assert made.digest == make_dataset(tmp_path / "expected", expected, "text").digest


def test_parts_of_a_split_are_a_whole(tmp_path: Path) -> None:
    rows = rows_of(2)
    made = make_dataset(tmp_path / "all", rows, "text")
    parts = {}
    for part in ("train", "eval"):
        params = {"part": part, "fractions": {"train": 0.6, "eval": 0.4}}
        parts[part] = read_dataset(run_rule(split, {"dataset": made}, params, tmp_path))
    assert all(len(found) > 700 for found in parts.values())
    numbers = sorted(row["metadata"] for found in parts.values() for row in found)
    assert numbers == sorted(row["metadata"] for row in read_dataset(made))
    assert not {r["text"] for r in parts["train"]} & {r["text"] for r in parts["eval"]}


def test_signatures_are_compared_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_duplicates, "_MOST_NUMBERS", 100)  # 41 passes instead of one
    rows = rows_of(3)
    made = run("dedup", make_dataset(tmp_path / "all", rows, "text"), tmp_path)
    expected = without_repeats(rows)
    assert made.digest == make_dataset(tmp_path / "expected", expected, "text").digest


def test_what_a_function_remembers_of_other_shards_does_not_show(tmp_path: Path) -> None:
    code = "seen = []\ndef change(row):\n    seen.append(row)\n    return row if len(seen) < COUNT"
    file = tmp_path / "rows.py"
    file.write_text(code.replace("COUNT", str(COUNT)) + " else None\n")
    made = make_dataset(tmp_path / "all", rows_of(4), "text")
    assert len(list((made.path / "data").iterdir())) > 2
    inputs = {"dataset": made, "function": Function(file, "change", "rows.py:change")}
    assert run_rule(transform, inputs, {}, tmp_path).digest == made.digest
