"""The attributes that every training method has, under one name in all of them."""

import re
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
    QuantizedModel,
    Tokens,
)
from ftbuild_rules.quantization._pins import LIBRARY, is_quantized
from ftbuild_rules.training._launch import (
    Launch,
    check_launch,
    check_rows_whole,
    check_whole,
)
from ftbuild_rules.training._lora import Lora
from ftbuild_rules.training._optimizer import check_optimizer, require_known
from ftbuild_rules.training._other_tools import TRAINING_NAMES, TRAINING_REMEDIES

_PINS = ("torch", "transformers", "peft", "trl", "accelerate")
PRELOAD = ("torch", "transformers", "peft", "trl")


class TrainingInputs(Inputs):
    """What a method trains on."""

    model: Model | QuantizedModel
    """The base model, whose weights stay as they are when an adapter is trained; a quantized one
    always does (QLoRA)."""
    adapter: Adapter | None = None
    """Continue this adapter of `model`."""
    quantized_from: Model | None = None
    """What `model` was quantized from, for `lora.init = "loftq"`."""
    data: Tokens
    """What to train on."""
    eval_data: Tokens | None = None
    """What to measure the loss on while training."""


class TrainingParams(Params):
    """How a method trains."""

    other_names = TRAINING_NAMES
    elsewhere = TRAINING_REMEDIES

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
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "polynomial",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    ] = "linear"
    """How the learning rate falls after the warm-up."""
    schedule_settings: dict[str, int | float] = Field(default_factory=dict)
    """What shapes the schedule, as Transformers names it: `num_cycles` of `cosine` and
    `cosine_with_restarts`, `min_lr_rate` of `cosine_with_min_lr`, `num_decay_steps` and
    `min_lr_ratio` of `warmup_stable_decay`, `lr_end` and `power` of `polynomial`, `timescale` of
    `inverse_sqrt`."""
    warmup: float = Field(0.0, ge=0)
    """Steps of warm-up; below 1, as a share of all steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizer."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    optimizer: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "adafactor",
        "ademamix",
        "lion_32bit",
        "lion_8bit",
        "adagrad",
        "rmsprop",
        "sgd",
    ] = "adamw_torch_fused"
    """As Transformers names it. Those of 8 bits hold their state in an eighth of the memory, the
    paged ones outside the GPU when it is full, for which there must be one."""
    optimizer_settings: dict[str, int | float] = Field(default_factory=dict)
    """What shapes the optimizer: `beta1`, `beta2` and `eps` of AdamW and AdEMAMix, which also has
    `beta3`, `alpha`, `t_alpha` and `t_beta3`; `beta1` and `beta2` of Lion; `momentum` and
    `dampening` of `sgd`; `momentum`, `alpha` and `eps` of `rmsprop`; `lr_decay` and `eps` of
    `adagrad`. Without it they are what Transformers has for them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type to compute in. What is trained is kept in float32; with the others the frozen
    weights are held in that type and the rest is mixed precision. `float16` needs a GPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention; `flash_attention_2` needs a GPU and the extra `flash-attn`."""
    liger: bool = False
    """Use Liger's kernels, which need a GPU and the extra `liger`: less memory and time."""
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
    launch: Launch | None = None
    """Train in several processes at once."""
    evaluate_every: int | None = Field(None, ge=1)
    """Measure the loss on `eval_data` every so many steps and at the end; each epoch if not
    given."""
    keep: Literal["last", "best"] = "last"
    """Which weights are the result: the last, or those with the lowest loss on `eval_data`."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row without a lower loss."""


SCHEDULE_SETTINGS: dict[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "warmup_stable_decay": ("min_lr_ratio", "num_cycles", "num_decay_steps", "num_stable_steps"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
}
"""The settings of each schedule that has some."""
NEEDED_SETTINGS = {
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Of which one must be given, or the schedule is another or none."""


_BITSANDBYTES_OPTIMIZERS = (
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "lion_32bit",
    "lion_8bit",
)
"""Those that Transformers takes from there."""


def pins(kinds: Mapping[str, tuple[str, ...]], params: Any) -> tuple[str, ...]:
    """Return torch, transformers, peft, trl and accelerate, and bitsandbytes, deepspeed,
    liger-kernel and flash-attn where a target uses them.
    """  # noqa: D205
    has_bitsandbytes = params.optimizer in _BITSANDBYTES_OPTIMIZERS or is_quantized(kinds)
    used = {
        LIBRARY: has_bitsandbytes,
        "deepspeed": params.launch is not None and params.launch.strategy == "deepspeed",
        "liger-kernel": params.liger,
        "flash-attn": params.attention == "flash_attention_2",
    }
    return (*_PINS, *(name for name, is_used in used.items() if is_used))


def output_kind(kinds: Mapping[str, tuple[str, ...]], params: Any) -> type[Artifact]:
    """An adapter where one is trained or continued, else the model itself."""
    return Adapter if params.lora is not None or "adapter" in kinds else Model


def check(kinds: Mapping[str, tuple[str, ...]], params: Any) -> None:
    """Refuse attributes that exclude each other."""
    if "quantized_model" in kinds["model"] and params.lora is None and "adapter" not in kinds:
        raise AttributeProblem(
            "model",
            "`model` is quantized, and quantized weights cannot be trained",
            "add `lora = { r = 16 }` to train an adapter; to train all weights, name the model "
            "that it was quantized from",
        )
    if params.lora is not None and "adapter" in kinds:
        raise AttributeProblem(
            "lora",
            "`lora` makes a new adapter and `adapter` continues one; both cannot be",
            "remove `lora` to continue the adapter; to put a new one on top of it, `merge` it and "
            "name the merged model as `model`",
        )
    if params.attention == "flash_attention_2" and params.dtype == "float32":
        raise AttributeProblem(
            "attention",
            "`flash_attention_2` does not compute in float32",
            'set `dtype = "bfloat16"`, or `attention = "sdpa"`',
        )
    if params.max_steps is not None and "epochs" in params.model_fields_set:
        raise AttributeProblem(
            "max_steps", "`epochs` and `max_steps` exclude each other", "remove one of the two"
        )
    _check_schedule(params)
    check_optimizer(params.optimizer, params.optimizer_settings)
    for name in ("evaluate_every", "keep", "early_stopping"):
        if name in params.model_dump(exclude_defaults=True) and "eval_data" not in kinds:
            raise AttributeProblem(
                name, f"`{name}` needs `eval_data` to measure on", "name tokens as `eval_data`"
            )
    if params.lora is not None:
        _check_lora(params.lora)
    _check_loftq(kinds, params.lora)
    _check_processes(kinds, params)


def _check_processes(kinds: Mapping[str, tuple[str, ...]], params: Any) -> None:
    if params.launch is None:
        return
    check_launch(params.launch, keep=params.keep)
    if params.lora is not None and params.lora.trainable_tokens:
        check_rows_whole(params.launch)
    if "quantized_model" in kinds["model"]:
        check_whole(params.launch)


def _check_schedule(params: Any) -> None:
    own = SCHEDULE_SETTINGS.get(params.schedule, ())
    for name in params.schedule_settings:
        require_known("schedule", params.schedule, name, own)
    needed = NEEDED_SETTINGS.get(params.schedule, ())
    if needed and not set(needed) & set(params.schedule_settings):
        raise AttributeProblem(
            "schedule",
            f"the schedule `{params.schedule}` needs `{needed[0]}`",
            f"set `schedule_settings = {{ {needed[0]} = … }}`",
        )


def _check_lora(lora: Lora) -> None:
    targets = lora.target_modules
    if not targets and not lora.target_parameters:
        raise AttributeProblem("lora", "`lora.target_modules` is empty", 'write "all-linear"')
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise AttributeProblem(
                "lora",
                f"`lora.target_modules` is no regular expression: {error}",
                'write names as a list, as in ["q_proj", "v_proj"]',
            ) from error
    elif "lm_head" in targets:
        raise AttributeProblem(
            "lora",
            "`lm_head` cannot be adapted: the losses use its weights directly, so the adapter "
            "would never be trained",
            'remove it from `target_modules`, or train it whole: modules_to_save = ["lm_head"]',
        )
    elif both := set(lora.modules_to_save) & set(targets):
        raise AttributeProblem(
            "lora",
            f"`{min(both)}` stands in `target_modules` and in `modules_to_save`",
            "name it in one of the two",
        )
    _check_start(lora)
    _check_rows(lora)


def _check_loftq(kinds: Mapping[str, tuple[str, ...]], lora: Lora | None) -> None:
    """Refuse to make up for what was not quantized, or for what is not known."""
    if lora is None or lora.init != "loftq":
        if "quantized_from" in kinds:
            raise AttributeProblem(
                "quantized_from",
                '`quantized_from` belongs to `lora.init = "loftq"`',
                "remove it, or set that",
            )
        return
    if "quantized_model" not in kinds["model"]:
        raise AttributeProblem(
            "lora",
            '`init = "loftq"` makes up for what quantizing changed, and `model` is not quantized',
            'name a `quantize` target as `model`, or use another `init` such as "pissa"',
        )
    if "quantized_from" not in kinds:
        raise AttributeProblem(
            "lora",
            '`init = "loftq"` needs the weights as they were before they were quantized',
            'name the model that `model` was quantized from as `quantized_from = "…"`',
        )
    if lora.dora:
        raise AttributeProblem(
            "lora", '`init = "loftq"` cannot be combined with `dora`', "remove one of the two"
        )


def _check_rows(lora: Lora) -> None:
    """Refuse rows to look at where none are, and ranks that looking at rows does not keep."""
    if lora.init_rows is not None and lora.init not in ("corda", "eva"):
        raise AttributeProblem(
            "lora",
            "`lora.init_rows` belongs to `corda` and `eva`",
            'remove it, or set init = "eva"',
        )
    if lora.init == "eva" and lora.rank_pattern:
        raise AttributeProblem(
            "lora",
            '`init = "eva"` gives all layers one rank',
            "remove `rank_pattern`, or use another `init`",
        )


def _check_start(lora: Lora) -> None:
    """Refuse a way to begin that these ranks do not have."""
    if lora.pissa_iterations is not None and lora.init != "pissa":
        raise AttributeProblem(
            "lora", "`lora.pissa_iterations` belongs to PiSSA", 'remove it, or set init = "pissa"'
        )
    odd = [rank for rank in (lora.r, *lora.rank_pattern.values()) if rank % 2]
    if lora.init == "orthogonal" and odd:
        raise AttributeProblem(
            "lora", f'`init = "orthogonal"` needs an even rank; found {odd[0]}', "add one"
        )
    if any(rank < 1 for rank in lora.rank_pattern.values()):
        raise AttributeProblem("lora", "a rank in `lora.rank_pattern` is below 1", "give 1 or more")
