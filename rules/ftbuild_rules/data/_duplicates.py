"""Rows that say what an earlier row says, exactly or nearly.

Of each row a signature is written, shard by shard: a hash of 128 bits of what it says and, to find
near duplicates, the keys of its MinHash bands. Of all these numbers only those are held in memory
that stand there twice, so most rows take nothing of it but a byte.

    signatures of a shard, a line for each row:  hash, hash, key of band 1, key of band 2, …
    units: 8 bytes a number
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftbuild.api import Context, Dataset, Piece
from ftbuild_rules.data._arrow import read_file, read_table
from ftbuild_rules.data._by_shard import numbered_shards
from ftbuild_rules.data._near import Bands, shingles_of, similarity
from ftbuild_rules.data._shards import says
from ftbuild_rules.data._text_of import text_of
from ftbuild_rules.data._write import as_sized

_FILE = "signatures"
_MOST_NUMBERS = 8 << 20
"""So many numbers are sorted at once: 64 MiB, and as much again for the result."""


@dataclass(frozen=True)
class Match:
    """Which earlier row a row is like: number of its dataset, and of the row in it."""

    dataset: int
    row: int
    similarity: float


@dataclass(frozen=True)
class Likeness:
    """When two rows are alike."""

    is_near: bool
    threshold: float = 0.8
    ngram: int = 5

    @cached_property
    def bands(self) -> Bands | None:
        """What near duplicates are found by."""
        return Bands(self.threshold) if self.is_near else None

    @property
    def width(self) -> int:
        """How many numbers a signature has."""
        return 2 + (0 if self.bands is None else len(self.bands))

    def signature(self, row: dict[str, Any]) -> list[int]:
        """Return the numbers of a row."""
        import xxhash

        whole = xxhash.xxh3_128_intdigest(says(row))
        keys = []
        if self.bands is not None:
            keys = self.bands.keys(shingles_of(text_of(row), self.ngram))
        return [whole & 0xFFFFFFFFFFFFFFFF, whole >> 64, *keys]


@dataclass(frozen=True)
class Signed:
    """One shard with the signatures of its rows."""

    dataset: int
    path: Path
    start: int
    """The number of its first row."""
    signatures: Path

    def numbers(self, width: int) -> Any:
        """Return the signatures of its rows, a line each, mapped into memory."""
        import numpy

        return numpy.memmap(self.signatures, "<u8", "r").reshape(-1, width)


def sign(
    ctx: Context, datasets: Sequence[Dataset], likeness: Likeness, *, of: str | tuple[str, ...]
) -> list[Signed]:
    """Return all shards of all datasets with the signatures of their rows."""
    import numpy

    def signatures(piece: Piece, out: Path) -> None:
        rows = (as_sized(row).columns for row in read_file(piece.payload))
        numbers = numpy.array([likeness.signature(row) for row in rows], "<u8")
        (out / _FILE).write_bytes(numbers.tobytes())

    shards = [
        (number, path, start)
        for number, dataset in enumerate(datasets)
        for path, start in numbered_shards(dataset)
    ]
    made = ctx.fragments(
        signatures, [Piece(ctx.digest(path), path) for _, path, _ in shards], of=of
    )
    return [
        Signed(*shard, fragment.path / _FILE) for shard, fragment in zip(shards, made, strict=True)
    ]


class Seen:
    """Rows to compare with; their texts are read again from the datasets when needed.

    Memory: 32 bytes for each text that several rows have and, for near duplicates, 16 for each key
    of a band that several rows have, and 16 for each time that a row has one of these; rows that
    share nothing with any other take none.
    """

    def __init__(self, shards: Sequence[Signed], likeness: Likeness) -> None:
        import numpy

        self._shards, self._likeness, self.width = shards, likeness, likeness.width
        self._texts = _repeated(shards, self.width, slice(0, 1))
        self._keys = _repeated(shards, self.width, slice(2, self.width))
        self._high: Any = numpy.zeros(len(self._texts), numpy.uint64)
        self._first: Any = numpy.full((len(self._texts), 2), -1, numpy.int64)
        """Shard and place in it of the first row that says the text."""
        self._last: Any = numpy.full(len(self._keys), -1, numpy.int64)
        """The number of the last link of each key: the rows that have it are a chain."""
        self._links = array("Q")
        """The row of a link: 32 bits of shard, 32 of place."""
        self._before = array("q")
        """The link before each, or -1."""

    def rows(self, number: int) -> Iterator["Candidate"]:
        """Yield the rows of a shard, in their order, that have a number in common with others."""
        signatures = self._shards[number].numbers(self.width)
        texts = _places(self._texts, signatures[:, 0])
        keys = _places(self._keys, signatures[:, 2:])
        high = signatures[:, 1]
        for place in ((texts >= 0) | (keys >= 0).any(axis=1)).nonzero()[0].tolist():
            shared = tuple(key for key in keys[place].tolist() if key >= 0)
            yield Candidate(number, place, int(texts[place]), int(high[place]), shared)

    def match(self, row: "Candidate") -> Match | None:
        """Return the earliest row that was added and that `row` is like, if there is one."""
        if row.text >= 0 and int(self._high[row.text]) == row.high:
            shard, place = self._first[row.text].tolist()
            if shard >= 0:
                return self._match(shard, place, 1.0)
        found = sorted({other for key in row.keys for other in self._alike(key)})
        if not found:
            return None
        own = self._shingles(row.shard, row.place)
        for other in found:
            shard, place = divmod(other, 1 << 32)
            share = similarity(own, self._shingles(shard, place))
            if share >= self._likeness.threshold:
                return self._match(shard, place, share)
        return None

    def add(self, row: "Candidate") -> None:
        """Remember a row."""
        if row.text >= 0 and self._first[row.text, 0] < 0:
            self._first[row.text] = row.shard, row.place
            self._high[row.text] = row.high
        for key in row.keys:
            self._before.append(int(self._last[key]))
            self._last[key] = len(self._links)
            self._links.append((row.shard << 32) + row.place)

    def _alike(self, key: int) -> Iterator[int]:
        """Yield the rows that were added and have a key."""
        link = int(self._last[key])
        while link >= 0:
            yield self._links[link]
            link = self._before[link]

    def _match(self, shard: int, place: int, share: float) -> Match:
        found = self._shards[shard]
        return Match(found.dataset, found.start + place, share)

    def _shingles(self, shard: int, place: int) -> frozenset[int]:
        table = read_table(self._shards[shard].path)
        row = as_sized(table.slice(place, 1).to_pylist()[0]).columns
        return shingles_of(text_of(row), self._likeness.ngram)


@dataclass(frozen=True)
class Candidate:
    """A row, and what of its signature other rows have too."""

    shard: int
    place: int
    text: int
    """The number of its text among those that are repeated, or -1."""
    high: int
    """The other half of the hash of its text."""
    keys: tuple[int, ...]
    """The numbers of its keys among those that are repeated."""


def _places(known: Any, wanted: Any) -> Any:
    """Return where each of `wanted` stands among the sorted numbers `known`, or -1."""
    import numpy

    if not len(known):
        return numpy.full(wanted.shape, -1, numpy.int64)
    found: Any = numpy.searchsorted(known, wanted)
    found[found == len(known)] = 0
    return numpy.where(known[found] == wanted, found, -1)


def _repeated(shards: Sequence[Signed], width: int, columns: slice) -> Any:
    """Return in order the numbers that stand in these columns more than once.

    As many passes over all signatures as there are times `_MOST_NUMBERS` in them: each looks at
    the numbers with one remainder alone.
    """
    import numpy

    total = sum(shard.numbers(width)[:, columns].size for shard in shards)
    passes = 1 + total // _MOST_NUMBERS
    found: list[Any] = [numpy.empty(0, numpy.uint64)]
    for remainder in range(passes if total else 0):
        parts = []
        for shard in shards:
            numbers = shard.numbers(width)[:, columns].ravel()
            parts.append(numbers[numbers % numpy.uint64(passes) == remainder])
        ordered = numpy.sort(numpy.concatenate(parts))
        found.append(numpy.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    return numpy.sort(numpy.concatenate(found))


def kept(
    seen: Seen, shards: Sequence[Signed], dataset: int, on_match: Callable[[int, Match], None]
) -> Iterator[Any]:
    """Yield for each shard of a dataset an array that says which rows are like none before them.

    The others are reported, with their number in the dataset.
    """
    import numpy

    for number, shard in enumerate(shards):
        if shard.dataset != dataset:
            continue
        stays: Any = numpy.ones(len(shard.numbers(seen.width)), bool)
        for row in seen.rows(number):
            match = seen.match(row)
            if match is None:
                seen.add(row)
            else:
                stays[row.place] = False
                on_match(shard.start + row.place, match)
        yield stays
