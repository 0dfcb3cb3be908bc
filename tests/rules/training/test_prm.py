"""`prm`: the loss against the formula and against a plain Trainer, what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RewardModel, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.prm import prm
from preference_kit import LORA, plain_losses, plain_settings
from tiny_models import make_model, make_tokens, sft_rows, step_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("steps") / "tokens"
    return artifact(Tokens, make_tokens(folder, step_rows(), per_shard=5, form="stepwise"))


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 2, "learning_rate": 1e-2, "epochs": 5}
    return run_rule(prm, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def judge(model: Artifact, adapter: Artifact | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForTokenClassification

    network = AutoModelForTokenClassification.from_pretrained(model.path, num_labels=2)
    return (network if adapter is None else PeftModel.from_pretrained(network, adapter.path)).eval()


def formula(network: Any, rows: list[dict[str, list[int]]]) -> float:
    """-log softmax(logits)[label] at the end of each step, row by row and without padding."""
    import torch

    terms = []
    for row in rows:
        with torch.no_grad():
            log_probs = network(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        terms += [
            -float(log_probs[place, label])
            for place, label in enumerate(row["labels"])
            if label != -100
        ]
    return sum(terms) / len(terms)


def test_losses_equal_those_of_a_plain_trainer(
    tmp_path: Path, model: Artifact, steps: Artifact
) -> None:
    """The trainer that TRL's recipe names, with the loss that Transformers has of its own."""
    from datasets import Dataset
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    made, ctx = train(tmp_path, {"model": model, "data": steps})
    assert isinstance(made, RewardModel)
    set_seed(42)
    trainer = Trainer(
        AutoModelForTokenClassification.from_pretrained(model.path, num_labels=2),
        args=TrainingArguments(**plain_settings(tmp_path)),
        train_dataset=Dataset.from_list(step_rows()),
        data_collator=DataCollatorForTokenClassification(AutoTokenizer.from_pretrained(model.path)),
    )
    expected = plain_losses(trainer)
    assert len(expected) == 30
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("lora", [None, LORA])
def test_loss_after_training_is_the_formula_on_what_was_saved(
    tmp_path: Path, model: Artifact, steps: Artifact, lora: dict[str, Any] | None
) -> None:
    inputs = {"model": model, "data": steps, "eval_data": steps}
    params = {} if lora is None else {"lora": lora}
    made, ctx = train(tmp_path, inputs, batch_size=12, **params)
    network = judge(made) if lora is None else judge(model, made)
    assert ctx.known["eval_loss"] == pytest.approx(formula(network, step_rows()), abs=1e-5)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    if lora is not None:
        _, again = train(tmp_path, {**inputs, "adapter": made}, batch_size=12)
        assert losses(again)[0] == pytest.approx(formula(network, step_rows()), abs=0.2)


def test_micro_batches_of_a_step_share_one_denominator(tmp_path: Path, steps: Artifact) -> None:
    """Without the dropout of 0.1 that Transformers puts before such a head unless told."""
    model = artifact(Model, make_model(tmp_path / "model", classifier_dropout=0.0))
    inputs = {"model": model, "data": steps}
    _, whole = train(tmp_path, inputs, batch_size=12)
    _, parts = train(tmp_path, inputs, batch_size=3, gradient_accumulation=4)
    assert losses(whole)[0] == pytest.approx(losses(parts)[0], abs=1e-6)
    assert losses(whole) == pytest.approx(losses(parts), abs=1e-4)


def test_two_runs_give_the_same_bytes(tmp_path: Path, model: Artifact, steps: Artifact) -> None:
    first, second = (
        train(tmp_path, {"model": model, "data": steps}, lora=LORA, epochs=1)[0] for _ in "12"
    )
    assert first.digest == second.digest


def refused(tmp_path: Path, model: Artifact, rows: list[dict[str, list[int]]], form: str) -> str:
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", rows, per_shard=5, form=form))
    with pytest.raises(RuleError) as caught:
        run_rule(prm, {"model": model, "data": tokens}, {}, tmp_path)
    return caught.value.render()


def test_rows_of_another_form_are_refused(tmp_path: Path, model: Artifact) -> None:
    assert refused(tmp_path, model, sft_rows(), "sft") == (
        "error[E0901]: `prm` needs tokens of the form `stepwise`; `tokens` has the form `sft`\n"
        "  --> tokens\n"
        "  why: its columns are input_ids, labels\n"
        "  fix: make `data` a `tokens` target whose dataset has the form `stepwise`"
    )


def test_label_that_is_no_judgement_is_refused(tmp_path: Path, model: Artifact) -> None:
    rows = step_rows()
    rows[7]["labels"][-1] = 2
    assert refused(tmp_path, model, rows, "stepwise") == (
        "error[E0904]: row 7 of `tokens` has the label 2; a step is 1 (right) or 0 (wrong), and "
        "-100 stands everywhere else\n"
        "  --> tokens in row 7\n"
        "  fix: mend the dataset's step labels"
    )


def test_row_without_a_step_is_refused(tmp_path: Path, model: Artifact) -> None:
    rows = step_rows()
    rows[6]["labels"] = [-100] * len(rows[6]["labels"])
    said = refused(tmp_path, model, rows, "stepwise").splitlines()[0]
    assert said == "error[E0905]: 1 of 12 rows of `tokens` have no label other than -100"


def test_one_step_that_is_judged_at_the_first_token_counts(tmp_path: Path, model: Artifact) -> None:
    """Unlike a label that is predicted, which needs a token before it."""
    rows = [{"input_ids": [5, 6], "labels": [1, -100]}]
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", rows, form="stepwise"))
    _, ctx = train(tmp_path, {"model": model, "data": tokens}, epochs=1)
    assert ctx.known["steps"] == 1
