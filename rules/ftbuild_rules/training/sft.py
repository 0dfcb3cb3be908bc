"""`sft`: supervised fine-tuning on token ids and labels.

The loss of a step is the mean of -log p(label) over its labels other than -100, in nats; all
micro-batches of a step share one denominator.
"""

from ftbuild.api import Context, Field, rule
from ftbuild_rules.training import _loop, _policy, _run
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._packing import train_documents
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    check,
    output_kind,
    pins,
)


class SftInputs(TrainingInputs):
    """A model and rows of the form `sft`, packed or not."""


class SftParams(TrainingParams):
    """How to train."""

    neftune_noise_alpha: float | None = Field(None, gt=0)
    """Adds noise of this size to the embeddings while training (NEFTune, arXiv:2310.05914);
    5 to 15 where it is wanted."""


@rule(version=3, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def sft(ctx: Context, inputs: SftInputs, params: SftParams) -> None:
    """Train a model, or an adapter of it, to write the labels.

    With `lora` a new adapter, with `adapter` that one further, with neither all weights.
    """
    run = _run.prepare(ctx, inputs, params, form="sft", rule="sft")
    if done_in_processes(run, "sft"):
        return
    _run.make_deterministic(params)
    model = _policy.load_policy(run)
    noise = params.neftune_noise_alpha
    _loop.save(run, train_documents(run, model, neftune_noise_alpha=noise))
