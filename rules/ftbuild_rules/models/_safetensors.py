"""Read and write safetensors files tensor by tensor, never a whole file in memory.

The format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape,
data_offsets}}`, then the tensors one after another. What is written here depends on names,
shapes and bytes alone: tensors in the order given, compact JSON, the header padded with spaces
to a multiple of 8.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ftbuild.api import Place, RuleError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_BLOCK_BYTES = 1 << 23


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its values."""

    name: str
    dtype: str
    """As safetensors spells it: `F32`, `BF16`, …"""
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How many bytes its values take."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    spec: TensorSpec
    file: Path
    start: int
    """Where its first byte lies in the file."""

    def read(self) -> bytes:
        """Return its bytes."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.spec.size_bytes)

    def read_into(self, buffer: Any, *, offset: int = 0) -> None:
        """Fill `buffer` with its bytes from `offset` on."""
        for _ in self.fill([buffer], offset=offset):
            pass

    def fill(self, buffers: Iterable[Any], *, offset: int = 0) -> Iterator[Any]:
        """Fill one buffer after the other with its bytes from `offset` on; yield each, filled."""
        with self.file.open("rb") as file:
            file.seek(self.start + offset)
            for buffer in buffers:
                if file.readinto(buffer) != len(buffer):
                    raise damaged(self.file.name, f"`{self.spec.name}` ends early")
                yield buffer

    def blocks(self) -> Iterator[bytes]:
        """Yield its bytes in pieces of bounded size."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.spec.size_bytes
            while left:
                block = file.read(min(left, _BLOCK_BYTES))
                left -= len(block)
                yield block


def damaged(name: str, why: str) -> RuleError:
    """Return the error for a file whose bytes are not what they should be."""
    return RuleError(
        f"`{name}` is damaged",
        code="E0924",
        where=Place(path=name),
        why=why,
        fix="fetch or save the file again",
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it lists `{key}` twice")
        found[key] = value
    return found


def read_tensors(path: Path, name: str = "") -> tuple[StoredTensor, ...]:
    """Return the tensors of one safetensors file, called `name`, in the order of their bytes.

    Raises:
        RuleError: E0924: the header is not valid, names a tensor twice, or the tensors do not
            fill the file exactly.
    """
    name = name or path.name
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise damaged(name, "its header is longer than the file")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
        header.pop("__metadata__", None)
        entries = sorted(
            (entry["data_offsets"][0], entry["data_offsets"][1], tensor, entry)
            for tensor, entry in header.items()
        )
        specs = [
            TensorSpec(tensor, entry["dtype"], tuple(entry["shape"]))
            for *_, tensor, entry in entries
        ]
        sizes = [spec.size_bytes for spec in specs]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(name, f"its header cannot be read ({error})") from error
    end = 0
    for (first, last, tensor, _), wanted in zip(entries, sizes, strict=True):
        if first != end or last - first != wanted:
            raise damaged(name, f"the bytes of `{tensor}` do not fit its shape")
        end = last
    if 8 + length + end != size:
        raise damaged(name, f"it has {size} bytes where its header promises {8 + length + end}")
    return tuple(
        StoredTensor(spec, path, 8 + length + first)
        for spec, (first, *_) in zip(specs, entries, strict=True)
    )


def write_tensors(path: Path, specs: Sequence[TensorSpec], values: Iterable[Iterable[Any]]) -> None:
    """Write a safetensors file: `values` yields, for each of `specs`, its bytes in pieces."""
    with path.open("wb") as file:
        file.write(_head(specs))
        for spec, pieces in zip(specs, values, strict=True):
            written = sum(file.write(piece) for piece in pieces)
            assert written == spec.size_bytes, (spec, written)


def write_head(path: Path, specs: Sequence[TensorSpec]) -> tuple[StoredTensor, ...]:
    """Write a safetensors file but for the values; return where those of each of `specs` go."""
    head = _head(specs)
    starts = accumulate((spec.size_bytes for spec in specs), initial=len(head))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(spec.size_bytes for spec in specs))
    return tuple(
        StoredTensor(spec, path, start) for spec, start in zip(specs, starts, strict=False)
    )


def _head(specs: Sequence[TensorSpec]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.size_bytes],
        }
        end += spec.size_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the values are aligned in a memory map
    return struct.pack("<Q", len(text)) + text
