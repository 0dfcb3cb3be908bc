"""`reward_model`: the loss against TRL and the formula, the head kept, what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RewardModel, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reward_model import reward_model
from preference_kit import LORA, plain_lora, plain_losses, plain_settings
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("pairs") / "tokens"
    return artifact(Tokens, make_tokens(folder, preference_rows(), per_shard=3))


def train(
    tmp_path: Path, inputs: dict[str, Artifact], rule: Any = reward_model, **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 2, "learning_rate": 1e-2, "epochs": 5}
    return run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def judge(model: Artifact, adapter: Artifact | None = None) -> Any:
    """Load what was trained with plain Transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(model.path, num_labels=1)
    return (network if adapter is None else PeftModel.from_pretrained(network, adapter.path)).eval()


def formula(network: Any, centering: float) -> float:
    import torch

    terms = []
    for row in preference_rows():
        chosen, rejected = (
            network(torch.tensor([row["prompt_ids"] + row[name]])).logits.item()
            for name in ("chosen_ids", "rejected_ids")
        )
        terms.append(math.log1p(math.exp(rejected - chosen)) + centering * (chosen + rejected) ** 2)
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("lora", [None, LORA])
def test_losses_equal_those_of_a_plain_trl_script(
    tmp_path: Path, model: Artifact, pairs: Artifact, lora: dict[str, Any] | None
) -> None:
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    params = {} if lora is None else {"lora": lora}
    made, ctx = train(tmp_path, {"model": model, "data": pairs}, centering=0.01, **params)
    assert isinstance(made, RewardModel)
    set_seed(42)
    rows = [
        {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}
        for row in preference_rows()
    ]
    expected = plain_losses(
        RewardTrainer(
            str(model.path),
            args=RewardConfig(**plain_settings(tmp_path, center_rewards_coefficient=0.01)),
            train_dataset=Dataset.from_list(rows),
            peft_config=plain_lora("SEQ_CLS", modules_to_save=["score"]) if lora else None,
        )
    )
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def test_whole_model_is_what_transformers_loads(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    made, ctx = train(tmp_path, inputs, centering=0.1)
    config = json.loads((made.path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert ctx.known["eval_loss"] == pytest.approx(formula(judge(made), 0.1), abs=1e-5)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]


def test_adapter_keeps_its_head_and_is_continued(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    made, ctx = train(tmp_path, inputs, lora={**LORA, "dropout": 0.0})
    assert sorted(p.name for p in made.path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "card.json",
        "chat_template.jinja",
    ]
    expected = formula(judge(model, made), 0.0)
    assert ctx.known["eval_loss"] == pytest.approx(expected, abs=1e-5)
    continued, again = train(tmp_path, {**inputs, "adapter": made}, batch_size=8)
    assert losses(again)[0] == pytest.approx(expected, abs=1e-5)
    assert isinstance(continued, RewardModel)
    for name in ("base.json", "adapter_config.json"):
        assert (made.path / name).read_bytes() == (continued.path / name).read_bytes()


def test_two_runs_give_the_same_bytes(tmp_path: Path, model: Artifact, pairs: Artifact) -> None:
    first, second = (
        train(tmp_path, {"model": model, "data": pairs}, lora=LORA, epochs=1)[0] for _ in "12"
    )
    assert first.digest == second.digest


def test_head_is_kept_in_float32_beside_coarse_weights(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    from safetensors.torch import load_file

    made, _ = train(
        tmp_path, {"model": model, "data": pairs}, lora=LORA, epochs=1, dtype="bfloat16"
    )
    tensors = load_file(made.path / "adapter_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32"}
    assert [n for n in tensors if n.endswith("score.weight")] == ["base_model.model.score.weight"]


def refused(tmp_path: Path, inputs: dict[str, Artifact], rule: Any = reward_model) -> str:
    with pytest.raises(RuleError) as caught:
        run_rule(rule, inputs, {}, tmp_path)
    return caught.value.render()


def test_adapter_of_another_base_is_refused(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    made, _ = train(tmp_path, {"model": model, "data": pairs}, lora=LORA, epochs=1)
    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    (other.path / "model.safetensors").write_bytes(b"never read")
    said = refused(tmp_path, {"model": other, "data": pairs, "adapter": made})
    assert said.splitlines()[0] == (
        "error[E0906]: the adapter `adapter` was not trained on `model`"
    )


def test_judge_of_another_sort_is_not_continued(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    steps = artifact(Tokens, make_tokens(tmp_path / "steps", step_rows(), form="stepwise"))
    of_steps, _ = train(tmp_path, {"model": model, "data": steps}, prm, lora=LORA, epochs=1)
    assert refused(tmp_path, {"model": model, "data": pairs, "adapter": of_steps}) == (
        "error[E0908]: `adapter` is no adapter that `reward_model` made\n"
        "  --> adapter_config.json\n"
        "  why: it is an adapter for TOKEN_CLS; an adapter for SEQ_CLS is needed\n"
        "  fix: name a target of the rule `reward_model` that has a `lora` table"
    )
    whole, _ = train(tmp_path, {"model": model, "data": pairs}, epochs=1)
    said = refused(tmp_path, {"model": model, "data": steps, "adapter": whole}, prm)
    assert said.splitlines()[2] == (
        "  why: it holds all weights; an adapter for TOKEN_CLS is needed"
    )
