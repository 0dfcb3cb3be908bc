"""Rows -> shards, cut by content, so that an edit of one row changes one shard.

Whether a shard ends after a row follows from that row's own xxh3 hash and from nothing beside
it. So an edited, inserted or deleted row changes the shard it is in and moves no boundary;
only where it is itself a boundary, or becomes one, two shards become one or one becomes two.
There is no least size, because that would make a boundary depend on the rows before it.

What a boundary does not depend on: `metadata`, and white space around a text. Neither reaches
the tokens of a usual template, and if such an edit moved a boundary, the shards of the tokens
would be cut anew, and all that is trained on them would be stale.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

_SPACE = 1 << 64


@dataclass(frozen=True)
class Grain:
    """How large shards are in the mean: so many rows, or so many bytes of text, if that is less."""

    rows: int
    text_bytes: int

    def ends_shard(self, fingerprint: int, text_bytes: int) -> bool:
        """Say whether a row of this hash and size is the last of its shard."""
        return fingerprint < max(_SPACE // self.rows, text_bytes * (_SPACE // self.text_bytes))


COARSE = Grain(rows=1000, text_bytes=1 << 20)
FINE = Grain(rows=32, text_bytes=1 << 18)
"""For a small dataset, so that an edit of one of its rows reuses something too."""

SMALL_ROWS = 700
SMALL_BYTES = 4 << 20
MAX_ROWS = 16_000
MAX_BYTES = 16 << 20
"""A shard never grows beyond these, so memory stays bounded. With a mean of 1,000 rows only
data of which thousands of neighbours are equal gets there, or whose metadata is very large."""


@dataclass(frozen=True)
class SizedRow:
    """A row in its normal form, with what decides where shards end."""

    columns: dict[str, Any]
    fingerprint: int
    text_bytes: int
    """Of the text that the fingerprint covers: no metadata."""
    size_bytes: int
    """Of the whole row, roughly: what it takes in memory."""


def size_row(columns: dict[str, Any]) -> SizedRow:
    """Return the row with its hash.

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair.
    """
    import xxhash

    text = says(columns)
    size_bytes = len(text) + len(columns["metadata"])
    return SizedRow(columns, xxhash.xxh3_64_intdigest(text), len(text), size_bytes)


def says(columns: dict[str, Any]) -> bytes:
    """Return all that a row says, without its metadata and white space around its texts.

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair.
    """
    parts: list[str] = []
    for name, value in columns.items():
        if name != "metadata":
            _collect(value, parts)
    return "\x1f".join(parts).encode()


def _collect(value: Any, parts: list[str]) -> None:
    if isinstance(value, str):
        parts.append(value.strip())
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, parts)
    elif isinstance(value, list):
        for item in value:
            _collect(item, parts)
    else:
        parts.append(repr(value))


def cut(rows: Iterable[SizedRow]) -> Iterator[list[SizedRow]]:
    """Yield the rows shard by shard, in their order."""
    rest = iter(rows)
    head: list[SizedRow] = []
    head_bytes = 0
    for row in rest:
        head.append(row)
        head_bytes += row.size_bytes
        if not is_small(len(head), head_bytes):
            yield from _cut(chain(head, rest), COARSE)
            return
    yield from _cut(head, FINE)


def is_small(rows: int, size_bytes: int) -> bool:
    """Say whether so many rows are cut finely."""
    return rows <= SMALL_ROWS and size_bytes <= SMALL_BYTES


def cut_coarsely(rows: Iterable[SizedRow]) -> Iterator[list[SizedRow]]:
    """Yield rows that are known to be many shard by shard."""
    return _cut(rows, COARSE)


def is_full(shard: list[SizedRow]) -> bool:
    """Say whether a shard ends because of its size, whatever its last row."""
    return len(shard) == MAX_ROWS or sum(row.size_bytes for row in shard) >= MAX_BYTES


def _cut(rows: Iterable[SizedRow], grain: Grain) -> Iterator[list[SizedRow]]:
    shard: list[SizedRow] = []
    shard_bytes = 0
    for row in rows:
        shard.append(row)
        shard_bytes += row.size_bytes
        is_full = len(shard) == MAX_ROWS or shard_bytes >= MAX_BYTES
        if is_full or grain.ends_shard(row.fingerprint, row.text_bytes):
            yield shard
            shard, shard_bytes = [], 0
    if shard:
        yield shard
