"""Rows that say what an earlier row says, exactly or nearly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftbuild.api import Dataset
from ftbuild_rules.data._arrow import read_table, shard_paths
from ftbuild_rules.data._near import NearIndex
from ftbuild_rules.data._shards import SizedRow
from ftbuild_rules.data._text_of import text_of
from ftbuild_rules.data._write import as_sized


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


class Seen:
    """Rows to compare with; their texts are read again from the datasets when needed."""

    def __init__(self, datasets: Sequence[Dataset], likeness: Likeness) -> None:
        self._text = _reader(datasets)
        self._starts = self._text.starts
        self._exact: dict[int, int] = {}
        self._near: NearIndex | None = None
        if likeness.is_near:
            self._near = NearIndex(likeness.threshold, likeness.ngram, self._text)

    def match(self, row: SizedRow) -> Match | None:
        """Return the row that `row` is like, if there is one."""
        found = self._exact.get(row.fingerprint)
        if found is not None:
            return self._match(found, 1.0)
        near = None if self._near is None else self._near.match(text_of(row.columns))
        return None if near is None else self._match(*near)

    def add(self, row: SizedRow, dataset: int, number: int) -> None:
        """Remember a row."""
        place = self._starts[dataset] + number
        self._exact.setdefault(row.fingerprint, place)
        if self._near is not None:
            self._near.add(text_of(row.columns), place)

    def _match(self, place: int, similarity: float) -> Match:
        dataset = max(n for n, start in enumerate(self._starts) if start <= place)
        return Match(dataset, place - self._starts[dataset], similarity)


class _Reader:
    def __init__(self, tables: Sequence[Any]) -> None:
        import pyarrow as pa

        self._whole = pa.concat_tables(tables)
        self.starts = [sum(t.num_rows for t in tables[:n]) for n in range(len(tables))]

    def __call__(self, place: int) -> str:
        return text_of(as_sized(self._whole.slice(place, 1).to_pylist()[0]).columns)


def _reader(datasets: Sequence[Dataset]) -> _Reader:
    import pyarrow as pa

    tables = [pa.concat_tables([read_table(p) for p in shard_paths(d.path)]) for d in datasets]
    return _Reader(tables)


def without(
    rows: Iterator[SizedRow], seen: Seen, dataset: int, on_match: Callable[[int, Match], None]
) -> Iterator[SizedRow]:
    """Yield the rows that are like none before them; report the others."""
    for number, row in enumerate(rows):
        match = seen.match(row)
        if match is None:
            seen.add(row, dataset, number)
            yield row
        else:
            on_match(number, match)
