"""`pretrain`: on text, from the model's weights and from random ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.pretrain import pretrain
from preference_kit import LORA, load, plain_lora, plain_losses, plain_settings, token_logps
from tiny_models import (
    make_model,
    make_tokens,
    packed_rows,
    sft_rows,
    warnings_of_libraries,
    without_card,
)

pytestmark = warnings_of_libraries()
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


def documents() -> list[dict[str, list[int]]]:
    """Rows as `tokens` makes them of texts: every label is trained."""
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in sft_rows()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("texts") / "tokens"
    return artifact(Tokens, make_tokens(folder, packed_rows(documents())))


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 2, "learning_rate": 1e-2, "epochs": 10}
    return run_rule(pretrain, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


@pytest.mark.parametrize("lora", [None, LORA])
def test_losses_equal_those_of_a_plain_trl_script(
    tmp_path: Path, model: Artifact, texts: Artifact, lora: dict[str, Any] | None
) -> None:
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    params = {} if lora is None else {"lora": lora}
    made, ctx = train(tmp_path, {"model": model, "data": texts}, **params)
    assert isinstance(made, Adapter if lora else Model)
    set_seed(42)
    settings = plain_settings(
        tmp_path,
        num_train_epochs=10,
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    expected = plain_losses(
        SFTTrainer(
            str(model.path),
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list(packed_rows(documents())),
            peft_config=plain_lora() if lora else None,
        )
    )
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def test_loss_is_the_mean_over_the_documents_tokens_and_an_adapter_is_continued(
    tmp_path: Path, model: Artifact, texts: Artifact
) -> None:
    inputs = {"model": model, "data": texts, "eval_data": texts}
    made, ctx = train(tmp_path, inputs, lora={**LORA, "dropout": 0.0})
    network = load(model, made)
    terms = [
        value
        for row in documents()
        for value in token_logps(network, row["input_ids"][:1], row["input_ids"][1:])
    ]
    expected = -sum(terms) / len(terms)
    # Batches of another number of tokens are averaged as they are, hence all four rows in one.
    _, again = train(tmp_path, {**inputs, "adapter": made}, batch_size=4, epochs=1)
    assert losses(again)[0] == pytest.approx(expected, abs=1e-5)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]


def test_random_weights_have_the_size_that_config_says(
    tmp_path: Path, model: Artifact, texts: Artifact
) -> None:
    from transformers import AutoModelForCausalLM

    inputs = {"model": model, "data": texts}
    made, ctx = train(tmp_path, inputs, config=SMALL | {"num_key_value_heads": 1})
    config = json.loads((made.path / "config.json").read_text())
    assert {name: config[name] for name in SMALL} == SMALL
    network = AutoModelForCausalLM.from_pretrained(made.path)
    assert network.get_input_embeddings().weight.shape[1] == 16
    assert len(network.model.layers) == 1
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    assert (made.path / "tokenizer.json").read_bytes() == (
        model.path / "tokenizer.json"
    ).read_bytes()


def test_random_weights_follow_the_seed_and_not_the_model(
    tmp_path: Path, model: Artifact, texts: Artifact
) -> None:
    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    made = [
        train(tmp_path, {"model": base, "data": texts}, config={}, epochs=1, seed=seed)[0]
        for base, seed in ((model, 1), (other, 1), (model, 2))
    ]
    one, same, different = map(without_card, made)
    assert one == same != different


@pytest.mark.parametrize(
    ("params", "what"),
    [
        (
            {"config": {}, "lora": LORA},
            "`config` begins with random weights, and an adapter beside such learns nothing",
        ),
        (
            {"config": {"vocab_size": 7}},
            "`config.vocab_size` cannot be changed: the model gives architecture and tokenizer",
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(
    tmp_path: Path, model: Artifact, texts: Artifact, params: dict[str, Any], what: str
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        run_rule(pretrain, {"model": model, "data": texts}, params, tmp_path)
    assert (caught.value.attribute, caught.value.what) == ("config", what)


def test_setting_that_the_architecture_has_not_is_refused(
    tmp_path: Path, model: Artifact, texts: Artifact
) -> None:
    with pytest.raises(RuleError) as caught:
        train(tmp_path, {"model": model, "data": texts}, config={"n_layers": 2})
    assert caught.value.render() == (
        "error[E0912]: `config`: `llama` has no setting `n_layers`\n  fix: remove it"
    )


def test_context_that_config_shortens_holds_for_the_rows(
    tmp_path: Path, model: Artifact, texts: Artifact
) -> None:
    with pytest.raises(RuleError, match=r"the model reads at most 8$"):
        train(tmp_path, {"model": model, "data": texts}, config={"max_position_embeddings": 8})
