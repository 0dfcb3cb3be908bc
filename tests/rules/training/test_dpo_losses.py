"""`dpo` with each of TRL's losses, and `ipo`: against TRL, and against the papers' formulas."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.ipo import ipo
from preference_kit import LORA, load, plain_dpo, token_logps
from tiny_models import make_model, make_tokens, preference_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
BETA = 0.3
SMOOTHING = 0.2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("pairs") / "tokens"
    return artifact(Tokens, make_tokens(folder, preference_rows(), per_shard=3))


def train(
    tmp_path: Path, rule: Callable[..., Any], inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    length = {} if "max_steps" in params else {"epochs": 5}
    defaults = {"batch_size": 2, "learning_rate": 1e-2, **length}
    return run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def apart(policy: Any, reference: Any) -> list[tuple[float, float, int, int]]:
    """Return for each pair both log-ratios and both lengths."""
    found = []
    for row in preference_rows():
        new, old = (
            [math.fsum(token_logps(network, row["prompt_ids"], row[name])) for name in ROLES]
            for network in (policy, reference)
        )
        lengths = (len(row["chosen_ids"]), len(row["rejected_ids"]))
        found.append((new[0] - old[0], new[1] - old[1], *lengths))
    return found


ROLES = ("chosen_ids", "rejected_ids")
# loss -> the loss of one pair, of its two log-ratios c and r and of the two lengths
FORMULAS: dict[str, Callable[[float, float, int, int], float]] = {
    "sigmoid": lambda c, r, *_: -math.log(sigmoid(BETA * (c - r))),
    "hinge": lambda c, r, *_: max(0.0, 1 - BETA * (c - r)),
    "ipo": lambda c, r, m, n: (c / m - r / n - 1 / (2 * BETA)) ** 2,
    "nca_pair": lambda c, r, *_: (
        -math.log(sigmoid(BETA * c))
        - 0.5 * math.log(sigmoid(-BETA * c))
        - 0.5 * math.log(sigmoid(-BETA * r))
    ),
    "robust": lambda c, r, *_: (
        (
            -(1 - SMOOTHING) * math.log(sigmoid(BETA * (c - r)))
            + SMOOTHING * math.log(sigmoid(-BETA * (c - r)))
        )
        / (1 - 2 * SMOOTHING)
    ),
    "exo_pair": lambda c, r, *_: sum(
        sigmoid(z) * (math.log(sigmoid(z)) - math.log(p))
        for z, p in ((BETA * (c - r), 1 - SMOOTHING), (-BETA * (c - r), SMOOTHING))
    ),
    "bco_pair": lambda c, r, *_: -math.log(sigmoid(BETA * c)) - math.log(sigmoid(-BETA * r)),
    "sppo_hard": lambda c, r, *_: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
    "apo_zero": lambda c, r, *_: 1 - sigmoid(BETA * c) + sigmoid(BETA * r),
    "apo_down": lambda c, r, *_: sigmoid(BETA * c) + 1 - sigmoid(BETA * (c - r)),
    "sigmoid_norm": lambda c, r, m, n: -math.log(sigmoid(BETA * (c / m - r / n))),
}
SMOOTHED = ("robust", "exo_pair")


@pytest.mark.parametrize("loss", sorted(FORMULAS))
def test_loss_after_training_is_the_formula(
    tmp_path: Path, model: Artifact, pairs: Artifact, loss: str
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    smoothing = {"label_smoothing": SMOOTHING} if loss in SMOOTHED else {}
    made, ctx = train(
        tmp_path, dpo, inputs, lora=LORA, loss=loss, beta=BETA, max_steps=4, **smoothing
    )
    ratios = apart(load(model, made), load(model))
    assert max(abs(c) for c, *_ in ratios) > 0.1
    expected = sum(FORMULAS[loss](c, r, m, n) for c, r, m, n in ratios) / len(ratios)
    assert ctx.known["eval_loss"] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss": "aot", "label_smoothing": 0.1},
        {"loss": "aot_unpaired", "label_smoothing": 0.1},
        {"loss": "discopop"},
        {"loss": "sigmoid", "ld_alpha": 0.4},
    ],
)
def test_losses_equal_those_of_a_plain_trl_script(
    tmp_path: Path, model: Artifact, pairs: Artifact, settings: dict[str, Any]
) -> None:
    _, ctx = train(tmp_path, dpo, {"model": model, "data": pairs}, lora=LORA, **settings)
    loss = settings.pop("loss")
    named = [loss] if isinstance(loss, str) else loss
    expected = plain_dpo(model, tmp_path, lora=True, loss_type=named, **settings)
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def test_tail_of_the_longer_completion_counts_by_ld_alpha(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    made, ctx = train(tmp_path, dpo, inputs, lora=LORA, beta=BETA, ld_alpha=0.25, max_steps=4)
    policy, reference = load(model, made), load(model)
    terms = []
    for row in preference_rows():
        shared = min(len(row[name]) for name in ROLES)
        scores = []
        for name in ROLES:
            new, old = (token_logps(n, row["prompt_ids"], row[name]) for n in (policy, reference))
            ratios = [a - b for a, b in zip(new, old, strict=True)]
            scores.append(sum(ratios[:shared]) + 0.25 * sum(ratios[shared:]))
        terms.append(-math.log(sigmoid(BETA * (scores[0] - scores[1]))))
    assert ctx.known["eval_loss"] == pytest.approx(sum(terms) / len(terms), abs=1e-5)


@pytest.mark.parametrize("lora", [None, LORA])
def test_ipo_equals_a_plain_trl_script(
    tmp_path: Path, model: Artifact, pairs: Artifact, lora: dict[str, Any] | None
) -> None:
    params = {} if lora is None else {"lora": lora}
    made, ctx = train(tmp_path, ipo, {"model": model, "data": pairs}, beta=0.2, **params)
    assert isinstance(made, Adapter if lora else Model)
    expected = plain_dpo(model, tmp_path, lora=lora is not None, loss_type=["ipo"], beta=0.2)
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def test_ipo_starts_at_a_quarter_of_one_over_beta_squared_and_continues_an_adapter(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    """Equal policy and reference: (0 - 1 / (2 * 0.1))^2 = 25."""
    inputs = {"model": model, "data": pairs}
    adapter, first = train(tmp_path, ipo, inputs, lora=LORA)
    assert losses(first)[0] == pytest.approx(25.0, abs=1e-4)
    continued = {**inputs, "adapter": adapter, "eval_data": pairs}
    made, again = train(tmp_path, ipo, continued, max_steps=4)
    assert losses(again)[0] == pytest.approx(25.0, abs=1e-4)
    ratios = apart(load(model, made), load(model, adapter))
    expected = sum((c / m - r / n - 5.0) ** 2 for c, r, m, n in ratios) / len(ratios)
    assert again.known["eval_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("params", "attribute", "what"),
    [
        (
            {"label_smoothing": 0.1},
            "label_smoothing",
            "`label_smoothing` has no meaning for `sigmoid`",
        ),
        (
            {"loss": "exo_pair"},
            "loss",
            "`exo_pair` needs a `label_smoothing` above 0: its loss holds the logarithm of it",
        ),
        (
            {"loss": ["sigmoid", "sft"], "loss_weights": [1.0]},
            "loss_weights",
            "`loss_weights` has 1 numbers for 2 losses",
        ),
        (
            {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.0]},
            "loss_weights",
            "a weight in `loss_weights` is not above 0",
        ),
        ({"loss": ["ipo", "ipo"]}, "loss", "`loss` names a loss twice"),
        ({"loss": []}, "loss", "`loss` names no loss"),
        (
            {"loss": "sft"},
            "loss",
            "`sft` alone prefers nothing: it is the likelihood of the chosen completions",
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(
    tmp_path: Path,
    model: Artifact,
    pairs: Artifact,
    params: dict[str, Any],
    attribute: str,
    what: str,
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        run_rule(dpo, {"model": model, "data": pairs}, params, tmp_path)
    assert (caught.value.attribute, caught.value.what) == (attribute, what)
