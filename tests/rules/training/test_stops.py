"""What goes wrong stops each method within a step; what is no mistake does not."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.ipo import ipo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.pretrain import pretrain
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reward_model import reward_model
from ftbuild_rules.training.sft import sft
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    sft_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()
LORA = {"r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("given")
    rows: dict[str, list[dict[str, Any]]] = {
        "rows": sft_rows(4),
        "pairs": preference_rows(4),
        "steps": step_rows(4),
    }
    made = {
        name: make_tokens(folder / name, some, form="stepwise" if name == "steps" else None)
        for name, some in rows.items()
    }
    tokens = {name: artifact(Tokens, path) for name, path in made.items()}
    return {"model": artifact(Model, make_model(folder / "model")), **tokens}


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("rule", "data"),
    [
        (sft, "rows"),
        (pretrain, "rows"),
        (dpo, "pairs"),
        (ipo, "pairs"),
        (kto, "pairs"),
        (orpo, "pairs"),
        (reward_model, "pairs"),
        (prm, "steps"),
    ],
)
def test_weights_that_are_no_longer_finite_stop_the_next_step(
    tmp_path: Path, given: dict[str, Artifact], rule: Any, data: str, lora: dict[str, Any] | None
) -> None:
    ctx = context(tmp_path)
    params: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e38}
    params |= {} if lora is None else {"lora": lora}
    with pytest.raises(RuleError) as caught:
        run_rule(rule, {"model": given["model"], "data": given[data]}, params, tmp_path, ctx=ctx)
    what, where, *_ = caught.value.render().splitlines()
    assert what in [
        f"error[E0910]: the loss is {value} at step 2; training stopped, nothing was kept"
        for value in ("nan", "inf", "-inf")
    ]
    assert where.startswith("  --> tokens in rows ")
    rows = [int(row) for row in where.removeprefix("  --> tokens in rows ").split(", ")]
    assert set(rows) <= {0, 1, 2, 3}
    assert not list(ctx.out.iterdir())


def scaled(monkeypatch: pytest.MonkeyPatch, start: float) -> None:
    """Scale the loss as in float16, by torch's own scaler, which also works on a CPU."""
    import torch
    from accelerate import Accelerator

    begin = Accelerator.__init__

    def with_scaler(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=start)
        self.native_amp = True

    def unscale(self: Any, optimizer: Any = None) -> None:
        for each in self._optimizers:
            self.scaler.unscale_(each.optimizer)

    monkeypatch.setattr(Accelerator, "__init__", with_scaler)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)  # asks for the type float16


def test_step_that_is_left_out_for_its_scale_is_no_failure(
    tmp_path: Path, given: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^127 times gradients above 2 is beyond float32; the scale is halved until they fit."""
    scaled(monkeypatch, 2.0**127)
    ctx: RecordingContext = context(tmp_path)
    lora = {"r": 4, "alpha": 1000}
    params = {"batch_size": 4, "learning_rate": 1e-4, "max_steps": 16, "lora": lora}
    run_rule(sft, {"model": given["model"], "data": given["rows"]}, params, tmp_path, ctx=ctx)
    steps = [metrics for _, _, metrics in ctx.steps]
    left_out = ["grad_norm" not in metrics for metrics in steps]
    assert left_out[0]
    assert not left_out[-1]
    assert left_out == sorted(left_out, reverse=True)
    assert steps[0]["loss"] == steps[1]["loss"]  # nothing was learned
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_gradient_that_no_scale_makes_finite_stops(
    tmp_path: Path, given: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    scaled(monkeypatch, 1.0)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, *_, **__: torch.tensor(torch.inf)
    )
    monkeypatch.setattr(
        torch.amp.GradScaler,
        "_unscale_grads_",
        lambda *_: {torch.device("cpu"): torch.tensor(1.0)},
    )
    params = {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 12, "lora": LORA}
    with pytest.raises(RuleError, match="the gradient has the norm inf at step 1; training"):
        run_rule(sft, {"model": given["model"], "data": given["rows"]}, params, tmp_path)
