"""The attributes that every training method has, under one name in all of them."""

from collections.abc import Mapping
from typing import Any, Literal

from ftbuild.api import (
    Adapter,
    Artifact,
    AttributeProblem,
    Field,
    Inputs,
    Model,
    Params,
    Tokens,
)
from ftbuild_rules.training._lora import Lora

PINS = ("torch", "transformers", "peft", "trl", "accelerate")
PRELOAD = ("torch", "transformers", "peft", "trl")


class TrainingInputs(Inputs):
    """What a method trains on."""

    model: Model
    """The base model, whose weights stay as they are when an adapter is trained."""
    adapter: Adapter | None = None
    """Continue this adapter of `model`."""
    data: Tokens
    """What to train on."""
    eval_data: Tokens | None = None
    """What to measure the loss on after each epoch."""


class TrainingParams(Params):
    """How a method trains."""

    epochs: float = Field(3.0, gt=0)
    """How often each row is seen."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many steps, instead of `epochs`."""
    batch_size: int = Field(8, ge=1)
    """Rows of one micro-batch."""
    gradient_accumulation: int = Field(1, ge=1)
    """Micro-batches of one step."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"
    ] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(0.0, ge=0)
    """Steps of warm-up; below 1, as a share of all steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizer."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"] = "adamw_torch_fused"
    """As Transformers names it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type to compute in. What is trained is kept in float32; with `bfloat16` the frozen
    weights are held in bfloat16 and the rest is mixed precision."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Implementation of attention."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    other_template: bool = False
    """Take tokens that were rendered by another chat template than the model's; the result then
    carries that one."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of the order of rows, of new weights and of dropout."""
    threads: int = Field(1, ge=1)
    """CPU threads. Their number changes the last digits of sums, so it does not follow the
    machine; one each is the fastest where several actions run at a time. With more, set
    `resources = { cpus = N }` as well."""
    lora: Lora | None = None
    """Train a new adapter with these settings."""


def output_kind(kinds: Mapping[str, tuple[str, ...]], params: Any) -> type[Artifact]:
    """An adapter where one is trained or continued, else the model itself."""
    return Adapter if params.lora is not None or "adapter" in kinds else Model


def check(kinds: Mapping[str, tuple[str, ...]], params: Any) -> None:
    """Refuse attributes that exclude each other."""
    if params.lora is not None and "adapter" in kinds:
        raise AttributeProblem(
            "lora",
            "`lora` makes a new adapter and `adapter` continues one; both cannot be",
            "remove `lora` to continue the adapter; to put a new one on top of it, `merge` it and "
            "name the merged model as `model`",
        )
    if params.max_steps is not None and "epochs" in params.model_fields_set:
        raise AttributeProblem(
            "max_steps", "`epochs` and `max_steps` exclude each other", "remove one of the two"
        )
    if params.lora is not None:
        _check_lora(params.lora)


def _check_lora(lora: Lora) -> None:
    if not lora.target_modules:
        raise AttributeProblem("lora", "`lora.target_modules` is empty", 'write "all-linear"')
    if "lm_head" in lora.target_modules and lora.target_modules != "all-linear":
        raise AttributeProblem(
            "lora",
            "`lm_head` cannot be adapted: the losses use its weights directly, so the adapter "
            "would never be trained",
            'remove it from `target_modules`, or train it whole: modules_to_save = ["lm_head"]',
        )
    if both := set(lora.modules_to_save) & set(lora.target_modules):
        raise AttributeProblem(
            "lora",
            f"`{min(both)}` stands in `target_modules` and in `modules_to_save`",
            "name it in one of the two",
        )
