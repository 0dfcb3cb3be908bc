"""One row of a source, and what is said of one that cannot be read.

A reader yields a `Row`, or a `RuleError` in the place of a bad one after which it goes on, and
raises a `RuleError` where nothing after it can be read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ftbuild.api import Place, RuleError

MAX_ROW_BYTES = 64 << 20
"""A longer row is a file without line ends, or worse: refused before it fills the memory."""


@dataclass(frozen=True)
class Row:
    """One object of a file, and where it begins."""

    place: Place
    value: dict[str, Any]


class Readable(Protocol):
    """A stream that is read by lines."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or `limit` bytes of it; nothing at the end."""


def lines(binary: Readable, name: str, *, start: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number; memory holds one.

    Raises:
        RuleError: a line is too long to be one.
    """
    number = start
    while raw := binary.readline(MAX_ROW_BYTES + 1):
        if len(raw) > MAX_ROW_BYTES:
            raise too_long(Place(name, number))
        yield number, raw
        number += 1


def too_long(place: Place) -> RuleError:
    """Return what is said of a row that would fill the memory."""
    return RuleError(
        f"a row is longer than {MAX_ROW_BYTES >> 20} MiB",
        code="E0807",
        where=place,
        fix="write one row a line; is this a text file without line ends?",
    )


def not_utf8(name: str, line: int, raw: bytes, at: int) -> RuleError:
    """Return what is said of the line `raw`, whose byte `at` begins no character."""
    return RuleError(
        f"byte {at + 1} of the line, 0x{raw[at]:02x}, is not UTF-8",
        code="E0802",
        where=Place(name, line),
        fix=f"convert the file: `iconv -f WINDOWS-1252 -t UTF-8 {name}`, or what it was written in",
    )
