"""Write a safetensors file whose tensors become known one after another.

The header stands in front of the values and says their sizes, so room for it is kept and the
rest of that room filled with spaces, which the format allows. A tensor whose size is no multiple
of 8 goes to the end, wider types first: readers map the file and want each value aligned.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ftbuild_rules.models._safetensors import ITEM_BYTES, TensorSpec
from ftbuild_rules.models._torch import spec_of, tensor_bytes

_ENTRY_BYTES = 160  # of one tensor in the header, without its name


def header_room(names: Sequence[str]) -> int:
    """Return how many bytes a header that lists these tensors takes at most."""
    listed = sum(len(json.dumps(name, ensure_ascii=False).encode()) for name in names)
    return -(-(listed + _ENTRY_BYTES * (len(names) + 1)) // 8) * 8


class TensorFile:
    """An open file; leaving the `with` block writes what was kept back, and the header."""

    def __init__(self, path: Path, *, room: int) -> None:
        self._file = path.open("wb")
        self._room = room
        self._file.seek(8 + room)
        self._entries: dict[str, Any] = {}
        self._end = 0
        self._kept: list[tuple[TensorSpec, Iterable[Any]]] = []

    def add(self, spec: TensorSpec, pieces: Iterable[Any]) -> None:
        """Write a tensor; `pieces` are its bytes."""
        if spec.size_bytes % 8:
            self._kept.append((spec, pieces))
        else:
            self._write(spec, pieces)

    def add_all(self, tensors: Mapping[str, Any]) -> None:
        """Write torch tensors by their names; their memory may be used again afterwards."""
        for name, tensor in tensors.items():
            spec, values = spec_of(name, tensor), tensor_bytes(tensor)
            self.add(spec, [bytes(values) if spec.size_bytes % 8 else values])

    def _write(self, spec: TensorSpec, pieces: Iterable[Any]) -> None:
        written = sum(self._file.write(piece) for piece in pieces)
        assert written == spec.size_bytes, (spec, written)
        self._entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [self._end, self._end + written],
        }
        self._end += written

    @property
    def sizes(self) -> dict[str, int]:
        """How many bytes each tensor takes."""
        return {
            name: entry["data_offsets"][1] - entry["data_offsets"][0]
            for name, entry in self._entries.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is not None:
                return
            for spec, pieces in sorted(self._kept, key=lambda kept: -ITEM_BYTES[kept[0].dtype]):
                self._write(spec, pieces)
            header = {"__metadata__": {"format": "pt"}, **self._entries}
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            assert len(text) <= self._room, (len(text), self._room)
            self._file.seek(0)
            self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))
