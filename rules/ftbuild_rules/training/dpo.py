"""`dpo`: direct preference optimization on pairs of completions.

    L = -log sigmoid(beta * ((log p(chosen) - log p(rejected)) - (the same of the reference)))

with log-probabilities in nats, summed over the tokens of a completion.
Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

The reference is what the policy was before the first step: with `adapter`, a frozen copy of that
adapter; with `lora`, `model` itself; with neither, a second copy of `model`.
"""

import math
from collections.abc import Mapping
from typing import Literal

from ftbuild.api import AttributeProblem, Context, Field, rule
from ftbuild_rules.training import _reference, _run
from ftbuild_rules.training._dpo import train_pairs
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._other_tools import PREFERENCE_NAMES
from ftbuild_rules.training._reference import ReferencedInputs
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingParams,
    output_kind,
    pins,
)

Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
_SORTED = ("aot", "aot_unpaired")
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
"""The losses in which `label_smoothing` stands."""


class DpoInputs(ReferencedInputs):
    """A model and rows of the form `preference`."""


class DpoParams(TrainingParams):
    """How to train, and how far from the reference."""

    other_names = PREFERENCE_NAMES

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference; usually 0.1 to 0.5."""
    loss: Loss | tuple[Loss, ...] = "sigmoid"
    """One or several losses, as TRL names them. `sigmoid` is DPO's own, `hinge` SLiC-HF's
    (arXiv:2305.10425); a sum of several such as `["sigmoid", "bco_pair", "sft"]` is MPO
    (arXiv:2411.10442)."""
    loss_weights: tuple[float, ...] = ()
    """The weight of each loss in the sum; 1 each if not given."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs whose order is thought to be wrong: of `robust` (arXiv:2403.00409),
    `exo_pair` (arXiv:2402.00856), `aot` and `aot_unpaired` alone."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """The weight of the tokens with which the longer completion exceeds the shorter
    (LD-DPO, arXiv:2409.06411); 1 is as not given."""

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses as a tuple, however they are written."""
        return self.loss if isinstance(self.loss, tuple) else (self.loss,)


def check(kinds: Mapping[str, tuple[str, ...]], params: DpoParams) -> None:
    """Refuse attributes that exclude each other, or that no named loss has.

    Raises:
        AttributeProblem: there are such.
    """
    _reference.check(kinds, params)
    losses = params.losses
    if not losses or len(set(losses)) < len(losses):
        said = "names a loss twice" if losses else "names no loss"
        raise AttributeProblem("loss", f"`loss` {said}", 'write for example `loss = ["sigmoid"]`')
    _check_weights(params)
    if params.label_smoothing and not set(losses) & set(SMOOTHED):
        raise AttributeProblem(
            "label_smoothing",
            f"`label_smoothing` has no meaning for {_listed(losses)}",
            f"remove it, or name one of {_listed(SMOOTHED)} as `loss`",
        )
    if "exo_pair" in losses and not params.label_smoothing:
        raise AttributeProblem(
            "loss",
            "`exo_pair` needs a `label_smoothing` above 0: its loss holds the logarithm of it",
            "set `label_smoothing = 0.001`, as its paper does",
        )
    if set(losses) == {"sft"}:
        raise AttributeProblem(
            "loss",
            "`sft` alone prefers nothing: it is the likelihood of the chosen completions",
            'name another beside it, as in `loss = ["sigmoid", "sft"]`; or use the rule `sft`',
        )
    if params.launch is not None and (own := [loss for loss in losses if loss in _SORTED]):
        raise AttributeProblem(
            "launch",
            f"`{own[0]}` sorts the pairs of a micro-batch, and no process sees those of the others",
            "remove `launch`, or name another `loss`",
        )


def _check_weights(params: DpoParams) -> None:
    weights = params.loss_weights
    if not weights:
        return
    if len(weights) != len(params.losses):
        raise AttributeProblem(
            "loss_weights",
            f"`loss_weights` has {len(weights)} numbers for {len(params.losses)} losses",
            "give one for each loss",
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise AttributeProblem(
            "loss_weights", "a weight in `loss_weights` is not above 0", "leave that loss out"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@rule(version=3, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def dpo(ctx: Context, inputs: DpoInputs, params: DpoParams) -> None:
    """Train a model, or an adapter of it, to prefer the chosen completions.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights. The
    reference is always the state before the first step.
    """
    run = _run.prepare(ctx, inputs, params, form="preference", rule="dpo")
    if done_in_processes(run, "dpo"):
        return
    _run.make_deterministic(params)
    train_pairs(
        run,
        inputs,
        zero_is_wrong="hinge" not in params.losses,  # which is 0 where the margin is wide enough
        beta=params.beta,
        loss_type=list(params.losses),
        loss_weights=list(params.loss_weights) or None,
        label_smoothing=params.label_smoothing,
        ld_alpha=params.ld_alpha,
    )
