"""`dpo`: direct preference optimization on pairs of completions.

    L = -log sigmoid(beta * ((log p(chosen) - log p(rejected)) - (the same of the reference)))

with log-probabilities in nats, summed over the tokens of a completion.
Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

The reference is what the policy was before the first step: with `adapter`, a frozen copy of that
adapter; with `lora`, `model` itself; with neither, a second copy of `model`.
"""

from typing import Any, Literal

from ftbuild.api import Context, Field, rule
from ftbuild_rules.training import _loop
from ftbuild_rules.training._settings import (
    PINS,
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    check,
    output_kind,
)


class DpoInputs(TrainingInputs):
    """A model and rows of the form `preference`."""


class DpoParams(TrainingParams):
    """How to train, and how far from the reference."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference; usually 0.1 to 0.5."""
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """`sigmoid` is DPO's own; `hinge` is SLiC-HF's (arXiv:2305.10425)."""


@rule(version=1, output=output_kind, pins=PINS, preload=PRELOAD, check=check, gpus=1)
def dpo(ctx: Context, inputs: DpoInputs, params: DpoParams) -> None:
    """Train a model, or an adapter of it, to prefer the chosen completions.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights. The
    reference is always the state before the first step.
    """
    run = _loop.prepare(ctx, inputs, params, form="preference", rule="dpo")
    _loop.make_deterministic(params)
    from trl import DPOConfig, DPOTrainer

    class Pretokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    model = _loop.load_policy(run)
    trainer = _loop.watched(Pretokenized, run, zero_is_wrong=params.loss == "sigmoid")(
        model=model,
        ref_model=_second_copy(run),
        args=DPOConfig(**_loop.trainer_arguments(run), beta=params.beta, loss_type=[params.loss]),
        **_loop.trainer_inputs(run),
    )
    _loop.train(run, trainer)
    _loop.save(run, trainer.model)


def _second_copy(run: _loop.Run) -> Any:
    """Return the reference of a full training; an adapter needs no second model."""
    if run.inputs.adapter is not None or run.params.lora is not None:
        return None
    import torch

    return _loop.load_base(run.inputs.model, torch.float32, run.params.attention)
