"""The rows of several datasets in the order that a seed gives them, in pieces of neighbours.

Of each row are noted, shard by shard, the places where its copies fall and the SHA-256 of what it
holds. What is taken is sorted on the disk; a piece is the rows of one range of places, known by
their digests, so an edited row makes two pieces anew: the one it leaves and the one it comes to.
In memory are, at any time, the entries of some hundred thousand rows; on the disk, while the rule
runs, 52 bytes for each row that is taken.

    place  shard  row  copy  digest
    17     0      351  0     9f86d081884c7d65…
    92     3      12   0     60303ae22b998861…
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Context, Dataset, Digest, Piece
from ftbuild_rules.data._arrow import MappedTables, read_file
from ftbuild_rules.data._by_shard import numbered_rows, numbered_shards
from ftbuild_rules.data._hashing import place_of, row_digest
from ftbuild_rules.data._shards import SizedRow
from ftbuild_rules.data._write import as_sized

_PLACES, _DIGESTS = "places", "digests"
_SORTED_BITS = 18
"""So many entries are sorted in memory at a time: 13 MiB."""
_PIECE_BITS = 12
"""So many rows are a piece, in the mean."""
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Placed:
    """One shard of a dataset, and where its rows fall."""

    path: Path
    digest: Digest
    copies: int
    folder: Path

    def places(self) -> Any:
        """Return the places of its rows, a line for each copy."""
        import numpy

        places: Any = numpy.fromfile(self.folder / _PLACES, "<u8")
        return places.reshape(self.copies, -1)

    def digests(self) -> Any:
        """Return the digests of its rows."""
        import numpy

        return numpy.fromfile(self.folder / _DIGESTS, "V32")


@dataclass(frozen=True)
class Draw:
    """How many rows are taken of a dataset: all so often, and of the last copy the first ones."""

    shards: tuple[Placed, ...]
    rows: int
    count: int

    def taken(self) -> Iterator[Any]:
        """Yield for each shard an array of which copies of which rows are taken, as `places`."""
        full, rest = divmod(self.count, self.rows)
        last_copy = (shard.places()[full] for shard in self.shards if rest)
        threshold, ties = _smallest([*last_copy], rest)
        for shard in self.shards:
            places = shard.places()
            taken = places >= 0
            if rest:
                last = places[full]
                is_tie = last == threshold
                taken[full] = (last < threshold) | (is_tie & (is_tie.cumsum() <= ties))
                ties -= int((taken[full] & is_tie).sum())
            yield taken


def place(
    ctx: Context, datasets: Sequence[tuple[Dataset, int, int]], seed: int, *, of: str
) -> list[Draw]:
    """Return all datasets with the places of their rows; each has so many, of which so many go in.

    One that gives none is left out.
    """
    import numpy

    def places(piece: Piece, out: Path) -> None:
        path, copies = piece.payload
        rows = [as_sized(row) for row in read_file(path)]
        found = [place_of(row, seed, copy) for copy in range(copies) for row in rows]
        (out / _PLACES).write_bytes(numpy.array(found, "<u8").tobytes())
        (out / _DIGESTS).write_bytes(b"".join(row_digest(row.columns) for row in rows))

    pieces: list[Piece] = []
    for dataset, rows, count in datasets:
        copies = -(-count // rows)
        shards = numbered_shards(dataset) if count else []
        digests = [(path, ctx.digest(path)) for path, _ in shards]
        pieces += [Piece((digest, copies), (path, copies)) for path, digest in digests]
    made = iter(
        Placed(piece.payload[0], ctx.digest(piece.payload[0]), piece.payload[1], fragment.path)
        for piece, fragment in zip(pieces, ctx.fragments(places, pieces, of=of), strict=True)
    )
    return [
        Draw(tuple(next(made) for _ in numbered_shards(dataset)), rows, count)
        for dataset, rows, count in datasets
        if count
    ]


def _smallest(parts: Sequence[Any], count: int) -> tuple[int, int]:
    """Return the largest of the `count` smallest numbers, and how many of those are as large.

    Only numbers are held that begin with the same 16 bits as that one.
    """
    import numpy

    if not count:
        return 0, 0
    sizes: Any = sum(numpy.bincount((part >> 48).astype("i8"), minlength=1 << 16) for part in parts)
    ends = sizes.cumsum()
    start = int(numpy.searchsorted(ends, count))
    near = numpy.sort(numpy.concatenate([part[part >> 48 == start] for part in parts]))
    at = count - 1 - int(ends[start] - sizes[start])
    largest = near[at]
    return int(largest), at + 1 - int(numpy.searchsorted(near, largest))


def sequential(draws: Sequence[Draw]) -> list[Piece]:
    """Return a piece for each shard: its path, and how often each of its rows is taken."""
    pieces = []
    for draw in draws:
        for shard, taken in zip(draw.shards, draw.taken(), strict=True):
            times = taken.sum(axis=0).astype("<u4")
            identity = (shard.digest, hashlib.sha256(times.tobytes()).hexdigest())
            pieces.append(Piece(identity, (shard.path, times.tolist())))
    return pieces


def sequential_rows(payload: Any) -> Iterator[SizedRow]:
    """Yield the rows of a piece of `sequential`."""
    path, times = payload
    for (_, row), count in zip(numbered_rows(path, 0), times, strict=True):
        yield from [row] * count


class Shuffled:
    """The rows that are taken, by their places; by dataset, row and copy where those are equal."""

    def __init__(self, draws: Sequence[Draw], folder: Path) -> None:
        """Sort them into a file of `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        shards = [shard for draw in draws for shard in draw.shards]
        self._tables = MappedTables([shard.path for shard in shards])
        self._file = folder / "order"
        self.pieces = _sorted(draws, self._file)

    def rows(self, payload: Any) -> Iterator[SizedRow]:
        """Yield the rows of a piece, whose payload says where its entries begin and end."""
        import numpy

        start, end = payload
        kind = _entry_type()
        for at in range(start, end, _BLOCK_ROWS):
            entries: Any = numpy.fromfile(
                self._file, kind, min(_BLOCK_ROWS, end - at), offset=at * kind.itemsize
            )
            yield from map(as_sized, self._tables.take(entries["shard"], entries["row"]))


def _entry_type() -> Any:
    import numpy

    numbers = [(name, "<u4") for name in ("shard", "row", "copy")]
    return numpy.dtype([("place", "<u8"), *numbers, ("digest", "V32")])


def _entries(draws: Sequence[Draw]) -> Iterator[Any]:
    """Yield what is taken, many entries at a time."""
    import numpy

    waiting: list[Any] = []
    shards = (
        (s, taken) for draw in draws for s, taken in zip(draw.shards, draw.taken(), strict=True)
    )
    for number, (shard, taken) in enumerate(shards):
        copies, rows = taken.nonzero()
        entries: Any = numpy.empty(len(rows), _entry_type())
        entries["place"] = shard.places()[taken]
        entries["shard"], entries["row"], entries["copy"] = number, rows, copies
        entries["digest"] = shard.digests()[rows]
        waiting.append(entries)
        if sum(map(len, waiting)) >= 1 << _SORTED_BITS:
            yield numpy.concatenate(waiting)
            waiting = []
    if waiting:
        yield numpy.concatenate(waiting)


def _sorted(draws: Sequence[Draw], file: Path) -> list[Piece]:
    """Write all entries in their order, and return the pieces, each with the range of its own."""
    import numpy

    total = sum(draw.count for draw in draws)
    parts = max(0, total.bit_length() - _SORTED_BITS)
    pieces = max(parts, total.bit_length() - _PIECE_BITS)
    names = [file.with_name(str(number)) for number in range(1 << parts)]
    for name in names:
        name.write_bytes(b"")
    for entries in _entries(draws):
        numbers = _top(entries["place"], parts)
        for number in numpy.unique(numbers):
            with open(names[number], "ab") as part:
                part.write(entries[numbers == number].tobytes())
    found: list[Piece] = []
    start = 0
    with open(file, "wb") as whole:
        for name in names:
            entries = numpy.fromfile(name, _entry_type())
            columns = ("copy", "row", "shard", "place")
            entries = entries[numpy.lexsort([entries[column] for column in columns])]
            whole.write(entries.tobytes())
            cuts: Any = numpy.flatnonzero(numpy.diff(_top(entries["place"], pieces))) + 1
            for piece in numpy.split(entries, cuts):
                if len(piece):
                    identity = hashlib.sha256(piece["digest"].tobytes()).hexdigest()
                    found.append(Piece(identity, (start, start + len(piece))))
                    start += len(piece)
            name.unlink()
    return found


def _top(places: Any, bits: int) -> Any:
    """Return the first bits of each place."""
    import numpy

    # Two shifts: one by all 64 bits is none.
    return (places >> numpy.uint64(63 - bits) >> numpy.uint64(1)).astype("i8")
