"""`pretrain`: next tokens of plain text, from a model's weights or from random ones.

The loss of a step is the mean of -log p(token | all before it in its document), in nats; all
micro-batches of a step share one denominator.
"""

from collections.abc import Mapping
from typing import Any

from ftbuild.api import AttributeProblem, Context, Field, RuleError, rule
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.training import _loop, _policy, _run, _settings
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._packing import train_documents
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    output_kind,
    pins,
)

_FIXED = ("architectures", "auto_map", "model_type", "quantization_config", "vocab_size")
"""What makes it another architecture, or one that does not fit the tokenizer."""


class PretrainInputs(TrainingInputs):
    """A model and rows of the form `sft`, such as tokens of texts, packed or not."""


class PretrainParams(TrainingParams):
    """How to train, and from which weights."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    epochs: float = Field(1.0, gt=0)
    """How often each row is seen."""
    config: dict[str, bool | int | float | str] | None = None
    """Begin with random weights. The model gives architecture and tokenizer; these settings are
    laid over its `config.json`, as in `config = { hidden_size = 256, num_hidden_layers = 4 }`.
    An empty table leaves its size as it is."""


def check(kinds: Mapping[str, tuple[str, ...]], params: PretrainParams) -> None:
    """Refuse attributes that exclude each other.

    Raises:
        AttributeProblem: there are such.
    """
    _settings.check(kinds, params)
    if params.config is None:
        return
    if params.lora is not None or "adapter" in kinds:
        raise AttributeProblem(
            "config",
            "`config` begins with random weights, and an adapter beside such learns nothing",
            "remove it, or the adapter",
        )
    for name in sorted(set(params.config) & set(_FIXED)):
        raise AttributeProblem(
            "config",
            f"`config.{name}` cannot be changed: the model gives architecture and tokenizer",
            "name another model, or remove it",
        )


@rule(version=3, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def pretrain(ctx: Context, inputs: PretrainInputs, params: PretrainParams) -> None:
    """Train a model, or an adapter of it, on plain text; with `config` from random weights.

    With `lora` a new adapter, with `adapter` that one further, with neither all weights.
    """
    run = _run.prepare(ctx, inputs, params, form="sft", rule="pretrain", settings=params.config)
    if done_in_processes(run, "pretrain"):
        return
    _run.make_deterministic(params)
    load = _policy.load_base if params.config is None else _random(params.config)
    model = train_documents(run, _policy.load_policy(run, load))
    _loop.save(run, model, settings=params.config)


def _random(settings: Mapping[str, Any]) -> _policy.LoadModel:
    """Return what makes a model with random weights, drawn with the seed that is set.

    Raises:
        RuleError: E0912: there is no such setting, or they do not go together.
    """

    def load(model: Base, dtype: Any, attention: str) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model.path, local_files_only=True)
        for name in settings:
            if not hasattr(config, name):
                raise _wrong(f"`{config.model_type}` has no setting `{name}`", "remove it")
        try:
            config = AutoConfig.from_pretrained(model.path, local_files_only=True, **settings)
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention
            )
        except (ValueError, TypeError, ZeroDivisionError) as error:
            what = "the model cannot be made with these settings"
            raise _wrong(what, f"change them: {str(error).splitlines()[0]}") from error

    return load


def _wrong(what: str, fix: str) -> RuleError:
    return RuleError(f"`config`: {what}", code="E0912", fix=fix)
