"""`orpo`, `simpo` and `cpo`: against TRL's experimental trainers and against the formulas."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.orpo import orpo
from preference_kit import LORA, load, plain_lora, plain_losses, plain_settings, token_logps
from tiny_models import make_model, make_tokens, preference_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("pairs") / "tokens"
    return artifact(Tokens, make_tokens(folder, preference_rows(), per_shard=3))


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 2, "learning_rate": 1e-2, "epochs": 5}
    return run_rule(orpo, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def tokenize_row(feature: dict[str, str], *_: Any) -> dict[str, list[int]]:
    """Return what TRL makes of a row, without its own tokens at both ends."""
    row = json.loads(feature["prompt"])
    found = {
        "prompt_input_ids": row["prompt_ids"],
        "prompt_attention_mask": [1] * len(row["prompt_ids"]),
    }
    for side in ("chosen", "rejected"):
        completion = row[f"{side}_ids"]
        found[f"{side}_input_ids"] = row["prompt_ids"] + completion
        found[f"{side}_attention_mask"] = [1] * len(found[f"{side}_input_ids"])
        found[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + completion
    return found


def plain(
    trainer_class: Any, config_class: Any, model: Artifact, directory: Path, **settings: Any
) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    lora = settings.pop("lora")

    class Pretokenized(trainer_class):  # type: ignore[misc]  # untyped library
        def tokenize_row(self, feature: dict[str, str], *_: Any) -> dict[str, list[int]]:
            return tokenize_row(feature)

    rows = [{"prompt": json.dumps(r), "chosen": "a", "rejected": "b"} for r in preference_rows()]
    set_seed(42)
    network = AutoModelForCausalLM.from_pretrained(model.path)
    return plain_losses(
        Pretokenized(
            network,
            args=config_class(**plain_settings(directory, max_length=64, **settings)),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model.path),
            peft_config=plain_lora() if lora else None,
        )
    )


@pytest.mark.parametrize("lora", [None, LORA])
def test_orpo_equals_trl(
    tmp_path: Path, model: Artifact, pairs: Artifact, lora: dict[str, Any] | None
) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    params = {} if lora is None else {"lora": lora}
    made, ctx = train(tmp_path, {"model": model, "data": pairs}, beta=0.3, **params)
    assert isinstance(made, Adapter if lora else Model)
    expected = plain(ORPOTrainer, ORPOConfig, model, tmp_path, beta=0.3, lora=lora)
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        ({"loss": "cpo"}, {"loss_type": "sigmoid"}),
        (
            {"loss": "simpo", "beta": 2.0, "gamma": 0.7},
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0},
        ),
        (
            {"loss": "simpo", "beta": 2.0, "nll_weight": 0.5},
            {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.5},
        ),
    ],
)
def test_simpo_and_cpo_equal_trl(
    tmp_path: Path,
    model: Artifact,
    pairs: Artifact,
    params: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    _, ctx = train(tmp_path, {"model": model, "data": pairs}, lora=LORA, **params)
    expected = plain(CPOTrainer, CPOConfig, model, tmp_path, lora=LORA, **settings)
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def log_odds(mean_logp: float) -> float:
    return mean_logp - math.log(1 - math.exp(mean_logp))


def orpo_formula(network: Any, beta: float) -> float:
    """Hong et al. 2024, eq. 4 to 7, all rows in one batch."""
    ratios, nll = [], []
    for row in preference_rows():
        prompt = row["prompt_ids"]
        chosen, rejected = (
            token_logps(network, prompt, row[name]) for name in ("chosen_ids", "rejected_ids")
        )
        x = log_odds(math.fsum(chosen) / len(chosen))
        y = log_odds(math.fsum(rejected) / len(rejected))
        ratios.append(math.log(1 + math.exp(y - x)))
        nll += [-value for value in token_logps(network, prompt[:1], prompt[1:]) + chosen]
    return math.fsum(nll) / len(nll) + beta * math.fsum(ratios) / len(ratios)


def simpo_formula(network: Any, beta: float) -> float:
    """Meng et al. 2024, eq. 6, with a margin of 0.5."""
    terms = []
    for row in preference_rows():
        chosen, rejected = (
            token_logps(network, row["prompt_ids"], row[name])
            for name in ("chosen_ids", "rejected_ids")
        )
        mean = math.fsum(chosen) / len(chosen) - math.fsum(rejected) / len(rejected)
        terms.append(math.log(1 + math.exp(0.5 - beta * mean)))
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize(("loss", "formula"), [("orpo", orpo_formula), ("simpo", simpo_formula)])
def test_loss_after_training_is_the_formula_and_the_adapter_is_continued(
    tmp_path: Path,
    model: Artifact,
    pairs: Artifact,
    loss: str,
    formula: Callable[[Any, float], float],
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    params = {"loss": loss, "beta": 1.5, "batch_size": 8}
    made, ctx = train(tmp_path, inputs, lora=LORA, **params)
    expected = formula(load(model, made), 1.5)
    assert ctx.known["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    _, again = train(tmp_path, {**inputs, "adapter": made}, **params)
    assert losses(again)[0] == pytest.approx(expected, abs=1e-5)


def test_two_runs_give_the_same_bytes(tmp_path: Path, model: Artifact, pairs: Artifact) -> None:
    first, second = (
        train(tmp_path, {"model": model, "data": pairs}, lora=LORA, epochs=1)[0] for _ in "12"
    )
    assert first.digest == second.digest


def test_log_of_one_minus_exp_keeps_its_digits_and_its_gradient() -> None:
    """At both ends, where the plain form is 0 or has lost all digits, computed with decimals."""
    import torch

    from ftbuild_rules.training.orpo import _log1mexp

    x = torch.tensor([-1e-8, -0.5, -2.0, -30.0], requires_grad=True)
    found = _log1mexp(x)
    found.sum().backward()
    assert found.tolist() == pytest.approx(
        [-18.420680748952364, -0.9327521295671886, -0.14541345786885906, -9.357622968840175e-14],
        rel=1e-6,
    )
    # d/dx log(1 - e^x) = -1 / (e^-x - 1)
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx(
        [-1e8, -1.5414940825367982, -0.15651764274966565, -9.357622968840263e-14], rel=1e-5
    )


def test_margin_of_simpo_is_refused_elsewhere(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        run_rule(orpo, {"model": model, "data": pairs}, {"gamma": 0.5}, tmp_path)
    assert (caught.value.attribute, caught.value.what) == (
        "gamma",
        "`gamma` has no meaning for `orpo`",
    )
