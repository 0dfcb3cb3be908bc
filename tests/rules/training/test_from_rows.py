"""From raw rows to a trained model: what `tokens` writes is what each method reads."""

from pathlib import Path
from typing import Any

import pytest

from chat_kit import make_dataset
from ftbuild.api import Artifact, Model
from ftbuild.testing import artifact, context, run_rule
from ftbuild_rules.tokens.tokens import tokens
from ftbuild_rules.training._shards import Form, read_tokens, require_fit, require_template
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reward_model import reward_model
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()
SEGMENTS = [{"text": "Q: 1+1? A: ", "train": False}, {"text": "2", "train": True}]
# format -> its rows
ROWS: dict[str, list[Any]] = {
    "preference": [{"prompt": f"{n}+1?", "chosen": f"{n + 1}", "rejected": "?"} for n in range(6)],
    "unpaired": [
        {"prompt": f"{n}+1?", "completion": f"{n + 1}", "label": n % 2 == 0} for n in range(6)
    ],
    "stepwise": [
        {"prompt": f"{n}+1+1?", "completions": ["+1", "+1 again"], "labels": [True, n % 2 == 0]}
        for n in range(6)
    ],
    "segments": [{"segments": SEGMENTS}] * 4,
    "tokenized": [{"input_ids": [5, 6, 7, 2], "labels": [-100, 6, 7, 2]}] * 4,
    "prompt_completion": [{"prompt": "The sky is", "completion": " blue."}] * 4,
}
FORMS: dict[str, Form] = {
    "preference": "preference",
    "unpaired": "unpaired",
    "stepwise": "stepwise",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def made(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Return the tokens of each format's rows."""
    out = {}
    for name, rows in ROWS.items():
        here = tmp_path_factory.mktemp(name)
        inputs = {"dataset": make_dataset(here, rows, name), "model": model}
        out[name] = run_rule(tokens, inputs, {"max_length": 64}, here)
    return out


@pytest.mark.parametrize("name", list(ROWS))
def test_tokens_fit_the_model_that_made_them(
    name: str, model: Artifact, made: dict[str, Artifact]
) -> None:
    rows = read_tokens(made[name], FORMS.get(name, "sft"), rule="a test")
    require_fit(rows, model)
    require_template(rows, model)
    assert rows.num_rows == len(ROWS[name])


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (dpo, "preference"),
        (orpo, "preference"),
        (kto, "preference"),
        (reward_model, "preference"),
        (kto, "unpaired"),
        (prm, "stepwise"),
        (sft, "segments"),
        (sft, "tokenized"),
        (sft, "prompt_completion"),
    ],
)
def test_method_takes_a_step(
    rule: Any, name: str, model: Artifact, made: dict[str, Artifact], tmp_path: Path
) -> None:
    ctx = context(tmp_path)
    params = {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-2, "lora": {"r": 2, "alpha": 4}}
    run_rule(rule, {"model": model, "data": made[name]}, params, tmp_path, ctx=ctx)
    assert ctx.known["steps"] == 1
    assert ctx.known["rows"] == len(ROWS[name])
