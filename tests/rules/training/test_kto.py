"""`kto`: the mismatched completions, the loss against TRL and the formula, what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training._shards import read_tokens
from ftbuild_rules.training._unpaired import take_apart, unpaired_dataset
from ftbuild_rules.training.kto import kto
from preference_kit import LORA, load, plain_lora, plain_losses, plain_settings, token_logps
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    warnings_of_libraries,
    without_card,
)

pytestmark = warnings_of_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("pairs") / "tokens"
    return artifact(Tokens, make_tokens(folder, preference_rows(), per_shard=3))


def unpaired_rows() -> list[dict[str, Any]]:
    """The pairs taken apart, the chosen before the rejected."""
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[name],
            "label": name == "chosen_ids",
        }
        for name in ("chosen_ids", "rejected_ids")
        for row in preference_rows()
    ]


def shuffled() -> list[dict[str, Any]]:
    from datasets import Dataset

    rows: list[dict[str, Any]] = Dataset.from_list(unpaired_rows()).shuffle(seed=42).to_list()
    return rows


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 5}
    return run_rule(kto, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def test_completions_are_turned_by_one_within_each_micro_batch(pairs: Artifact) -> None:
    assert isinstance(pairs, Tokens)
    data = read_tokens(pairs, "preference", rule="kto")
    found = unpaired_dataset(data, take_apart(data, batch_size=3, seed=42)).to_list()
    expected = shuffled()
    assert [{k: row[k] for k in expected[0]} for row in found] == expected
    own = [row["completion_ids"] for row in expected]
    turned = [own[i] for i in (2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10, 14, 12, 13, 15)]
    assert [row["KL_completion_ids"] for row in found] == turned
    assert [preference_rows()[row["row"]]["prompt_ids"] for row in found] == [
        row["prompt_ids"] for row in expected
    ]


@pytest.mark.parametrize(
    ("lora", "settings"),
    [
        (None, {}),
        (LORA, {"desirable_weight": 1.2, "undesirable_weight": 0.8}),
        (LORA, {"loss": "apo_zero_unpaired"}),
    ],
)
def test_losses_equal_those_of_a_plain_trl_script(
    tmp_path: Path,
    model: Artifact,
    pairs: Artifact,
    lora: dict[str, Any] | None,
    settings: dict[str, Any],
) -> None:
    """TRL itself makes the mismatched completions of the rows that stand in the same order."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import KTOConfig, KTOTrainer

    params = {} if lora is None else {"lora": lora}
    made, ctx = train(tmp_path, {"model": model, "data": pairs}, **params, **settings)
    assert isinstance(made, Adapter if lora else Model)

    class Pretokenized(KTOTrainer):  # type: ignore[misc]  # untyped library
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            def turn(examples: dict[str, Any]) -> dict[str, Any]:
                own = examples["completion_ids"]
                return {**examples, "KL_completion_ids": [own[-1], *own[:-1]]}

            return dataset.map(turn, batched=True, batch_size=4)

    loss = {"loss_type": settings.pop("loss")} if "loss" in settings else {}
    set_seed(42)
    config = plain_settings(
        tmp_path,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        **settings,
        **loss,
    )
    expected = plain_losses(
        Pretokenized(
            str(model.path),
            args=KTOConfig(**config),
            train_dataset=Dataset.from_list(shuffled()),
            peft_config=plain_lora() if lora else None,
        )
    )
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def test_loss_after_training_is_the_formula(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    """Ethayarajh et al. 2024, eq. 7 and 8, all completions in one micro-batch."""
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    made, ctx = train(tmp_path, inputs, lora=LORA, beta=0.3, batch_size=16)
    rows = shuffled()
    policy, reference = load(model, made), load(model)

    def ratio(prompt: list[int], completion: list[int]) -> float:
        new, old = (math.fsum(token_logps(n, prompt, completion)) for n in (policy, reference))
        return new - old

    mismatched = [
        ratio(row["prompt_ids"], rows[place - 1]["completion_ids"])
        for place, row in enumerate(rows)
    ]
    z = max(0.0, math.fsum(mismatched) / len(mismatched))
    terms = []
    for row in rows:
        h = ratio(row["prompt_ids"], row["completion_ids"])
        margin = h - z if row["label"] else z - h
        terms.append(1 - 1 / (1 + math.exp(-0.3 * margin)))
    assert ctx.known["eval_loss"] == pytest.approx(math.fsum(terms) / 16, abs=1e-5)
    assert losses(ctx)[0] == pytest.approx(0.5, abs=1e-6)  # policy and reference are equal


def test_adapter_is_continued_and_is_its_own_reference(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    made, _ = train(tmp_path, {"model": model, "data": pairs}, lora=LORA)
    continued, ctx = train(tmp_path, {"model": model, "data": pairs, "adapter": made})
    assert losses(ctx)[0] == pytest.approx(0.5, abs=1e-6)
    assert sorted(p.name for p in continued.path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "card.json",
        "chat_template.jinja",
    ]


def test_unpaired_tokens_train_as_the_pairs_that_they_were(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    folder = make_tokens(tmp_path / "apart", unpaired_rows(), per_shard=5, form="unpaired")
    inputs = {"model": model, "data": artifact(Tokens, folder)}
    apart, _ = train(tmp_path, inputs, lora=LORA, epochs=1)
    paired, _ = train(tmp_path, {"model": model, "data": pairs}, lora=LORA, epochs=1)
    assert without_card(apart) == without_card(paired)


def test_micro_batch_of_one_is_refused_but_where_there_is_no_kl_term(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs}
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, inputs, batch_size=1)
    assert (caught.value.attribute, caught.value.what) == (
        "batch_size",
        "`kto` needs a `batch_size` of 2 or more: its KL term is estimated from the other "
        "completions of the micro-batch",
    )
    train(tmp_path, inputs, batch_size=1, loss="apo_zero_unpaired", epochs=1, lora=LORA)


def test_completions_of_one_sort_are_refused(tmp_path: Path, model: Artifact) -> None:
    rows = [row for row in unpaired_rows() if row["label"]]
    tokens = artifact(Tokens, make_tokens(tmp_path / "apart", rows, form="unpaired"))
    with pytest.raises(RuleError) as caught:
        train(tmp_path, {"model": model, "data": tokens})
    assert caught.value.render() == (
        "error[E0905]: all 8 completions of `tokens` are wished for\n"
        "  fix: add rows of the other sort"
    )


def test_completion_that_is_empty_is_refused(tmp_path: Path, model: Artifact) -> None:
    rows = unpaired_rows()
    rows[9]["completion_ids"] = []
    tokens = artifact(Tokens, make_tokens(tmp_path / "apart", rows, form="unpaired"))
    with pytest.raises(RuleError) as caught:
        train(tmp_path, {"model": model, "data": tokens})
    assert caught.value.render().splitlines()[:2] == [
        "error[E0905]: 1 of 16 rows of `tokens` have no completion to compare",
        "  --> tokens in row 9",
    ]
