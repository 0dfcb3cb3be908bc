"""Weights as bitsandbytes stores them: NF4 and FP4 by blocks, int8 by rows; the same bits, faster.

bitsandbytes looks each value up among 15 bounds by `torch.bucketize`. Here a table says for each
of 4,097 equal cells of [-1, 1] how many bounds lie below it; no cell holds more than one bound,
so one comparison with that bound gives the exact index. What is small (the blocks' scales) goes
through bitsandbytes itself.
Source: Dettmers et al. 2023, arXiv:2305.14314; Dettmers et al. 2022, arXiv:2208.07339.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

_CELLS = 2048  # on each side of 0; the bounds of FP4 around 0 are 0.0026 apart
_CHUNK = 1 << 16  # values worked on at a time, so that all in between stays in the cache
_SMALLEST = 1e-38  # what bitsandbytes divides by where a whole block is 0

FourBit = Literal["nf4", "fp4"]


class NotFinite(ValueError):
    """A weight holds NaN or infinite values, or overflows float16 on the way to int8."""


@dataclass(frozen=True)
class _Table:
    """Where a value in [-1, 1] falls among the bounds of a code."""

    below: Any
    """For each cell, how many bounds are below it."""
    bound: Any
    """For each cell, the bound within it, else infinity."""
    order: Any | None
    """From the place in the sorted code to the stored number; None where they are the same."""


@cache
def _table(kind: FourBit) -> _Table:
    import torch
    from bitsandbytes.functional import get_4bit_type

    code = get_4bit_type(kind, device="cpu")
    order = torch.argsort(code)
    bounds = (code[order[:-1]] + code[order[1:]]) / 2
    cells = _cells(bounds)
    assert cells.unique().numel() == cells.numel(), "two bounds in one cell"
    every = torch.arange(2 * _CELLS + 1)
    bound = torch.full((2 * _CELLS + 1,), float("inf"))
    bound[cells.long()] = bounds
    is_sorted = bool((order == torch.arange(16)).all())
    return _Table(
        below=(every.unsqueeze(1) > cells).sum(1).to(torch.uint8),
        bound=bound,
        order=None if is_sorted else order.to(torch.uint8),
    )


def _cells(scaled: Any) -> Any:
    """Return the cell of each value; larger values are never in a smaller cell."""
    import torch

    return (scaled * _CELLS).add_(_CELLS).to(torch.int32)


def _packed(scaled: Any, table: _Table) -> Any:
    """Return the numbers of values in [-1, 1], two to a byte, the first in the upper half."""
    import torch

    if scaled.numel() % 2:
        scaled = torch.nn.functional.pad(scaled, (0, 1))
    cells = _cells(scaled)
    numbers = table.below.index_select(0, cells)
    numbers += torch.gt(scaled, table.bound.index_select(0, cells)).view(torch.uint8)
    if table.order is not None:
        numbers = table.order.index_select(0, numbers.to(torch.int32))
    pairs = numbers.view(torch.int16)  # little-endian: the first of a pair is the low byte
    return ((pairs << 4) | (pairs >> 8)).to(torch.uint8)


def quantize_4bit(
    weight: Any, kind: FourBit, *, block_size: int, double: bool, threads: int = 1
) -> Any:
    """Return the packed numbers and the `QuantState` that bitsandbytes' `quantize_4bit` gives.

    Shapes: `weight` any shape of n values; the packed numbers are (ceil(n / 2), 1).

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    import torch
    from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise

    flat, table = weight.reshape(-1), _table(kind)
    count, full = flat.numel(), flat.numel() // block_size * block_size
    scales = torch.empty(-(-count // block_size))
    numbers = torch.empty(-(-count // 2), dtype=torch.uint8)

    def work(first: int) -> None:
        blocks = flat[first : min(first + _CHUNK, full)].float().view(-1, block_size)
        scale = blocks.abs().amax(-1)
        scales[first // block_size :][: len(scale)] = _finite(scale)
        scaled = blocks * (1.0 / scale.clamp(min=_SMALLEST)).view(-1, 1)
        packed = _packed(scaled.clamp_(-1, 1).reshape(-1), table)
        numbers[first // 2 :][: len(packed)] = packed

    _in_threads(work, range(0, full, _CHUNK), threads)
    if full < count:  # bitsandbytes divides the last, shorter block by its scale
        rest = flat[full:].float()
        scales[-1] = _finite(rest.abs().max()).clamp(min=_SMALLEST)
        numbers[full // 2 :] = _packed((rest / scales[-1]).clamp_(-1, 1), table)
    common = {
        "shape": weight.shape,
        "dtype": weight.dtype,
        "blocksize": block_size,
        "code": get_4bit_type(kind, device="cpu"),
        "quant_type": kind,
    }
    if not double:
        return numbers.unsqueeze(1), QuantState(absmax=scales, **common)
    offset = scales.mean()
    absmax, nested = quantize_blockwise(scales - offset, blocksize=256)
    return numbers.unsqueeze(1), QuantState(absmax=absmax, offset=offset, state2=nested, **common)


def quantize_8bit(weight: Any, *, threads: int = 1) -> tuple[Any, Any]:
    """Return the int8 values and the row scales that bitsandbytes' `Int8Params` gives.

    Shapes: `weight` is (out, in); the scales are (out,).

    Raises:
        NotFinite: a value is NaN or infinite, or does not fit into float16.
    """
    import torch

    rows, columns = weight.shape
    values = torch.empty((rows, columns), dtype=torch.int8)
    scales = torch.empty(rows)
    step = max(1, _CHUNK // max(1, columns))

    def work(first: int) -> None:
        half = weight[first : first + step].half().float()
        scale = half.abs().amax(1)
        scales[first : first + step] = _finite(scale)
        # A row of zeros gives 0 * inf, NaN, which bitsandbytes' conversion turns into 0.
        scaled = half.mul_((127.0 / scale).unsqueeze(1)).round_().nan_to_num_(nan=0.0)
        values[first : first + step] = scaled.to(torch.int8)

    _in_threads(work, range(0, rows, step), threads)
    return values, scales


def _finite(scale: Any) -> Any:
    """Return the largest absolute values as they are; NaN is larger than any."""
    if not scale.isfinite().all():
        raise NotFinite
    return scale


def _in_threads(work: Callable[[int], None], firsts: range, threads: int) -> None:
    """Call `work` on each number; each call writes its own part, so their order is nothing."""
    if threads == 1 or len(firsts) == 1:
        for first in firsts:
            work(first)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, firsts):
            pass


def stored_4bit(name: str, numbers: Any, state: Any) -> dict[str, Any]:
    """Return the tensors that Transformers saves for the weight `name`."""
    beside = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {name: numbers, **dict(sorted(beside.items()))}


def stored_8bit(name: str, values: Any, scales: Any) -> dict[str, Any]:
    """Return the tensors that Transformers saves for the weight `name`."""
    import torch

    module = name.removesuffix(".weight")
    by_row = torch.tensor(0, dtype=torch.uint8)
    return {name: values, f"{module}.SCB": scales, f"{module}.weight_format": by_row}


def sidecar_names(name: str, method: str) -> Iterator[str]:
    """Yield the names of all tensors that may stand for the weight `name`."""
    module = name.removesuffix(".weight")
    if method == "int8":
        yield from (name, f"{module}.SCB", f"{module}.weight_format")
        return
    yield name
    for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map"):
        yield f"{name}.{part}"
    yield f"{name}.quant_state.bitsandbytes__{method}"


def dequantize_4bit(numbers: Any, state: Any) -> Any:
    """Return the weight as a layer computes with it, in the type that it had."""
    from bitsandbytes.functional import dequantize_4bit as dequantized

    return dequantized(numbers, state)


def dequantize_8bit(values: Any, scales: Any) -> Any:
    """Return the weight in float32: each value is scale / 127 apart from the next."""
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(values, scales)
