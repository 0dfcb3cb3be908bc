"""Where the weights that an adapter changes stand in the files of its base.

Mostly under the name that the loaded model gives them. Not so: experts, which Transformers holds
as one tensor a layer and most models store one by one (`mlp.experts.0.gate_proj.weight`, or
Mixtral's `block_sparse_moe.experts.0.w1.weight`), and files saved without the name of the body.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ftbuild_rules.models._adapter_delta import Delta, Deltas, Experts, for_experts, unfit
from ftbuild_rules.models._safetensors import TensorSpec

# How files name the experts' weights that a loaded model fuses, and which half of B is whose.
_GATE_UP = (("gate_proj", 0), ("up_proj", 1))
_MIXTRAL = (("w1", 0), ("w3", 1))
_FUSED = {
    "gate_up_proj": ("gate_up_proj", "input_linear.weight"),
    "down_proj": ("down_proj", "output_linear.weight"),
}
_IN_OUT_EXPERTS = ("gpt_oss", "llama4")
"""Models whose fused experts are stored as (expert, in, out)."""


def place(
    deltas: Deltas,
    base: Mapping[str, TensorSpec],
    config: Mapping[str, Any],
    *,
    new: Mapping[str, TensorSpec],
) -> dict[str, Delta]:
    """Return what an adapter changes by the name of the weight in the base's files.

    `new` are weights that the merged model has besides.

    Raises:
        RuleError: E0931: the base has no such weight, or not in that shape.
    """
    placed: dict[str, Delta] = {}
    for name, delta in deltas.by_name.items():
        if delta.experts is None:
            found = {(name if name in new else name_in_files(name, base)): delta}
        else:
            found = _experts(name, delta, deltas.settings, base, config)
        for place_, part in found.items():
            _require_shape(place_, part, {**base, **new}, vocabulary=new)
            placed[place_] = part
    return placed


def name_in_files(name: str, base: Collection[str]) -> str:
    """Return how the files call the weight `name` of the loaded model.

    Raises:
        RuleError: E0931: they have no such weight.
    """
    other = name.replace(".mlp.", ".block_sparse_moe.")
    for known in (name, other, name.partition(".")[2], other.replace(".gate.", ".router.layer.")):
        if known in base:
            return known
    raise unfit(name, "the model's files have no such weight")


def _experts(
    name: str,
    delta: Delta,
    settings: Mapping[str, Any],
    base: Mapping[str, TensorSpec],
    config: Mapping[str, Any],
) -> dict[str, Delta]:
    layer, _, parameter = name.rpartition(".experts.")
    stored = [layer, layer.replace(".mlp", ".block_sparse_moe")]
    for prefix in stored:
        for fused in _FUSED[parameter]:
            for known in (f"{prefix}.experts.{fused}", f"{prefix}.{fused}"):
                if known in base:
                    whole = for_experts(delta, base[known].shape[0], settings)
                    transposed = config.get("model_type") in _IN_OUT_EXPERTS
                    return {known: replace(whole, is_transposed=transposed)}
        count = len({m[1] for n in base if (m := re.match(rf"{prefix}\.experts\.(\d+)\.", n))})
        if count:
            whole = for_experts(delta, count, settings)
            return _one_by_one(f"{prefix}.experts", whole, parameter, base)
    raise unfit(name, "the model's files have no such weight")


def _one_by_one(
    prefix: str, whole: Delta, parameter: str, base: Mapping[str, TensorSpec]
) -> dict[str, Delta]:
    """Return the parts of `whole` for experts that have files' names of their own."""
    assert whole.pair is not None
    assert whole.experts is not None
    is_mixtral = f"{prefix}.0.w1.weight" in base
    out = whole.pair[1].spec.shape[0]
    if parameter == "down_proj":
        halves: tuple[tuple[str, tuple[int, int]], ...] = (
            ("w2" if is_mixtral else parameter, (0, out)),
        )
    else:
        halves = tuple(
            (part, (half * out // 2, (half + 1) * out // 2))
            for part, half in (_MIXTRAL if is_mixtral else _GATE_UP)
        )
    count = whole.experts.count
    return {
        name_in_files(f"{prefix}.{index}.{part}.weight", base): replace(
            whole, experts=Experts(count, index, rows)
        )
        for index in range(count)
        for part, rows in halves
    }


def _require_shape(
    name: str, delta: Delta, specs: Mapping[str, TensorSpec], *, vocabulary: Collection[str]
) -> None:
    """Refuse a change that has another shape than the weight; `vocabulary` may grow."""
    wanted, found = specs[name].shape, _shape(delta, specs[name])
    if wanted != found and not (name in vocabulary and wanted[1:] == found[1:]):
        raise unfit(name, f"its shape is {found}, the model's {wanted}")
    if delta.rows is not None:
        indices, values = delta.rows
        if len(indices) != values.spec.shape[0] or max(indices, default=0) >= wanted[0]:
            raise unfit(
                name,
                f"it has {values.spec.shape[0]} rows for the tokens {list(indices)}; the model "
                f"has {wanted[0]}",
            )
    if delta.magnitude is not None:
        length = found[1] if delta.is_transposed else found[0]
        if delta.magnitude.spec.shape != (length,):
            raise unfit(name, f"its magnitude has {delta.magnitude.spec.shape}, not {(length,)}")


def _shape(delta: Delta, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of the weight that `delta` is for."""
    if delta.pair is None:
        if delta.replacement is not None:
            return delta.replacement.spec.shape
        if delta.shift is not None:
            return delta.shift.spec.shape
        assert delta.rows is not None
        return (spec.shape[0], delta.rows[1].spec.shape[1])
    a, b = (stored.spec.shape for stored in delta.pair)
    out, into = b[0], a[1]
    if delta.experts is not None and delta.experts.rows is not None:
        out = delta.experts.rows[1] - delta.experts.rows[0]
    matrix = (into, out) if delta.is_transposed else (out, into)
    if delta.experts is not None and delta.experts.index is None:
        return (delta.experts.count, *matrix)
    return matrix
