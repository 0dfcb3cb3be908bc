"""Weights as bitsandbytes stores them: NF4 and FP4 by blocks, int8 by rows; the same bits, faster.

bitsandbytes looks each value up among 15 bounds by `torch.bucketize`. Here a table says for each
of 4,097 equal cells of [-1, 1] how many bounds lie below it; no cell holds more than one bound,
so one comparison with that bound gives the exact index. What is small (the blocks' scales) goes
through bitsandbytes itself.
Source: Dettmers et al. 2023, arXiv:2305.14314; Dettmers et al. 2022, arXiv:2208.07339.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ftbuild_rules.quantization._error import stretches
from ftbuild_rules.quantization._threads import in_threads

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


class _Packer:
    """Gives the numbers of values in [-1, 1], two to a byte, the first in the upper half.

    It keeps what lies in between, `size` values each, for the next call: memory that is new for
    each chunk costs more than what is computed in it.
    """

    def __init__(self, kind: FourBit, size: int) -> None:
        import torch

        self._table = _table(kind)
        self._float = torch.empty(size)
        self._cell = torch.empty(size, dtype=torch.int32)
        self._number = torch.empty(size, dtype=torch.uint8)
        self._above = torch.empty(size, dtype=torch.bool)

    def pack(self, scaled: Any, out: Any) -> None:
        """Write the numbers of an even count of values to the bytes `out`."""
        import torch

        count, table = scaled.numel(), self._table
        between, cells = self._float[:count], self._cell[:count]
        numbers, above = self._number[:count], self._above[:count]
        cells.copy_(torch.mul(scaled, _CELLS, out=between).add_(_CELLS))
        torch.index_select(table.below, 0, cells, out=numbers)
        torch.gt(scaled, torch.index_select(table.bound, 0, cells, out=between), out=above)
        numbers += above.view(torch.uint8)
        if table.order is not None:
            numbers = table.order.index_select(0, cells.copy_(numbers))
        pairs = numbers.view(torch.int16)  # little-endian: the first of a pair is the low byte
        out.copy_((pairs << 4).bitwise_or_(pairs >> 8))


def quantize_4bit(
    weight: Any, kind: FourBit, *, block_size: int, double: bool, threads: int = 1, out: Any = None
) -> Any:
    """Return the packed numbers and the `QuantState` that bitsandbytes' `quantize_4bit` gives.

    Shapes: `weight` any shape of n values; the packed numbers are (ceil(n / 2), 1), in the
    memory of `out` where that is given: bytes, at least as many.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    import torch
    from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise

    flat = weight.reshape(-1)
    count, full = flat.numel(), flat.numel() // block_size * block_size
    size = -(-count // 2)
    scales = torch.empty(-(-count // block_size))
    numbers = torch.empty(size, dtype=torch.uint8) if out is None else out[:size]

    def worker() -> Callable[[int], None]:
        packer, values, between = _Packer(kind, _CHUNK), torch.empty(_CHUNK), torch.empty(_CHUNK)

        def work(first: int) -> None:
            last = min(first + _CHUNK, full)
            blocks = values[: last - first].copy_(flat[first:last]).view(-1, block_size)
            other = between[: last - first].view(-1, block_size)
            scale = scales[first // block_size : last // block_size]
            torch.amax(torch.abs(blocks, out=other), -1, out=scale)
            by = (1.0 / _finite(scale).clamp(min=_SMALLEST)).view(-1, 1)
            scaled = torch.mul(blocks, by, out=other).clamp_(-1, 1).view(-1)
            packer.pack(scaled, numbers[first // 2 : last // 2])

        return work

    in_threads(worker, range(0, full, _CHUNK), threads)
    if full < count:  # bitsandbytes divides the last, shorter block by its scale
        rest = flat[full:].float()
        scales[-1] = _finite(rest.abs().max()).clamp(min=_SMALLEST)
        scaled = (rest / scales[-1]).clamp_(-1, 1)
        scaled = torch.nn.functional.pad(scaled, (0, len(scaled) % 2))
        _Packer(kind, len(scaled)).pack(scaled, numbers[full // 2 :])
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


def quantize_8bit(weight: Any, *, threads: int = 1, out: Any = None) -> tuple[Any, Any]:
    """Return the int8 values and the row scales that bitsandbytes' `Int8Params` gives.

    Shapes: `weight` is (rows, columns); the scales are (rows,). The values are in the memory of
    `out` where that is given: bytes, at least as many.

    Raises:
        NotFinite: a value is NaN or infinite, or does not fit into float16.
    """
    import torch

    rows, columns = weight.shape
    memory = torch.empty(rows * columns, dtype=torch.uint8) if out is None else out
    values = memory[: rows * columns].view(torch.int8).view(rows, columns)
    scales = torch.empty(rows)
    step = rows_at_a_time(columns)

    def worker() -> Callable[[int], None]:
        floats, others = torch.empty((step, columns)), torch.empty((step, columns))
        halves = torch.empty((step, columns), dtype=torch.float16)

        def work(first: int) -> None:
            last = min(first + step, rows)
            value, other = floats[: last - first], others[: last - first]
            # To float16 by way of float32, the conversion that processors have.
            half = halves[: last - first].copy_(value.copy_(weight[first:last]))
            value.copy_(half)
            scale = torch.amax(torch.abs(value, out=other), 1, out=scales[first:last])
            scaled = value.mul_((127.0 / _finite(scale)).unsqueeze(1)).round_()
            if not scale.all():
                # A row of zeros gives 0 * inf, NaN, which bitsandbytes' conversion turns into 0.
                scaled.nan_to_num_(nan=0.0)
            values[first:last].copy_(scaled)

        return work

    in_threads(worker, range(0, rows, step), threads)
    return values, scales


def rows_at_a_time(columns: int) -> int:
    """Return how many rows of int8 are worked on together."""
    return max(1, _CHUNK // max(1, columns))


def _finite(scale: Any) -> Any:
    """Return the largest absolute values as they are; NaN is larger than any."""
    if not scale.isfinite().all():
        raise NotFinite
    return scale


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


def dequantize_4bit(numbers: Any, state: Any) -> Any:
    """Return the weight as a layer computes with it, in the type that it had."""
    from bitsandbytes.functional import dequantize_4bit as dequantized

    return dequantized(numbers, state)


def dequantize_8bit(values: Any, scales: Any) -> Any:
    """Return the weight in float32: each value is scale / 127 apart from the next."""
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(values, scales)


def values_4bit(numbers: Any, state: Any) -> Callable[[int, int], Any]:
    """Return the function that gives the values `first` to `last` as `dequantize_4bit` does.

    The stretches must begin where blocks do.
    """
    import torch
    from bitsandbytes.functional import dequantize_blockwise

    size, scales = state.blocksize, state.absmax
    if state.shape[-1] % size:  # rows end within a block: bitsandbytes goes another way
        return stretches(dequantize_4bit(numbers, state))
    if state.nested:
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
    flat, dequantized = numbers.view(-1), torch.ops.bitsandbytes.dequantize_4bit.default

    def values(first: int, last: int) -> Any:
        packed, scale = flat[first // 2 : last // 2], scales[first // size : last // size]
        shape = (last - first,)
        return dequantized(packed, scale, size, state.quant_type, shape, state.dtype).view(-1)

    return values


def values_8bit(values: Any, scales: Any) -> Callable[[int, int], Any]:
    """Return the function that gives the values `first` to `last` as `dequantize_8bit` does.

    The stretches must be whole rows.
    """
    columns = values.shape[1]

    def stretch(first: int, last: int) -> Any:
        rows = slice(first // columns, last // columns)
        return dequantize_8bit(values[rows], scales[rows]).view(-1)

    return stretch
