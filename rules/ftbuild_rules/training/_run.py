"""One training as all methods see it: what it reads, how, and what is checked before it begins."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ftbuild.api import Adapter, Context, Model, RewardModel, Tokens
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.training._launch import is_launched, require_rows_whole
from ftbuild_rules.training._lora import Rows, require_base, require_source
from ftbuild_rules.training._machine import require_machine
from ftbuild_rules.training._settings import TrainingParams
from ftbuild_rules.training._shards import (
    Form,
    TokenRows,
    read_tokens,
    require_fit,
    require_one_template,
    require_template,
)
from ftbuild_rules.training._targets import require_targets


class MethodInputs(Protocol):
    """The inputs of every method; what `adapter` may be differs."""

    @property
    def model(self) -> Base: ...
    @property
    def adapter(self) -> Adapter | RewardModel | None: ...
    @property
    def quantized_from(self) -> Model | None: ...
    @property
    def data(self) -> Tokens: ...
    @property
    def eval_data(self) -> Tokens | None: ...


@dataclass(frozen=True)
class Run:
    """One training: what it reads, how, and whom it tells."""

    ctx: Context
    inputs: MethodInputs
    params: TrainingParams
    data: TokenRows
    eval_data: TokenRows | None
    rule: str
    token_rows: Rows | None = None
    """The rows of embeddings that `lora.trainable_tokens` stands for."""


def prepare(
    ctx: Context,
    inputs: MethodInputs,
    params: TrainingParams,
    *,
    form: Form,
    rule: str,
    settings: Mapping[str, Any] | None = None,
    room: int = 0,
) -> Run:
    """Check all that can be checked before a model is loaded; `settings` change its config.

    Behind each row there must be `room` for so many more tokens.

    Raises:
        RuleError: E0901 to E0907: tokens, model and adapter do not belong together; E0950: nor
            does the `lora` table; E0951, E0952, E0954: this machine
            cannot do what is asked for.
    """
    require_machine(params)
    if inputs.quantized_from is not None:
        require_source(inputs.quantized_from, inputs.model)
    if inputs.adapter is not None:
        require_base(inputs.adapter, inputs.model)
        require_rows_whole(params.launch, inputs.adapter.path)
    given = [tokens for tokens in (inputs.data, inputs.eval_data) if tokens is not None]
    rows = [read_tokens(tokens, form, rule=rule) for tokens in given]
    for each in rows:
        require_fit(each, inputs.model, settings=settings, room=room)
        if not params.other_template:
            require_template(each, inputs.model, inputs.adapter)
    require_one_template(rows)
    warn = ctx.warn if not is_launched() else _say_nothing  # who started the processes has said it
    token_rows = (
        None if params.lora is None else require_targets(params.lora, inputs.model, warn=warn)
    )
    return Run(ctx, inputs, params, rows[0], rows[1] if len(rows) > 1 else None, rule, token_rows)


def _say_nothing(_: str) -> None:
    """Take a warning that was given already."""


class Fixed(Protocol):
    """The attributes that numbers hang on."""

    @property
    def seed(self) -> int: ...
    @property
    def threads(self) -> int: ...


def make_deterministic(params: Fixed) -> None:
    """Fix all that may change numbers besides the library versions."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    transformers.set_seed(params.seed)
