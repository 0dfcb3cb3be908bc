"""The best weights, the early end, optimizers and schedules."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training import _checkpoints
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, sft_rows, warnings_of_libraries, without_card

pytestmark = warnings_of_libraries()
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A model, rows, and other rows: what is learned of the first soon harms the second."""
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": artifact(Model, make_model(folder / "model")),
        "data": artifact(Tokens, make_tokens(folder / "data", sft_rows())),
        "eval_data": artifact(Tokens, make_tokens(folder / "eval", sft_rows(6, seed=9))),
    }


def train(
    tmp_path: Path, inputs: dict[str, Artifact], ctx: RecordingContext | None = None, **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = ctx or context(tmp_path)
    length = {} if "max_steps" in params else {"epochs": 6}
    defaults = {"batch_size": 4, "learning_rate": 3e-2, "lora": LORA, "schedule": "constant"}
    return run_rule(sft, inputs, {**defaults, **length, **params}, tmp_path, ctx=ctx), ctx


def evaluated(ctx: RecordingContext) -> list[tuple[int, float]]:
    return [(step, m["eval_loss"]) for step, _, m in ctx.steps if "eval_loss" in m]


def test_best_weights_are_those_of_a_run_that_ends_there(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    kept, ctx = train(tmp_path, inputs, keep="best", evaluate_every=2)
    found = evaluated(ctx)
    assert [step for step, _ in found] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    step, loss = min(found, key=lambda each: each[1])
    assert step < 18
    assert (ctx.known["best_step"], ctx.known["eval_loss"]) == (step, loss)
    ended, _ = train(tmp_path, inputs, max_steps=step)
    assert without_card(kept) == without_card(ended)
    last, _ = train(tmp_path, inputs, evaluate_every=2)
    assert without_card(kept) != without_card(last)


def test_training_ends_after_evaluations_without_a_lower_loss(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    _, whole = train(tmp_path, inputs, evaluate_every=1)
    losses = [loss for _, loss in evaluated(whole)]
    end = next(n for n in range(2, 18) if min(losses[: n - 1]) <= min(losses[n - 1 : n + 1])) + 1
    stopped, ctx = train(tmp_path, inputs, evaluate_every=1, early_stopping=2)
    assert len(evaluated(ctx)) == ctx.known["steps"] == end < 18
    ended, _ = train(tmp_path, inputs, max_steps=end)
    assert without_card(stopped) == without_card(ended)


@pytest.mark.parametrize("lora", [LORA, None])
def test_resumed_run_keeps_the_same_best_and_ends_at_the_same_step(
    tmp_path: Path,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, Any] | None,
) -> None:
    params: dict[str, Any] = {
        "keep": "best",
        "evaluate_every": 2,
        "early_stopping": 2,
        "lora": lora,
    }
    whole, ctx = train(tmp_path, inputs, **params)
    best = ctx.known["best_step"]

    class Stops(RecordingContext):
        def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
            if (step, "eval_loss" in metrics) == stop:
                raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoints, "INTERVAL_S", 0.0)
    monkeypatch.setattr(_checkpoints, "SHARE", 0)
    for stop in (  # which `Stops` reads
        (best, False),
        (best, True),
        (best + 1, False),
        (best + 4, True),
    ):
        first = context(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, inputs, Stops(first.out, first.scratch), **params)
        again = RecordingContext(first.out, first.scratch)
        assert train(tmp_path, inputs, again, **params)[0].digest == whole.digest
        assert again.logs == [f"resuming from checkpoint-{stop[0] - 1}"]
        assert again.known["steps"] == ctx.known["steps"] == best + 4


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "lion_8bit", "ademamix", "adafactor", "sgd"])
def test_optimizer_trains_and_resumes_to_the_same_bytes(
    tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    given = {name: inputs[name] for name in inputs if name != "eval_data"}
    params: dict[str, Any] = {"optimizer": optimizer, "max_steps": 6, "learning_rate": 1e-2}
    whole, ctx = train(tmp_path, given, **params)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]

    class Stops(RecordingContext):
        def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
            if step == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoints, "INTERVAL_S", 0.0)
    monkeypatch.setattr(_checkpoints, "SHARE", 0)
    first = context(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, given, Stops(first.out, first.scratch), **params)
    again = RecordingContext(first.out, first.scratch)
    assert train(tmp_path, given, again, **params)[0].digest == whole.digest


@pytest.mark.parametrize(
    ("params", "rates"),
    [
        # 3e-2 * (0.1 + 0.9 * (1 + cos(pi * step / 4)) / 2), the rate with which a step is made
        (
            {"schedule": "cosine_with_min_lr", "schedule_settings": {"min_lr_rate": 0.1}},
            [0.03, 0.02604594, 0.0165, 0.00695406],
        ),
        # two cosines of two steps each
        (
            {"schedule": "cosine_with_restarts", "schedule_settings": {"num_cycles": 2}},
            [0.03, 0.015, 0.03, 0.015],
        ),
        (
            {"schedule": "polynomial", "schedule_settings": {"power": 2.0, "lr_end": 0.0}},
            [0.03, 0.016875, 0.0075, 0.001875],
        ),
    ],
)
def test_schedule_gives_the_rates_of_its_formula(
    tmp_path: Path, inputs: dict[str, Artifact], params: dict[str, Any], rates: list[float]
) -> None:
    given = {name: inputs[name] for name in inputs if name != "eval_data"}
    _, ctx = train(tmp_path, given, max_steps=4, **params)
    found = [metrics["learning_rate"] for _, _, metrics in ctx.steps]
    assert found == pytest.approx(rates, abs=1e-8)


@pytest.mark.parametrize(
    ("params", "attribute", "what"),
    [
        ({"keep": "best"}, "keep", "`keep` needs `eval_data` to measure on"),
        (
            {"early_stopping": 1},
            "early_stopping",
            "`early_stopping` needs `eval_data` to measure on",
        ),
        (
            {"evaluate_every": 1},
            "evaluate_every",
            "`evaluate_every` needs `eval_data` to measure on",
        ),
        (
            {"schedule": "linear", "schedule_settings": {"power": 2}},
            "schedule_settings",
            "the schedule `linear` has no `power`",
        ),
        (
            {"schedule": "warmup_stable_decay"},
            "schedule",
            "the schedule `warmup_stable_decay` needs `num_decay_steps`",
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(
    tmp_path: Path, inputs: dict[str, Artifact], params: dict[str, Any], attribute: str, what: str
) -> None:
    given = {name: inputs[name] for name in inputs if name != "eval_data"}
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, given, **params)
    assert (caught.value.attribute, caught.value.what) == (attribute, what)


def test_loss_on_held_out_rows_that_is_not_finite_stops(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    """A step so long that the weights it leaves give no number."""
    ctx = context(tmp_path)
    with pytest.raises(RuleError) as caught:
        train(tmp_path, inputs, ctx, learning_rate=1e38, evaluate_every=1)
    assert not list(ctx.out.iterdir())
    assert caught.value.render() == (
        "error[E0910]: the loss on `tokens` is nan after step 1; training stopped, nothing "
        "was kept\n"
        "  --> tokens\n"
        "  fix: lower `learning_rate`"
    )
