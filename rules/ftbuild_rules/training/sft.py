"""`sft`: supervised fine-tuning on token ids and labels.

The loss of a step is the mean of -log p(label) over its labels other than -100, in nats; all
micro-batches of a step share one denominator.
"""

from ftbuild.api import Context, rule
from ftbuild_rules.training import _loop
from ftbuild_rules.training._settings import (
    PINS,
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    check,
    output_kind,
)


class SftInputs(TrainingInputs):
    """A model and rows of the form `sft`."""


class SftParams(TrainingParams):
    """How to train; nothing besides what all methods share."""


@rule(version=1, output=output_kind, pins=PINS, preload=PRELOAD, check=check, gpus=1)
def sft(ctx: Context, inputs: SftInputs, params: SftParams) -> None:
    """Train a model, or an adapter of it, to write the labels.

    With `lora` a new adapter, with `adapter` that one further, with neither all weights.
    """
    run = _loop.prepare(ctx, inputs, params, form="sft", rule="sft")
    _loop.make_deterministic(params)
    from trl import SFTConfig, SFTTrainer

    trainer = _loop.watched(SFTTrainer, run, zero_is_wrong=True)(
        model=_loop.load_policy(run),
        args=SFTConfig(**_loop.trl_arguments(run), dataset_kwargs={"skip_prepare_dataset": True}),
        **_loop.trl_inputs(run),
    )
    _loop.train(run, trainer)
    _loop.save(run, trainer.model)
