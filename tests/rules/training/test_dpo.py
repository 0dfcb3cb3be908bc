"""`dpo`: the reference in each of its three forms, the loss against the paper's formula."""

import math
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.sft import sft
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    sft_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return artifact(Model, make_model(tmp_path / "model"))


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    return artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows(), per_shard=3))


@pytest.fixture
def adapter(tmp_path: Path, model: Artifact) -> Artifact:
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", sft_rows()))
    params = {"batch_size": 4, "learning_rate": 3e-2, "lora": LORA}
    return run_rule(sft, {"model": model, "data": tokens}, params, tmp_path)


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-2}
    return run_rule(dpo, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def completion_logps(network: Any, row: dict[str, list[int]], name: str) -> float:
    """Return log p(completion | prompt), summed over its tokens, in nats."""
    import torch

    ids = row["prompt_ids"] + row[name]
    with torch.no_grad():
        log_probs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    first = len(row["prompt_ids"])
    return sum(float(log_probs[place - 1, ids[place]]) for place in range(first, len(ids)))


def margin(network: Any, row: dict[str, list[int]]) -> float:
    return completion_logps(network, row, "chosen_ids") - completion_logps(
        network, row, "rejected_ids"
    )


def load(model: Artifact, adapter: Artifact | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.path)
    return (network if adapter is None else PeftModel.from_pretrained(network, adapter.path)).eval()


def formula(policy: Any, reference: Any, beta: float) -> float:
    """Rafailov et al. 2023, eq. 7, over all rows."""
    terms = []
    for row in preference_rows():
        z = beta * (margin(policy, row) - margin(reference, row))
        terms.append(math.log1p(math.exp(-z)))
    return sum(terms) / len(terms)


def test_continued_adapter_is_its_own_reference(
    tmp_path: Path, model: Artifact, adapter: Artifact, pairs: Artifact
) -> None:
    """At step 1 policy and reference are equal: ln 2, and no reward at all."""
    inputs = {"model": model, "adapter": adapter, "data": pairs, "eval_data": pairs}
    made, ctx = train(tmp_path, inputs, beta=0.3)
    first = ctx.steps[0][2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0.0, 0.0)
    expected = formula(load(model, made), load(model, adapter), 0.3)
    assert ctx.known["eval_loss"] == pytest.approx(expected, abs=1e-5)
    wrong = formula(load(model, made), load(model), 0.3)
    assert abs(wrong - expected) > 1e-3


def test_continued_adapter_keeps_its_base_and_no_copy_of_the_reference(
    tmp_path: Path, model: Artifact, adapter: Artifact, pairs: Artifact
) -> None:
    made, _ = train(tmp_path, {"model": model, "adapter": adapter, "data": pairs})
    assert isinstance(made, Adapter)
    assert sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*")) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "card.json",
        "chat_template.jinja",
    ]
    for name in ("base.json", "adapter_config.json"):
        assert (made.path / name).read_bytes() == (adapter.path / name).read_bytes()


def test_new_adapter_has_the_model_as_reference(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    made, ctx = train(tmp_path, inputs, lora=LORA)
    assert ctx.steps[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    expected = formula(load(model, made), load(model), 0.1)
    assert ctx.known["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_full_training_has_a_second_copy_as_reference(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    made, ctx = train(tmp_path, {"model": model, "data": pairs, "eval_data": pairs})
    assert isinstance(made, Model)
    assert ctx.steps[0][2]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    expected = formula(load(made), load(model), 0.1)
    assert ctx.known["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_hinge_loss_starts_at_one(tmp_path: Path, model: Artifact, pairs: Artifact) -> None:
    """relu(1 - beta * 0) = 1."""
    _, ctx = train(tmp_path, {"model": model, "data": pairs}, lora=LORA, loss="hinge")
    assert ctx.steps[0][2]["loss"] == 1.0


def test_losses_equal_those_of_a_plain_trl_script(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    class Pretokenized(DPOTrainer):  # type: ignore[misc]  # untyped library
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    _, ctx = train(tmp_path, {"model": model, "data": pairs}, lora=LORA, batch_size=2, epochs=5)
    set_seed(42)
    config = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=2,
        num_train_epochs=5,
        learning_rate=1e-2,
        bf16=False,
        activation_checkpointing=False,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Pretokenized(
        str(model.path),
        args=config,
        train_dataset=Dataset.from_list(preference_rows()),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear"
        ),
    )
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = [metrics["loss"] for _, _, metrics in ctx.steps]
    assert len(found) == 20
    assert found == pytest.approx(expected, abs=1e-5)


def test_adapter_and_lora_exclude_each_other(
    tmp_path: Path, model: Artifact, adapter: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "adapter": adapter, "data": pairs}
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, inputs, lora=LORA)
    assert (
        caught.value.what
        == "`lora` makes a new adapter and `adapter` continues one; both cannot be"
    )


def test_adapter_of_another_base_is_refused_before_a_model_is_loaded(
    tmp_path: Path, adapter: Artifact, pairs: Artifact
) -> None:
    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    (other.path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(RuleError, match="the adapter `adapter` was not trained on `model`"):
        train(tmp_path, {"model": other, "adapter": adapter, "data": pairs})
