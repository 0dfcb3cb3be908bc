"""What a LoRA adapter does to the weights of its base, weight by weight.

W' = W + s B A, with s = alpha / r, or alpha / sqrt(r) for rsLoRA; the sum is float32 and rounded
once to the type of W. Rounding s B A first gives other bits than PEFT's `merge_and_unload`.
DoRA then brings each output row to its trained length: W'' = m / |W'| W'.
Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; Kalajdzievski 2023, arXiv:2312.03732;
Liu et al. 2024, arXiv:2402.09353, eq. 5.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ftbuild.api import Adapter, Place, RuleError
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors

WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Settings under which the adapter is no sum with the weights, or has no one sum.
_UNSUPPORTED = (
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "arrow_config",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)
# These begin by changing the base: an adapter that PEFT did not convert belongs to that other base.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga", "loraga")
# The parameters of fused experts, in the order in which a model registers them: PEFT wraps the
# first one innermost, and names only the depth.
_EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Experts:
    """Which part of a pair for all experts of a layer belongs to one weight in a file."""

    count: int
    index: int | None = None
    """Of the one expert; None for a weight that holds all of them."""
    rows: tuple[int, int] | None = None
    """Which of the rows of B: gate and up are trained as one and stored as two."""


@dataclass(frozen=True)
class Delta:
    """What becomes of one weight of the base, in the order of the fields."""

    replacement: StoredTensor | None = None
    """A module that was trained whole takes the weight's place."""
    pair: tuple[StoredTensor, StoredTensor] | None = None
    """The stored A and B."""
    scale: float = 1.0
    is_transposed: bool = False
    """The base keeps this weight as (in, out): embeddings, and GPT-2's layers."""
    magnitude: StoredTensor | None = None
    """Length of each output row (DoRA)."""
    shift: StoredTensor | None = None
    """Is added, scaled: the bias of B to the bias of the base."""
    rows: tuple[tuple[int, ...], StoredTensor] | None = None
    """Rows of an embedding that were trained by themselves, and their values."""
    experts: Experts | None = None


@dataclass(frozen=True)
class Deltas:
    """All that an adapter changes, by the name of the weight in the loaded model."""

    by_name: Mapping[str, Delta]
    keeps_tying: bool
    """The adapter was trained with input and output embeddings held equal."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = "adapter"


def read_deltas(adapter: Adapter) -> Deltas:
    """Return what `adapter` changes, without reading its values.

    Raises:
        RuleError: E0930: it cannot be folded into weights; E0931: a tensor has no counterpart.
    """
    settings = json.loads((adapter.path / "adapter_config.json").read_bytes())
    _refuse_what_is_no_sum(settings)
    stored = {t.spec.name: t for t in read_tensors(adapter.path / WEIGHTS_NAME)}
    deltas: dict[str, Delta] = {}
    for name in stored:
        for weight, changes in _parts(name, stored, settings):
            deltas[weight] = replace(deltas.get(weight, Delta()), **changes)
    for delta in deltas.values():
        if settings.get("use_dora") and delta.pair is not None and delta.magnitude is None:
            raise unfit(delta.pair[0].spec.name, "`use_dora` is set, and its magnitude is missing")
    rows = settings.get("trainable_token_indices")
    tied = bool(settings.get("ensure_weight_tying")) or (
        bool(rows) and not any(d.pair or d.replacement for n, d in deltas.items() if _is_ends(n))
    )
    return Deltas(deltas, tied, settings, adapter.label or "adapter")


def _is_ends(name: str) -> bool:
    return "embed" in name or "wte" in name or "lm_head" in name


def _refuse_what_is_no_sum(settings: Mapping[str, Any]) -> None:
    kind, init = settings.get("peft_type"), settings.get("init_lora_weights")
    unsupported = [name for name in _UNSUPPORTED if settings.get(name)]
    if kind != "LORA":
        what = f"peft_type = {kind}"
    elif unsupported:
        what = unsupported[0]
    elif isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        what = f"init_lora_weights = {init}"
    else:
        return
    raise RuleError(
        f"an adapter with `{what}` cannot be merged",
        code="E0930",
        where=Place(path="adapter_config.json"),
        why="what it does to the model is no sum with the weights of this base",
        fix="merge it with PEFT's `merge_and_unload` and bring the result in by `base_model`",
    )


def _parts(
    name: str, stored: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the weights that the adapter's tensor `name` changes, and how."""
    tensor = stored[name]
    plain = name.removeprefix(_PREFIX)
    module, _, rest = plain.partition(".lora_")
    if plain.endswith(".token_adapter.trainable_tokens_delta"):
        module = plain.removesuffix(".token_adapter.trainable_tokens_delta")
        yield f"{module}.weight", {"rows": (_token_indices(settings, module), tensor)}
    elif ".original_module." in plain:
        return  # PEFT saves the untrained embedding too where its size has changed
    elif not rest:
        for wrapper in (".token_adapter.", ".base_layer.", ".modules_to_save."):
            plain = plain.replace(wrapper, ".")
        yield plain, {"replacement": tensor}
    elif rest.startswith(("A", "embedding_A")):
        yield _pair(name, module, rest, stored, settings)
    elif rest.startswith("magnitude_vector"):
        yield f"{module}.weight", {"magnitude": tensor}
    elif rest == "B.bias":
        first = stored[name.replace(".lora_B.bias", ".lora_A.weight")]
        scale = _scale(settings, module, first.spec.shape[0])
        yield f"{module}.bias", {"shift": tensor, "scale": scale}
    elif not rest.startswith(("B", "embedding_B")):
        raise unfit(name, "its meaning is not known")


def _pair(
    name: str,
    module: str,
    rest: str,
    stored: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    partner = name.replace("lora_embedding_A", "lora_embedding_B").replace(".lora_A.", ".lora_B.")
    if partner not in stored:
        raise unfit(name, f"`{partner}` is missing")
    a, b = stored[name], stored[partner]
    rank = a.spec.shape[0]
    if rank != b.spec.shape[1]:
        raise unfit(name, f"its rank is {rank}, that of `{partner}` is {b.spec.shape[1]}")
    changes: dict[str, Any] = {
        "pair": (a, b),
        "is_transposed": "embedding" in rest or bool(settings.get("fan_in_fan_out")),
    }
    parameter = _parameter(module, settings)
    if parameter is None:
        return f"{module}.weight", changes | {"scale": _scale(settings, module, rank)}
    weight = f"{module.replace('.base_layer', '')}.{parameter}"
    if parameter in _EXPERT_PARAMETERS:  # a rank for each expert; how many the model says
        alpha = _by_pattern(settings.get("alpha_pattern") or {}, weight, settings["lora_alpha"])
        return weight, changes | {"experts": Experts(0), "scale": float(alpha)}
    return weight, changes | {"scale": _scale(settings, weight, rank)}


def _parameter(module: str, settings: Mapping[str, Any]) -> str | None:
    """Return the parameter that PEFT wrapped in `module`, if it wrapped parameters there."""
    targets = settings.get("target_parameters") or ()
    plain = module.replace(".base_layer", "")
    found = [
        parameter
        for parameter in (*_EXPERT_PARAMETERS, "weight")
        if any(f"{plain}.{parameter}".endswith(f".{target}") for target in targets)
        and (parameter == "weight") != plain.endswith("experts")
    ]
    depth = module.count(".base_layer")
    return found[len(found) - 1 - depth] if depth < len(found) else None


def _token_indices(settings: Mapping[str, Any], module: str) -> tuple[int, ...]:
    given = settings.get("trainable_token_indices") or ()
    if isinstance(given, Mapping):
        last = module.rpartition(".")[2]
        given = next((v for k, v in given.items() if k.rpartition(".")[2] == last), ())
    return tuple(int(index) for index in given)


def unfit(name: str, why: str) -> RuleError:
    """Return the error for an adapter's tensor that has no place in the model."""
    return RuleError(
        f"the adapter's tensor `{name}` does not fit the model",
        code="E0931",
        where=Place(path=WEIGHTS_NAME),
        why=why,
        fix="name the model that the adapter was trained on as `model`",
    )


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _by_pattern(settings.get("alpha_pattern") or {}, module, settings["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def for_experts(delta: Delta, count: int, settings: Mapping[str, Any]) -> Delta:
    """Return `delta`, whose pair is of fused experts, for a layer that has `count` of them."""
    assert delta.pair is not None
    rank, rest = divmod(delta.pair[0].spec.shape[0], count)
    if rest or not rank:
        raise unfit(
            delta.pair[0].spec.name,
            f"its {delta.pair[0].spec.shape[0]} rows are not for {count} experts",
        )
    scale = delta.scale / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return replace(delta, experts=Experts(count), scale=scale)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value whose pattern matches the end of a module's name, as PEFT does."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
