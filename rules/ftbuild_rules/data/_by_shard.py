"""A dataset made of another one shard by shard: in all cores, and only where that one changed.

Where shards end follows from the rows alone, so what comes out is what one pass over all rows
would write; how the shards of the pieces are joined is told in `_chunks.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from ftbuild.api import Context, Dataset, Piece
from ftbuild_rules.data._arrow import dataset_schema, read_file, shard_name, shard_paths
from ftbuild_rules.data._chunks import assemble, write_segments
from ftbuild_rules.data._shards import SMALL_ROWS, SizedRow
from ftbuild_rules.data._write import as_sized, finish_dataset, read_index, write_dataset

Numbered = Iterator[tuple[int, SizedRow]]
"""Rows with their numbers in the dataset; a number is for messages, and reaches no output."""
Change = Callable[[Numbered], Iterator[SizedRow]]
"""Gives the rows that come of some neighbours; of each by itself, and of nothing else."""


def write_changed(ctx: Context, dataset: Dataset, change: Change, form: str) -> int:
    """Write what `change` makes of the rows of the input `dataset`; return how many there are.

    Without any row nothing is finished: the caller says what that means.
    """
    pieces = [Piece(ctx.digest(path), (path, start)) for path, start in numbered_shards(dataset)]

    def rows(payload: Any) -> Iterator[SizedRow]:
        return change(numbered_rows(*payload))

    is_large = read_index(dataset)["rows"] > SMALL_ROWS
    return write_pieces(ctx, pieces, rows, form, of=("dataset",), is_large=is_large)


def write_pieces(
    ctx: Context,
    pieces: Sequence[Piece],
    rows: Callable[[Any], Iterator[SizedRow]],
    form: str,
    *,
    of: tuple[str, ...],
    is_large: bool,
) -> int:
    """Write the rows that the payloads of all pieces give; return how many there are.

    What is small is made in one pass: its shards are finer, and follow from all of its rows.
    """

    def segments(piece: Piece, out: Path) -> dict[str, Any]:
        return write_segments(rows(piece.payload), out, dataset_schema(form))

    shards = assemble(ctx, ctx.fragments(segments, pieces, of=of), of=of) if is_large else None
    if not shards:
        return write_dataset(ctx, chain.from_iterable(rows(p.payload) for p in pieces), form)
    for number, (path, _) in enumerate(shards):
        ctx.link(path, shard_name(number, len(shards)))
    counts = [count for _, count in shards]
    finish_dataset(ctx, form, counts)
    return sum(counts)


def numbered_shards(dataset: Dataset) -> list[tuple[Path, int]]:
    """Return each shard with the number of its first row."""
    counts = [rows for _, rows in read_index(dataset)["shards"]]
    return list(zip(shard_paths(dataset.path), accumulate(counts, initial=0), strict=False))


def numbered_rows(path: Path, start: int) -> Numbered:
    """Yield the rows of a shard whose first one has the number `start`."""
    return enumerate(map(as_sized, read_file(path)), start)
