"""LoRA adapters: the `lora` table, the files of an adapter, and what makes one unusable.

An adapter artifact is what PEFT loads: `adapter_config.json`, `adapter_model.safetensors`; and
`base.json` with the digest of the model it was trained on, so that another base is refused.
All three are canonical: sets sorted, no paths, no versions.
"""

import json
from pathlib import Path
from typing import Any, Literal

from ftbuild.api import (
    Adapter,
    Field,
    Params,
    Place,
    QuantizedModel,
    RewardModel,
    RuleError,
    canonical_json,
)
from ftbuild_rules.models._safetensors import write_tensors
from ftbuild_rules.models._torch import spec_of, tensor_bytes
from ftbuild_rules.quantization._dequantize import Base, about

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
BASE_NAME = "base.json"


class Lora(Params):
    """Which low-rank matrices to train beside the frozen weights."""

    r: int = Field(16, ge=1)
    """Rank of the two matrices of each adapted layer."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's inputs that is left out in each step."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt, or `all-linear`: all but the output layer."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732)."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Another rank for layers whose name matches."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Another alpha for layers whose name matches."""
    modules_to_save: tuple[str, ...] = ()
    """Layers to train whole and keep in the adapter, such as `embed_tokens`."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases to train."""


def lora_config(lora: Lora, *, task: str = "CAUSAL_LM", heads: tuple[str, ...] = ()) -> Any:
    """Return the table as PEFT's own configuration; `heads` are new layers, trained whole."""
    from peft import LoraConfig

    targets = lora.target_modules
    whole = list(lora.modules_to_save) or None
    return LoraConfig(
        task_type=task,
        r=lora.r,
        lora_alpha=_whole(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern={name: _whole(alpha) for name, alpha in lora.alpha_pattern.items()},
        modules_to_save=sorted({*lora.modules_to_save, *heads}) if heads else whole,
        exclude_modules=list(heads) or None,
        bias=lora.bias,
    )


def _whole(number: float) -> float:
    """Return 32.0 as 32: the form that other readers of `adapter_config.json` expect."""
    return int(number) if number == int(number) else number


def require_base(
    adapter: Adapter | RewardModel, model: Base, *, or_its_source: bool = False
) -> None:
    """Refuse an adapter that was trained on another model.

    With `or_its_source`, one trained on a quantized model also fits what that was made from.

    Raises:
        RuleError: E0906: the adapter names another base, or none.
    """
    path = adapter.path / BASE_NAME
    noted = json.loads(path.read_bytes()) if path.exists() else {}
    base, source = noted.get("base"), noted.get("quantized_from")
    if model.digest != base and not (or_its_source and model.digest == source):
        raise RuleError(
            f"the adapter `{adapter.label or 'adapter'}` was not trained on "
            f"`{model.label or 'model'}`",
            code="E0906",
            where=Place(path=BASE_NAME),
            why=f"its base has the digest {base}; this model has {model.digest}",
            fix="name the model that the adapter was trained on as `model`",
        )


def save_adapter(model: Any, out: Path, *, base: Base) -> None:
    """Write the adapter `default` of a PEFT model, trained on `base`, to `out`.

    Raises:
        RuleError: E0913: a value is not finite, or nothing was learned.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    _refuse_unusable(state)
    names = sorted(state)
    write_tensors(
        out / WEIGHTS_NAME,
        [spec_of(name, state[name]) for name in names],
        ([tensor_bytes(state[name].cpu())] for name in names),
    )
    (out / CONFIG_NAME).write_bytes(canonical_json(canonical_config(model.peft_config["default"])))
    noted = {"base": base.digest}
    if isinstance(base, QuantizedModel):
        noted["quantized_from"] = about(base)["source"]
    (out / BASE_NAME).write_bytes(canonical_json(noted))


def canonical_config(config: Any) -> dict[str, Any]:
    """Return a PEFT configuration as JSON that depends on its settings alone."""
    settings = {}
    for name, value in config.to_dict().items():
        if isinstance(value, set):
            value = sorted(value)
        if name == "modules_to_save" and value:
            value = sorted(set(value))  # PEFT adds the names of heads at each load
        settings[name] = getattr(value, "value", value)  # an enum's text
    settings.update(base_model_name_or_path=None, revision=None, inference_mode=True)
    settings.pop("peft_version", None)
    return settings


def _refuse_unusable(state: dict[str, Any]) -> None:
    for name, tensor in sorted(state.items()):
        if not tensor.isfinite().all():
            raise RuleError(
                f"the trained adapter holds NaN or infinite values in `{name}`",
                code="E0913",
                fix="lower `learning_rate`",
            )
    second = [tensor for name, tensor in state.items() if ".lora_B" in name]
    if second and not any(tensor.any() for tensor in second):
        raise RuleError(
            "the trained adapter is all zeros: it learned nothing",
            code="E0913",
            why="every B matrix still has its initial value 0",
            fix="raise `learning_rate`; with `warmup`, train for more steps than it takes",
        )
