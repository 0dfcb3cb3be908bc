"""What a LoRA adapter does to the weights of its base, tensor by tensor.

W' = W + s B A, with s = alpha / r, or alpha / sqrt(r) for rsLoRA; the sum is float32 and rounded
once to the type of W. Rounding s B A first gives other bits than PEFT's `merge_and_unload`.
Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; Kalajdzievski 2023, arXiv:2312.03732.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftbuild.api import Adapter, Place, RuleError
from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec, read_tensors
from ftbuild_rules.models._torch import TORCH_NAMES, load_tensor

_PREFIX = "base_model.model."
# Settings under which the adapter is more than s B A, or under other names.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "arrow_config",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)


@dataclass(frozen=True)
class Delta:
    """What becomes of one weight of the base."""

    replacement: StoredTensor | None = None
    """A module that was trained whole takes the weight's place."""
    pair: tuple[StoredTensor, StoredTensor] | None = None
    """The stored A and B."""
    scale: float = 1.0
    is_transposed: bool = False
    """The base keeps this weight as (in, out): embeddings, and GPT-2's layers."""


@dataclass(frozen=True)
class Deltas:
    """All that an adapter changes, by the name of the weight in the base's files."""

    by_name: Mapping[str, Delta]
    keeps_tying: bool
    """The adapter was trained with input and output embeddings held equal."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_deltas(adapter: Adapter) -> Deltas:
    """Return what `adapter` changes, without reading its values.

    Raises:
        RuleError: E0930: it is no plain LoRA; E0931: a tensor has no counterpart.
    """
    settings = json.loads((adapter.path / "adapter_config.json").read_bytes())
    unsupported = [name for name in _UNSUPPORTED if settings.get(name)]
    if settings.get("peft_type") != "LORA" or unsupported:
        what = unsupported[0] if unsupported else f"peft_type = {settings.get('peft_type')}"
        raise RuleError(
            f"an adapter with `{what}` cannot be merged",
            code="E0930",
            where=Place(path="adapter_config.json"),
            why="only LoRA and rsLoRA are known here",
            fix="merge it with PEFT's `merge_and_unload` and bring the result in by `base_model`",
        )
    stored = {t.spec.name: t for t in read_tensors(adapter.path / "adapter_model.safetensors")}
    deltas: dict[str, Delta] = {}
    for name, tensor in stored.items():
        module, _, rest = name.removeprefix(_PREFIX).partition(".lora_")
        if not rest:
            deltas[module.replace(".base_layer.", ".")] = Delta(replacement=tensor)
        elif rest.startswith(("A", "embedding_A")):
            partner = name.replace("lora_embedding_A", "lora_embedding_B").replace(
                ".lora_A.", ".lora_B."
            )
            if partner not in stored:
                raise _unfit(name, f"`{partner}` is missing")
            rank = tensor.spec.shape[0]
            deltas[f"{module}.weight"] = Delta(
                pair=(tensor, stored[partner]),
                scale=_scale(settings, module, rank),
                is_transposed="embedding" in rest or bool(settings.get("fan_in_fan_out")),
            )
        elif not rest.startswith(("B", "embedding_B")):
            raise _unfit(name, "its meaning is not known")
    return Deltas(deltas, bool(settings.get("ensure_weight_tying")), settings)


def _unfit(name: str, why: str) -> RuleError:
    return RuleError(
        f"the adapter's tensor `{name}` does not fit the model",
        code="E0931",
        where=Place(path="adapter_model.safetensors"),
        why=why,
        fix="name the model that the adapter was trained on as `model`",
    )


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _by_pattern(settings.get("alpha_pattern") or {}, module, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value whose pattern matches the end of a module's name, as PEFT does."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def require_places(deltas: Deltas, base: Mapping[str, TensorSpec], *, new: set[str]) -> None:
    """Refuse an adapter that changes a weight the base does not have, or not in that shape.

    Raises:
        RuleError: E0931.
    """
    for name, delta in deltas.by_name.items():
        shape = _shape(delta)
        if name in new:
            continue
        if name not in base:
            raise _unfit(name, "the model's files have no such weight")
        if base[name].shape != shape:
            raise _unfit(name, f"its shape is {shape}, the model's {base[name].shape}")


def _shape(delta: Delta) -> tuple[int, ...]:
    if delta.pair is None:
        assert delta.replacement is not None
        return delta.replacement.spec.shape
    a, b = (stored.spec.shape for stored in delta.pair)
    return (a[1], b[0]) if delta.is_transposed else (b[0], a[1])


def apply_delta(delta: Delta, weight: StoredTensor | None, spec: TensorSpec) -> Any:
    """Return the changed weight as a torch tensor of the type of `spec`.

    Raises:
        RuleError: E0933: a value is not finite.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES[spec.dtype])
    if delta.pair is None:
        assert delta.replacement is not None
        result = load_tensor(delta.replacement).to(dtype)
    else:
        assert weight is not None
        a, b = (load_tensor(stored).float() for stored in delta.pair)
        product = b @ a
        result = load_tensor(weight)
        # In place, float32 into the type of the weight: one rounding, of the sum.
        result += (product.T if delta.is_transposed else product) * delta.scale
    if not result.isfinite().all():
        raise RuleError(
            f"the merged weight `{spec.name}` holds NaN or infinite values",
            code="E0933",
            fix="merge into a model with a wider type, such as bfloat16 instead of float16",
        )
    return result
