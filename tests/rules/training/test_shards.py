"""What tokens are refused before a model is loaded: the weights here are no weights."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, preference_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    path = make_model(tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"never read")
    return artifact(Model, path)


def refused(
    tmp_path: Path, model: Artifact, rows: list[dict[str, list[int]]], rule: Any = sft
) -> str:
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", rows, per_shard=5))
    with pytest.raises(RuleError) as caught:
        run_rule(rule, {"model": model, "data": tokens}, {}, tmp_path)
    return caught.value.render()


def test_tokens_of_the_other_form(tmp_path: Path, model: Artifact) -> None:
    assert refused(tmp_path, model, sft_rows(), dpo) == (
        "error[E0901]: `dpo` needs tokens of the form `preference`; `tokens` has the form `sft`\n"
        "  --> tokens\n"
        "  why: its columns are input_ids, labels\n"
        "  fix: make `data` a `tokens` target whose dataset has the form `preference`"
    )


def test_row_longer_than_the_context(tmp_path: Path, model: Artifact) -> None:
    rows = sft_rows(8)
    rows[6] = {"input_ids": [5] * 65, "labels": [5] * 65}
    assert refused(tmp_path, model, rows) == (
        "error[E0903]: row 6 of `tokens` has 65 tokens; the model reads at most 64\n"
        "  --> tokens in row 6\n"
        "  fix: set `max_length = 64` on `tokens`"
    )


def test_pair_longer_than_the_context(tmp_path: Path, model: Artifact) -> None:
    rows = preference_rows(3)
    rows[2] = {"prompt_ids": [5] * 60, "chosen_ids": [5], "rejected_ids": [5] * 5}
    said = refused(tmp_path, model, rows, dpo).splitlines()[0]
    assert said == "error[E0903]: row 2 of `tokens` has 65 tokens; the model reads at most 64"


@pytest.mark.parametrize(("name", "value"), [("input_ids", 320), ("labels", 999), ("labels", -1)])
def test_id_outside_the_vocabulary(tmp_path: Path, model: Artifact, name: str, value: int) -> None:
    rows = sft_rows(8)
    rows[5][name][3] = value
    import json

    vocabulary = json.loads((model.path / "config.json").read_text())["vocab_size"]
    assert refused(tmp_path, model, rows).splitlines()[:2] == [
        f"error[E0904]: row 5 of `tokens` has the id {value} in `{name}`; the model's vocabulary "
        f"has {vocabulary}",
        "  --> tokens in row 5",
    ]


def test_rows_without_a_label(tmp_path: Path, model: Artifact) -> None:
    rows = sft_rows(9)
    rows[2]["labels"] = [-100] * len(rows[2]["labels"])
    rows[7]["labels"] = [rows[7]["input_ids"][0]] + [-100] * (len(rows[7]["labels"]) - 1)
    assert refused(tmp_path, model, rows) == (
        "error[E0905]: 2 of 9 rows of `tokens` have no label other than -100\n"
        "  --> tokens in row 2\n"
        "  fix: look at `ftbuild inspect tokens --row 2`; check `train_on` and `max_length`"
    )


def test_empty_row_has_no_label_either(tmp_path: Path, model: Artifact) -> None:
    rows = sft_rows(3)
    rows[1] = {"input_ids": [], "labels": []}
    said = refused(tmp_path, model, rows).splitlines()[0]
    assert said == "error[E0905]: 1 of 3 rows of `tokens` have no label other than -100"


def test_pair_without_a_completion(tmp_path: Path, model: Artifact) -> None:
    rows = preference_rows(7)
    rows[6]["rejected_ids"] = []
    assert refused(tmp_path, model, rows, dpo).splitlines()[:2] == [
        "error[E0905]: 1 of 7 rows of `tokens` have no completion to compare",
        "  --> tokens in row 6",
    ]


def test_rows_come_in_their_order_over_all_shards(tmp_path: Path) -> None:
    from ftbuild_rules.training._shards import read_tokens

    rows = sft_rows(23)
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", rows, per_shard=2))
    assert len(list((tokens.path / "data").iterdir())) == 12
    assert isinstance(tokens, Tokens)
    found = read_tokens(tokens, "sft", rule="sft").dataset(with_row=True)
    assert found["input_ids"][:] == [row["input_ids"] for row in rows]
    assert found["labels"][:] == [row["labels"] for row in rows]
    assert found["row"][:] == list(range(23))
