"""An optimizer with settings of one's own makes the steps that PyTorch makes with them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import AttributeProblem, Model, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training._optimizer import check_optimizer
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
RATE = 2e-2
STEPS = 5


def adamw(parameters: Any) -> Any:
    import torch

    return torch.optim.AdamW(parameters, lr=RATE, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.0)


def sgd(parameters: Any) -> Any:
    import torch

    return torch.optim.SGD(parameters, lr=RATE, momentum=0.8, dampening=0.25)


def rmsprop(parameters: Any) -> Any:
    import torch

    return torch.optim.RMSprop(parameters, lr=RATE, alpha=0.5, momentum=0.3, eps=1e-3)


def adagrad(parameters: Any) -> Any:
    import torch

    return torch.optim.Adagrad(parameters, lr=RATE, lr_decay=0.5, eps=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "settings", "plain"),
    [
        ("adamw_torch", {"beta1": 0.5, "beta2": 0.6, "eps": 1e-3}, adamw),
        ("sgd", {"momentum": 0.8, "dampening": 0.25}, sgd),
        ("rmsprop", {"alpha": 0.5, "momentum": 0.3, "eps": 1e-3}, rmsprop),
        ("adagrad", {"lr_decay": 0.5, "eps": 1e-4}, adagrad),
    ],
)
def test_steps_are_those_of_pytorch(
    tmp_path: Path, optimizer: str, settings: dict[str, float], plain: Callable[[Any], Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = artifact(Model, make_model(tmp_path / "model"))
    rows = sft_rows(6)
    ctx = context(tmp_path)
    params = {"optimizer": optimizer, "optimizer_settings": settings, "learning_rate": RATE}
    run_rule(
        sft,
        {"model": model, "data": artifact(Tokens, make_tokens(tmp_path / "tokens", rows))},
        {**params, "batch_size": 6, "max_steps": STEPS, "schedule": "constant"},
        tmp_path,
        ctx=ctx,
    )
    network = AutoModelForCausalLM.from_pretrained(model.path)
    steps = plain(network.parameters())
    expected = []
    for _ in range(STEPS):
        terms = []
        for row in rows:
            log_probs = network(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            terms += [
                -log_probs[place - 1, label]
                for place, label in enumerate(row["labels"])
                if place > 0 and label != -100
            ]
        loss = torch.stack(terms).mean()
        expected.append(loss.item())
        steps.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        steps.step()
    assert losses(ctx) == pytest.approx(expected, abs=2e-5)
    assert len({*expected}) == STEPS


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


@pytest.mark.parametrize(
    ("optimizer", "settings", "what", "fix"),
    [
        ("adafactor", {"beta1": 0.9}, "the optimizer `adafactor` has no `beta1`", "it has none"),
        (
            "sgd",
            {"beta1": 0.9},
            "the optimizer `sgd` has no `beta1`",
            "it has `momentum`, `dampening`",
        ),
        (
            "adamw_torch",
            {"beta2": 1},
            "`beta2` should be at least 0 and less than 1; found 1",
            None,
        ),
        ("adamw_torch", {"eps": -1e-8}, "`eps` should be at least 0; found -1e-08", None),
        (
            "ademamix",
            {"t_alpha": 1e3},
            "`t_alpha` should be a whole number, at least 1; found 1000.0",
            None,
        ),
    ],
)
def test_settings_that_an_optimizer_has_not_are_refused(
    optimizer: str, settings: Mapping[str, float], what: str, fix: str | None
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        check_optimizer(optimizer, settings)
    assert (caught.value.attribute, caught.value.what) == ("optimizer_settings", what)
    assert caught.value.fix == fix
