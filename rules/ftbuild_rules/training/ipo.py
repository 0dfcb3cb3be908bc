"""`ipo`: identity preference optimization on pairs of completions.

    L = (h(chosen) - h(rejected) - 1 / (2 * beta))^2
    h(y) = (log p(y) - log p_reference(y)) / |y|

with log-probabilities in nats, summed over the |y| tokens of a completion. The paper has no
division by |y|; its authors confirmed to TRL that its results were made with it.
Source: Azar et al. 2023, arXiv:2310.12036, eq. 17, where `beta` is called tau.

The reference is what the policy was before the first step, as in `dpo`.
"""

from ftbuild.api import Context, Field, rule
from ftbuild_rules.training import _run
from ftbuild_rules.training._dpo import train_pairs
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._other_tools import IPO_NAMES
from ftbuild_rules.training._reference import ReferencedInputs, check
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingParams,
    output_kind,
    pins,
)


class IpoInputs(ReferencedInputs):
    """A model and rows of the form `preference`."""


class IpoParams(TrainingParams):
    """How to train, and how far from the reference."""

    other_names = IPO_NAMES

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    beta: float = Field(0.1, gt=0)
    """The paper's tau: the mean log-ratio of a pair is drawn to 1 / (2 * beta), so a larger one
    holds the policy closer to the reference."""


@rule(version=3, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def ipo(ctx: Context, inputs: IpoInputs, params: IpoParams) -> None:
    """Train a model, or an adapter of it, to prefer the chosen completions by a fixed margin.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights. The
    reference is always the state before the first step.
    """
    run = _run.prepare(ctx, inputs, params, form="preference", rule="ipo")
    if done_in_processes(run, "ipo"):
        return
    _run.make_deterministic(params)
    train_pairs(run, inputs, zero_is_wrong=True, beta=params.beta, loss_type=["ipo"])
