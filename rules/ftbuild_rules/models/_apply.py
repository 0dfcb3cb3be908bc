"""The sums themselves: a weight of the base and what is to be done to it, in float32.

A weight is worked on in pieces of whole rows, so that the largest piece, not the largest weight,
is held in memory; only what must see all of a weight at once (DoRA on a transposed weight, TIES,
DARE) takes it whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftbuild.api import RuleError
from ftbuild_rules.models._adapter_delta import Delta
from ftbuild_rules.models._pool import Slot
from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec
from ftbuild_rules.models._torch import TORCH_NAMES, load_rows, load_tensor, tensor_bytes

PIECE_VALUES = 1 << 22
"""How many values are worked on at once: 16 MiB of float32."""
_CACHED_VALUES = 1 << 17
"""How many of them at a time: half a MiB of float32, and twice that for a sum."""
_COPIED_BYTES = 1 << 18
_LEAST_ROWS = 32
_ONE_PASS = 256
"""Up to this rank a product is summed up in one go; measured with MKL, which splits 512."""
_ROOT = 2.0**63
"""Its square is a float32, and what is smaller than it is finite in any type."""


def pieces(spec: TensorSpec, *, is_whole: bool = False) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows in which a weight is worked on."""
    rows = spec.shape[0] if spec.shape else 1
    step = max(1, rows if is_whole else PIECE_VALUES // max(1, math.prod(spec.shape[1:])))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def start_of(spec: TensorSpec, rows: tuple[int, int]) -> int:
    """Return at which byte of a weight some of its rows begin."""
    return rows[0] * (spec.size_bytes // max(1, spec.shape[0] if spec.shape else 1))


def needs_whole(delta: Delta) -> bool:
    """Say whether the rows of a weight cannot be worked on by themselves."""
    return delta.magnitude is not None and delta.is_transposed


def changed_rows(
    delta: Delta, weight: StoredTensor, spec: TensorSpec, rows: tuple[int, int]
) -> Any:
    """Return some rows of the changed weight as a torch tensor of the type of `spec`.

    Raises:
        RuleError: E0933: a value is not finite.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES[spec.dtype])
    result = load_rows(delta.replacement or weight, rows).to(dtype)
    if delta.pair is not None:
        change = product(delta, rows)
        if delta.magnitude is None:
            # In place, float32 into the type of the weight: one rounding, of the sum.
            result += change.reshape(result.shape)
        else:
            result = _to_length(delta, result.float() + change, rows).to(dtype)
    elif delta.shift is not None:
        result += load_rows(delta.shift, rows).float() * delta.scale
    if delta.rows is not None:
        _put_rows(result, delta.rows, rows)
    return require_finite(result, spec.name)


def is_plain(delta: Delta, weight: StoredTensor, spec: TensorSpec) -> bool:
    """Say whether a weight is W + s B A and nothing else, so that `summed_rows` can give it."""
    is_pair = delta.pair is not None and delta.magnitude is None and delta.experts is None
    is_whole = delta.replacement is None and delta.rows is None and not delta.is_transposed
    is_float32 = spec.dtype in ("F32", "BF16", "F16")  # float64 holds more than the sum is made of
    return is_pair and is_whole and is_float32 and len(spec.shape) == 2 and weight.spec == spec


def copied_rows(weight: StoredTensor, rows: tuple[int, int], slot: Slot) -> Iterator[Any]:
    """Yield the bytes of some rows as they are, in the memory of `slot`."""
    import torch

    first, last = (start_of(weight.spec, (row, row)) for row in rows)
    data = tensor_bytes(slot.take("copied", (_COPIED_BYTES,), torch.uint8))
    sizes = (min(_COPIED_BYTES, last - at) for at in range(first, last, _COPIED_BYTES))
    yield from weight.fill((data[:size] for size in sizes), offset=first)


def summed_rows(
    delta: Delta, weight: StoredTensor, rows: tuple[int, int], slot: Slot
) -> Iterator[Any]:
    """Yield the bytes of some rows of W + s B A; the same as of `changed_rows`, but faster.

    From reading to rounding a block stays in the cache of a core. What is yielded lies in the
    memory of `slot` and is valid until the next one is asked for.

    Raises:
        RuleError: E0933: a value is not finite.
    """
    import torch

    spec, (first, last) = weight.spec, rows
    dtype, columns = getattr(torch, TORCH_NAMES[spec.dtype]), spec.shape[1]
    assert delta.pair is not None
    pair = delta.pair
    a, b = slot.keep(spec.name, lambda: [load_tensor(stored).float() for stored in pair])
    sizes = [stop - start for start, stop in _blocks(last - first, columns)]
    room = {size: _Room.of(slot, size, columns, dtype) for size in dict.fromkeys(sizes)}
    read = weight.fill((room[size].data for size in sizes), offset=first * columns * dtype.itemsize)
    for filled, size, some in zip(read, sizes, b[first:last].split(sizes), strict=True):
        there = room[size]
        there.total.copy_(there.values)
        _add_product(there.total, some, a, delta.scale, there.change)
        there.values.copy_(there.total)  # the one rounding, of the sum
        # No value is larger than the root of the sum of squares; a NaN is smaller than nothing.
        if not float(torch.dot(there.flat, there.flat)) < there.limit:
            require_finite(there.values, spec.name)
        yield filled


@dataclass(frozen=True, slots=True)
class _Room:
    """Where a block of a weight is worked on."""

    values: Any
    data: Any
    """The bytes of `values`."""
    total: Any
    """In float32."""
    flat: Any
    """The same in one dimension."""
    change: Any
    limit: float
    """All values are finite in the weight's type if the sum of their squares is below it."""

    @staticmethod
    def of(slot: Slot, rows: int, columns: int, dtype: Any) -> "_Room":
        import torch

        shape = (rows, columns)
        values = slot.take("values", shape, dtype)
        total, change = (slot.take(name, shape, torch.float32) for name in ("total", "change"))
        limit = min(torch.finfo(dtype).max, _ROOT) ** 2
        return _Room(values, tensor_bytes(values), total, total.view(-1), change, limit)


def _add_product(result: Any, b: Any, a: Any, scale: float, change: Any) -> None:
    """Add s B A to `result`, rounding the product, s times it, and the sum, as PEFT does."""
    import torch

    # Times a power of two is exact, and a rank that fits one pass is summed up before it is
    # added: then one call rounds as three do.
    if math.frexp(scale)[0] == 0.5 and 1 < a.shape[0] <= _ONE_PASS:
        torch.addmm(result, b, a, alpha=scale, out=result)
    else:
        result.add_(torch.mm(b, a, out=change).mul_(scale))


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks of some rows, none of them small unless it is all.

    A product of few rows is computed in another way, which may round otherwise.
    """
    step = max(_LEAST_ROWS, _CACHED_VALUES // max(1, columns))
    starts = [*range(0, max(1, rows - step + 1), step)]
    yield from zip(starts, [*starts[1:], rows], strict=True)


def require_finite(result: Any, name: str) -> Any:
    """Return `result`.

    Raises:
        RuleError: E0933: a value is not finite.
    """
    import torch

    # A sum shows NaN and infinity at a third of the cost; it may also be too large by itself.
    is_sound = result.sum(dtype=torch.float32).isfinite()
    if not is_sound and not result.isfinite().all():
        raise RuleError(
            f"the merged weight `{name}` holds NaN or infinite values",
            code="E0933",
            fix="merge into a model with a wider type, such as bfloat16 instead of float16",
        )
    return result


def product(delta: Delta, rows: tuple[int, int]) -> Any:
    """Return some rows of s B A in float32, laid out as the weight is."""
    assert delta.pair is not None
    a, b = (load_tensor(stored).float() for stored in delta.pair)
    first, last = rows
    experts = delta.experts
    if experts is not None:
        return _of_experts(delta, a, b, rows).mul_(delta.scale)
    found = (b @ a[:, first:last]).T if delta.is_transposed else b[first:last] @ a
    return found.mul_(delta.scale)


def _of_experts(delta: Delta, a: Any, b: Any, rows: tuple[int, int]) -> Any:
    """Return B_e A_e of one expert, or of each of the experts `rows`.

    PEFT keeps A of fused experts as (experts * rank, in), B as (out, rank * experts).
    """
    import torch

    assert delta.experts is not None
    count, index = delta.experts.count, delta.experts.index
    a_ERI = a.reshape(count, -1, a.shape[1])
    b_ORE = b.reshape(b.shape[0], -1, count)
    if index is not None:
        assert delta.experts.rows is not None
        offset = delta.experts.rows[0]
        return b_ORE[offset + rows[0] : offset + rows[1], :, index] @ a_ERI[index]
    some = slice(*rows)
    order = "ore,eri->eio" if delta.is_transposed else "ore,eri->eoi"
    return torch.einsum(order, b_ORE[:, :, some], a_ERI[some])


def _to_length(delta: Delta, summed: Any, rows: tuple[int, int]) -> Any:
    """Return the sum with each output row brought to its trained length."""
    import torch

    assert delta.magnitude is not None
    if delta.is_transposed:
        length = torch.linalg.norm(summed.T, dim=1)
        return (load_tensor(delta.magnitude).float() / length).view(1, -1) * summed
    length = torch.linalg.norm(summed, dim=1)
    return (load_rows(delta.magnitude, rows).float() / length).view(-1, 1) * summed


def _put_rows(
    result: Any, trained: tuple[tuple[int, ...], StoredTensor], rows: tuple[int, int]
) -> None:
    first, last = rows
    for position, index in enumerate(trained[0]):
        if first <= index < last:
            value = load_rows(trained[1], (position, position + 1))
            result[index - first] = value[0].to(result.dtype)
