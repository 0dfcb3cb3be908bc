"""Several adapters or models in one: each is what it adds to the base, d_i, weighted by w_i.

`linear`       W + sum w_i d_i (task arithmetic, Ilharco et al. 2022, arXiv:2212.04089)
`ties`         d_i keeps its largest values, the signs of the majority are summed up
               (Yadav et al. 2023, arXiv:2306.01708)
`dare_linear`, `dare_ties`   d_i keeps random values, scaled up (Yu et al. 2023, arXiv:2311.03099)
`slerp`        along the arc from the base to the one other model, w_1 of the way
               (Shoemake 1985)

What an adapter adds is its whole product B A, not A and B by themselves: so the sum of two
adapters is what both of them beside the base would give.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ftbuild.api import hash_value
from ftbuild_rules.models._adapter_delta import Delta
from ftbuild_rules.models._apply import (
    changed_rows,
    copied_rows,
    is_plain,
    needs_whole,
    pieces,
    product,
    require_finite,
    start_of,
    summed_rows,
)
from ftbuild_rules.models._pool import Slot
from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec
from ftbuild_rules.models._torch import TORCH_NAMES, load_rows, tensor_bytes

Method = Literal["linear", "ties", "dare_linear", "dare_ties", "slerp"]


@dataclass(frozen=True)
class Part:
    """An adapter or a model to be merged, and its weight."""

    by_name: Mapping[str, Delta]
    weight: float


@dataclass(frozen=True)
class Recipe:
    """How parts become one."""

    parts: Sequence[Part]
    method: Method = "linear"
    density: float = 1.0
    """Share of the values that TIES and DARE keep."""
    seed: int = 0

    def changes(self, name: str) -> bool:
        """Say whether any part changes the weight `name`."""
        return any(name in part.by_name for part in self.parts)


Values = Callable[[Slot], Iterable[Any]]
"""Gives bytes in pieces, each valid until the next one is asked for."""


def merged_pieces(
    recipe: Recipe, weight: StoredTensor, spec: TensorSpec
) -> Iterator[tuple[int, Values]]:
    """Yield where parts of the weight `spec` of the merged model begin, and what gives each.

    That raises:
        RuleError: E0933: a value is not finite.
    """
    if not recipe.changes(spec.name):
        for rows in pieces(spec):
            yield start_of(spec, rows), partial(copied_rows, weight, rows)
        return
    found = [
        (part.by_name[spec.name], part.weight) for part in recipe.parts if spec.name in part.by_name
    ]
    is_single = len(recipe.parts) == 1 and recipe.method == "linear" and found[0][1] == 1.0
    whole = recipe.method != "linear" or any(needs_whole(delta) for delta, _ in found)

    def piece(rows: tuple[int, int], slot: Slot) -> Iterable[Any]:
        if is_single and is_plain(found[0][0], weight, spec):
            yield from summed_rows(found[0][0], weight, rows, slot)
        elif is_single:
            yield tensor_bytes(changed_rows(found[0][0], weight, spec, rows))
        else:
            yield tensor_bytes(_combined(recipe, found, weight, spec, rows))

    for rows in pieces(spec, is_whole=whole):
        yield start_of(spec, rows), partial(piece, rows)


def _combined(
    recipe: Recipe,
    found: list[tuple[Delta, float]],
    weight: StoredTensor,
    spec: TensorSpec,
    rows: tuple[int, int],
) -> Any:
    import torch

    base = load_rows(weight, rows).float()
    added = (_added(delta, weight, spec, rows, base) for delta, _ in found)
    weights = [w for _, w in found]
    if recipe.method == "slerp":
        result = slerp(base, base + next(added), weights[0])
    elif recipe.method == "linear":
        result = base
        for w, change in zip(weights, added, strict=True):
            result.add_(change, alpha=w)
    else:
        torch.manual_seed(int(hash_value([recipe.seed, spec.name])[:15], 16))
        result = base + _sparse(recipe, list(added), weights)
    return require_finite(result.to(getattr(torch, TORCH_NAMES[spec.dtype])), spec.name)


def _added(
    delta: Delta, weight: StoredTensor, spec: TensorSpec, rows: tuple[int, int], base: Any
) -> Any:
    """Return what one part adds to some rows, in float32 and not yet weighted."""
    is_sum = delta.pair is not None and delta.magnitude is None and delta.rows is None
    if is_sum and delta.replacement is None:
        return product(delta, rows).reshape(base.shape)
    exact = TensorSpec(spec.name, "F32", spec.shape)
    return changed_rows(delta, weight, exact, rows) - base


def _sparse(recipe: Recipe, added: list[Any], weights: list[float]) -> Any:
    """Return the sum of what parts add, by PEFT's own functions."""
    import torch
    from peft.utils import merge_utils

    factors = torch.tensor(weights)
    if recipe.density == 1.0:  # nothing is dropped; PEFT warns of it
        if recipe.method == "dare_linear":
            return merge_utils.task_arithmetic(added, factors)
        stacked = torch.stack(added)
        mask = merge_utils.calculate_majority_sign_mask(stacked)
        weighted = stacked * merge_utils.reshape_weight_task_tensors(stacked, factors)
        return merge_utils.disjoint_merge(weighted, mask)
    return getattr(merge_utils, recipe.method)(added, factors, recipe.density)


def slerp(first: Any, second: Any, share: float) -> Any:
    """Return the tensor `share` of the way from `first` to `second` along their arc.

    Tensors in nearly the same or the opposite direction have no arc worth the name: they are
    mixed in a straight line.
    """
    import torch

    a, b = first.flatten().double(), second.flatten().double()
    norms = a.norm() * b.norm()
    cosine = torch.dot(a, b) / norms if norms > 0 else torch.tensor(1.0)
    if abs(cosine) > 0.9995:
        return (first.double() * (1 - share) + second.double() * share).float()
    angle = torch.arccos(cosine)
    mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return mixed.float().reshape(first.shape)
