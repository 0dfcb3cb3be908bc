"""Rows in pieces -> the shards of one pass over all of them.

Where shards end follows from the rows and not from the pieces: what is whole within a piece is
written there, and what reaches over the edge of two is joined, in a fragment of its own.

    piece 1: | shard | shard | beginning of one    piece 2: its end | shard | …
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Context, Fragment, Piece
from ftbuild_rules.data._arrow import read_table, write_batch, write_rows
from ftbuild_rules.data._shards import (
    COARSE,
    MAX_BYTES,
    MAX_ROWS,
    SizedRow,
    cut_coarsely,
    is_full,
    is_small,
)

HEAD, TAIL = "head.arrow", "tail.arrow"


def write_segments(rows: Iterable[SizedRow], out: Path, schema: Any) -> dict[str, Any]:
    """Write the rows of a chunk: what is whole as shards, the rest as its head and its tail.

    Without the end of a shard among them all rows are head.
    """
    rest = iter(rows)
    head = list(_until_end(rest))
    is_open = not head or not _ends_shard(head[-1])
    _write(out / HEAD, head, schema)
    counts: list[int] = []
    size_bytes = _size(head)[1]
    tail: list[SizedRow] = []
    for shard in cut_coarsely(rest):
        tail = shard
        size_bytes += _size(shard)[1]
        if _ends_shard(shard[-1]) or is_full(shard):
            _write(out / shard_file(len(counts)), shard, schema)
            counts.append(len(shard))
            tail = []
    _write(out / TAIL, tail, schema)
    return {
        "head": _size(head),
        "is_open": is_open,
        "shards": counts,
        "tail": _size(tail),
        "size_bytes": size_bytes,
    }


def _until_end(rows: Iterator[SizedRow]) -> Iterator[SizedRow]:
    for row in rows:
        yield row
        if _ends_shard(row):
            return


def _ends_shard(row: SizedRow) -> bool:
    return COARSE.ends_shard(row.fingerprint, row.text_bytes)


def _write(path: Path, rows: Sequence[SizedRow], schema: Any) -> None:
    write_rows(path, [row.columns for row in rows], schema)


def shard_file(number: int) -> str:
    """Return the name of a whole shard within its chunk."""
    return f"{number}.arrow"


def _size(rows: Sequence[SizedRow]) -> list[int]:
    return [len(rows), sum(row.size_bytes for row in rows)]


@dataclass(frozen=True)
class _Join:
    """Ends and beginnings of neighbours that are one shard."""

    parts: tuple[Path, ...]
    rows: int


def assemble(
    ctx: Context, fragments: Sequence[Fragment], of: str | tuple[str, ...]
) -> list[tuple[Path, int]] | None:
    """Return the shards of all chunks in their order, each with its number of rows.

    None where the rows are so few that shards are finer, or where one would be too large, so that
    it has to be cut between its ends.
    """
    if is_small(
        sum(_num_rows(fragment.value) for fragment in fragments),
        sum(fragment.value["size_bytes"] for fragment in fragments),
    ):
        return None
    joins: list[_Join] = []
    order: list[tuple[Path, int] | int] = []  # a shard, or the number of a join
    parts: list[Path] = []
    rows = size_bytes = 0

    def close() -> None:
        nonlocal parts, rows, size_bytes
        if rows:
            order.append(len(joins))
            joins.append(_Join(tuple(parts), rows))
        parts, rows, size_bytes = [], 0, 0

    for fragment in fragments:
        value = fragment.value
        for name in (HEAD, TAIL):
            if name == TAIL:
                if value["is_open"]:
                    continue
                close()
                order += [
                    (fragment.path / shard_file(number), count)
                    for number, count in enumerate(value["shards"])
                ]
            more, more_bytes = value[name.removesuffix(".arrow")]
            if more:
                parts.append(fragment.path / name)
                rows, size_bytes = rows + more, size_bytes + more_bytes
            if rows >= MAX_ROWS or size_bytes >= MAX_BYTES:
                return None
    close()
    made = ctx.fragments(
        join_parts, [Piece(tuple(ctx.digest(p) for p in j.parts), j) for j in joins], of=of
    )
    return [
        (made[item].path / HEAD, joins[item].rows) if isinstance(item, int) else item
        for item in order
    ]


def _num_rows(value: dict[str, Any]) -> int:
    return int(value["head"][0] + sum(value["shards"]) + value["tail"][0])


def join_parts(piece: Piece, out: Path) -> None:
    """Write the rows of several files as one."""
    import pyarrow as pa

    join: _Join = piece.payload
    table = pa.concat_tables([read_table(path) for path in join.parts])
    write_batch(out / HEAD, table.combine_chunks().to_batches()[0])
