"""Files of lines in chunks, each read by itself: in all cores, and only where they changed.

A file is cut by content into pieces of some megabytes, each a fragment: an edit of one row reads
one piece again. Where shards end follows from the rows and not from the pieces, so the shards are
those of one pass over the file: what is whole within a piece is written there, and what reaches
over the edge of two is joined, in a fragment of its own.

    piece 1: | shard | shard | beginning of one    piece 2: its end | shard | …
"""

import codecs
import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Context, Fragment, Piece, RuleError, Source, SourceFile
from ftbuild_rules.data._arrow import read_table, write_batch, write_rows
from ftbuild_rules.data._json_rows import line_rows
from ftbuild_rules.data._read import LINES, files_with_rows
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._shards import (
    COARSE,
    MAX_BYTES,
    MAX_ROWS,
    SizedRow,
    cut_coarsely,
    is_full,
    is_small,
)
from ftbuild_rules.data._streams import opened

LEAST_BYTES = 8 << 20
"""A smaller source is read in one go."""
MIN_BYTES = 3 << 20
"""A piece is no shorter: only beyond it lines are looked at."""
_SPACE = 1 << 64
_MEAN_LINES = 512
_MEAN_BYTES = 1 << 19
_BLOCK_BYTES = 1 << 20
HEAD, TAIL = "head.arrow", "tail.arrow"


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file."""

    file: SourceFile
    offset: int
    size: int

    def rows(self) -> Iterator[Row | RuleError]:
        """Yield its rows; lines are counted from its own first one."""
        with opened(self.file.path) as binary:
            binary.seek(self.offset)
            # The name of a file is no content: what is said of a row must be true of any file.
            yield from line_rows(_Lines(binary, self.size), "")

    def lines_before(self) -> int:
        """Return how many lines of its file come before it."""
        with opened(self.file.path) as binary:
            blocks = iter(lambda: binary.read(min(_BLOCK_BYTES, self.offset - binary.tell())), b"")
            return sum(block.count(b"\n") for block in blocks)


def chunks_of(source: Source) -> list[Chunk] | None:
    """Return the chunks of a source of large files of lines; None where it is anything else."""
    files, _ = files_with_rows(source)
    if not all(is_lines(file) for file in files):
        return None
    if sum(file.path.stat().st_size for file in files) < LEAST_BYTES:
        return None
    return [chunk for file in files for chunk in _cut(file)]


def is_lines(file: SourceFile) -> bool:
    """Say whether each line of a file is a row, whatever stands before it."""
    if not file.relative.lower().endswith(LINES):
        return False
    with opened(file.path) as binary:
        start = binary.read(_BLOCK_BYTES)
    return not start.startswith(codecs.BOM_UTF8) and start.lstrip()[:1] not in (b"[", b"")


def _cut(file: SourceFile) -> list[Chunk]:
    """Return the chunks of a file; where they end follows from the lines there."""
    import xxhash

    size = file.path.stat().st_size
    chunks: list[Chunk] = []
    with (
        open(file.path, "rb") as binary,
        mmap.mmap(binary.fileno(), 0, access=mmap.ACCESS_READ) as m,
    ):
        offset = 0
        while offset < size:
            at = m.find(b"\n", min(offset + MIN_BYTES, size)) + 1 or size
            while at < size:
                end = m.find(b"\n", at) + 1 or size
                weight = max(_SPACE // _MEAN_LINES, (end - at) * (_SPACE // _MEAN_BYTES))
                is_last = xxhash.xxh3_64_intdigest(m[at : min(end, at + MIN_BYTES)]) < weight
                at = end
                if is_last:
                    break
            chunks.append(Chunk(file, offset, at - offset))
            offset = at
    return chunks


def pieces_of(chunks: Sequence[Chunk], cpus: int) -> Iterator[Piece]:
    """Yield each chunk as a piece, known by its bytes; they are hashed in `cpus` threads."""
    with ThreadPoolExecutor(cpus) as pool:
        for chunk, digest in zip(chunks, pool.map(_digest, chunks), strict=True):
            yield Piece(digest, chunk)


def _digest(chunk: Chunk) -> str:
    hasher = hashlib.sha256()
    with open(chunk.file.path, "rb") as binary:
        binary.seek(chunk.offset)
        left = chunk.size
        while left:
            block = binary.read(min(left, 1 << 20))
            hasher.update(block)
            left -= len(block)
    return hasher.hexdigest()


class _Lines:
    """The lines of a chunk, for a reader of streams."""

    def __init__(self, binary: Any, size: int) -> None:
        self._binary = binary
        self._left = size

    def readline(self, limit: int) -> bytes:
        """Return the next line, or `limit` bytes of it; nothing at the chunk's end."""
        line: bytes = self._binary.readline(min(limit, self._left))
        self._left -= len(line)
        return line


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
