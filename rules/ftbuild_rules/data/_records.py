r"""Where the records of a CSV file end, found without reading its cells.

A line end within double quotes ends no record, and whether it is within follows from all quotes
before it: their number is odd. That is so only where each quote opens a cell, closes one or is
one of two; of every quote its neighbours are looked at, and a file with one that is anything else
(`5" disk`), or with a `\r` that ends no line, is not cut: only its reader knows what they mean.
"""

import csv
import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftbuild.api import RuleError
from ftbuild_rules.data._delimited import read_header
from ftbuild_rules.data._streams import opened

_BLOCK_BYTES = 8 << 20
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'


class InseparableError(Exception):
    """Where records end cannot be told from the quotes alone."""


def header_of(path: Path, delimiter: str) -> tuple[list[str], int] | None:
    """Return the names of the columns and where the rows begin; None where there are none."""
    with opened(path) as binary:
        counted = _Counted(binary)
        try:
            header = read_header(counted, path.name, delimiter)
        except (RuleError, csv.Error):
            return None  # whoever reads the file tells what is wrong
    return (header, counted.at) if header else None


class _Counted(io.BufferedIOBase):
    """Lines, and how many bytes they were."""

    def __init__(self, binary: Any) -> None:
        self._binary = binary
        self.at = 0

    def readline(self, limit: int | None = -1, /) -> bytes:
        line: bytes = self._binary.readline(limit)
        self.at += len(line)
        return line


def record_ends(data: mmap.mmap, start: int, delimiter: str) -> Iterator[Any]:
    """Yield in order where records end, as arrays; `data` is a mapped file, a record at `start`.

    Raises:
        InseparableError: the file has quotes of another sort.
    """
    import numpy

    odd = 0
    for at in range(start, len(data), _BLOCK_BYTES):
        end = min(at + _BLOCK_BYTES, len(data))
        # With a neighbour on both sides: the header's line end, and one that may be missing.
        block = numpy.frombuffer(data[at - 1 : end + 1] + b"\n", numpy.uint8)
        inner = block[1 : 1 + end - at]
        quotes = numpy.flatnonzero(inner == _QUOTE)
        _check(block, quotes, odd, ord(delimiter))
        returns = numpy.flatnonzero(inner == _RETURN)
        lone = returns[_next(block, returns) != _NEWLINE]
        if (_before(quotes, lone, odd) == 0).any():
            raise InseparableError
        newlines = numpy.flatnonzero(inner == _NEWLINE)
        data.madvise(mmap.MADV_DONTNEED)  # or all of the file would count as ours in the end
        yield newlines[_before(quotes, newlines, odd) == 0] + (at + 1)
        odd = (odd + len(quotes)) & 1


def _next(block: Any, places: Any) -> Any:
    """Return the bytes after those at `places`, which count from the block's second byte."""
    return block[places + 2]


def _before(quotes: Any, places: Any, odd: int) -> Any:
    """Return 1 for each place with an odd number of quotes before it, else 0."""
    import numpy

    return (numpy.searchsorted(quotes, places) + odd) & 1


def _check(block: Any, quotes: Any, odd: int, delimiter: int) -> None:
    import numpy

    is_closing = ((numpy.arange(len(quotes)) + odd) & 1).astype(bool)
    before = block[quotes[~is_closing]]
    after = _next(block, quotes[is_closing])
    edges = [delimiter, _NEWLINE, _QUOTE]
    if not (numpy.isin(before, edges).all() and numpy.isin(after, [*edges, _RETURN]).all()):
        raise InseparableError
