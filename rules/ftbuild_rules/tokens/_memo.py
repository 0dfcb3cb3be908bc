"""Rows that an earlier build tokenized: known by their content, taken over with their tokens.

Where a dataset changes in every shard (a filter drops one row in a hundred), no shard is found
again but nearly all rows are. Beside the tokens of a shard lies a file that says of each of its
rows what it is, by SHA-256, and which documents of the shard it became. It belongs to the shard's
fragment: so it is of the same rule, tokenizer, template and attributes, verified as that is, and
goes with it. There is no second copy of any token, and no byte of an artifact depends on it.

    digest                              first  documents  fate
    9f86d081884c7d659a2feaa0c55ad015…       0          1     0
    60303ae22b998861bce3b28f33eec1be…       1          0     1    dropped
    fd61a03af4f77d870fc21e05e7e80678…       1         -1     0    to be tokenized again
"""

import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild_rules.data._arrow import map_file, open_table

NAME = "rows"
"""The file beside a shard's tokens."""
AGAIN = -1
"""Documents of a row that has to be tokenized again: it is complained of, or was cut."""
DROPPED, TRUNCATED, SPLIT = 1, 2, 4

_HEAD = b"ftbuild rows 1\n\0"
_BUCKET_BITS = 20
"""A million rows are sorted in memory at a time: 16 MiB."""
_MOST_OPEN = 4096


@dataclass(frozen=True)
class Outcome:
    """What one row became."""

    digest: bytes
    first: int
    """The number of its first document in the file of the tokens."""
    documents: int
    fate: int


@dataclass(frozen=True)
class Known:
    """What a row became in an earlier build."""

    documents: list[Any]
    """A value for each column of each document."""
    fate: int


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write what the rows of a shard became, in their order."""
    import numpy

    rows = numpy.empty(len(outcomes), _row_type())
    rows[["prefix", "rest"]] = numpy.frombuffer(
        b"".join(outcome.digest for outcome in outcomes), rows[["prefix", "rest"]].dtype.descr[:2]
    )
    for name in ("first", "documents", "fate"):
        rows[name] = [getattr(outcome, name) for outcome in outcomes]
    path.write_bytes(_HEAD + rows.tobytes())


def _row_type() -> Any:
    import numpy

    return numpy.dtype(
        [("prefix", "<u8"), ("rest", "V24"), ("first", "<i4"), ("documents", "<i4"), ("fate", "u1")]
    )


def _read_outcomes(data: Any) -> Any:
    """Return the rows of a file, or None where it is none of these."""
    import numpy

    kind = _row_type()
    if data[: len(_HEAD)] != _HEAD or (len(data) - len(_HEAD)) % kind.itemsize:
        return None
    return numpy.frombuffer(data, kind, offset=len(_HEAD))


class RowMemo:
    """The rows of several shards, by their digests.

    It is made before processes fork and looked into by each of them; the index is a mapped file,
    16 bytes a row, so that memory does not grow with the rows.
    """

    def __init__(self, folders: Sequence[Path], columns: Sequence[str], index: Path) -> None:
        """Look through the fragments in `folders`; `index` is a folder to be made."""
        import numpy

        self._folders = list(folders)
        self._columns = tuple(columns)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._used: dict[int, _Shard] = {}
        index.mkdir(parents=True, exist_ok=True)
        _write_index(self._folders, index)
        self.rows = (index / "places").stat().st_size // 8
        self._prefixes: Any = numpy.empty(0, "<u8")
        self._places: Any = self._prefixes
        if self.rows:
            self._prefixes = numpy.memmap(index / "prefixes", "<u8", "r")
            self._places = numpy.memmap(index / "places", "<u8", "r")

    def find(self, digests: Sequence[bytes]) -> dict[int, Known]:
        """Return what is known of rows, by their places among `digests`.

        Afterwards no page of the files that were looked into is held in memory.
        """
        import numpy

        wanted = numpy.frombuffer(b"".join(digests), numpy.dtype([("p", "<u8"), ("r", "V24")]))["p"]
        at: Any = numpy.searchsorted(self._prefixes, wanted)
        hits = numpy.flatnonzero(at < self.rows)
        hits = hits[self._prefixes[at[hits]] == wanted[hits]]
        places = self._places[at[hits]]
        found = {}
        for hit in numpy.argsort(places):
            number, row = divmod(int(places[hit]), 1 << 32)
            known = self._shard(number).known(row, digests[hits[hit]])
            if known is not None:
                found[int(hits[hit])] = known
        for shard in self._used.values():
            shard.let_go()
        self._used = {}
        return found

    def _shard(self, number: int) -> "_Shard":
        shard = self._open.pop(number, None) or _Shard(self._folders[number], self._columns)
        self._open[number] = self._used[number] = shard
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return shard


def _write_index(folders: Sequence[Path], index: Path) -> None:
    """Write the first eight bytes of all digests, sorted, and where each row is."""
    import numpy

    most = sum((folder / NAME).stat().st_size for folder in folders) // _row_type().itemsize
    bits = max(0, most.bit_length() - _BUCKET_BITS)
    buckets = [index / str(number) for number in range(1 << bits)]
    for path in buckets:
        path.write_bytes(b"")
    for entries in _entries(folders):
        # Two shifts: one by all 64 bits is none.
        numbers = entries["prefix"] >> numpy.uint64(63 - bits) >> numpy.uint64(1)
        for number in numpy.unique(numbers):
            with open(buckets[number], "ab") as file:
                file.write(entries[numbers == number].tobytes())
    with open(index / "prefixes", "wb") as prefixes, open(index / "places", "wb") as places:
        for path in buckets:
            entries = numpy.frombuffer(path.read_bytes(), _entry_type())
            order = numpy.argsort(entries["prefix"], kind="stable")
            prefixes.write(entries["prefix"][order].tobytes())
            places.write(entries["place"][order].tobytes())
            path.unlink()


def _entry_type() -> Any:
    import numpy

    return numpy.dtype([("prefix", "<u8"), ("place", "<u8")])


def _entries(folders: Sequence[Path]) -> Iterator[Any]:
    """Yield the rows that can be taken over, many at a time."""
    import numpy

    waiting: list[Any] = []
    for number, folder in enumerate(folders):
        rows = _read_outcomes((folder / NAME).read_bytes())
        if rows is None:
            continue
        usable = numpy.flatnonzero(rows["documents"] != AGAIN)
        entries: Any = numpy.empty(len(usable), _entry_type())
        entries["prefix"] = rows["prefix"][usable]
        entries["place"] = usable + (number << 32)
        waiting.append(entries)
        if sum(map(len, waiting)) >= 1 << _BUCKET_BITS:
            yield numpy.concatenate(waiting)
            waiting = []
    if waiting:
        yield numpy.concatenate(waiting)


class _Shard:
    """The tokens of one shard, mapped into memory."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        import numpy

        self._maps = [map_file(folder / name) for name in (NAME, "shard.arrow")]
        self._rows = _read_outcomes(self._maps[0])
        table = open_table(self._maps[1])
        self._columns = [_Column(table, name) for name in columns]
        if "seq_lengths" in table.column_names:
            # Documents of packed rows follow one another in one array of ids.
            lengths = _Column(table, "seq_lengths").values
            starts = numpy.cumsum([0, *lengths], dtype=numpy.int64)
            self._columns = [_Column.of(column.values, starts) for column in self._columns]

    def known(self, row: int, digest: bytes) -> Known | None:
        """Return what a row became, if its digest is this one."""
        found = self._rows[row]
        if found.tobytes()[: len(digest)] != digest:
            return None
        first, count = int(found["first"]), int(found["documents"])
        documents = [
            tuple(column.value(number) for column in self._columns)
            for number in range(first, first + count)
        ]
        return Known(documents, int(found["fate"]))

    def let_go(self) -> None:
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


class _Column:
    """Ids of documents one after another, or one value for each."""

    values: Any
    starts: Any
    """Where each begins, and the last ends; None where `values` are the values themselves."""

    def __init__(self, table: Any, name: str) -> None:
        import pyarrow as pa

        chunks = table.column(name)
        # Of one batch there is one chunk, which `combine_chunks` would copy.
        column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
        self.values, self.starts = column, None
        if pa.types.is_list(column.type):
            self.values = column.values.to_numpy()
            self.starts = column.offsets.to_numpy()

    @classmethod
    def of(cls, values: Any, starts: Any) -> "_Column":
        made = cls.__new__(cls)
        made.values, made.starts = values, starts
        return made

    def value(self, number: int) -> Any:
        if self.starts is None:
            return self.values[number].as_py()
        return self.values[self.starts[number] : self.starts[number + 1]].copy()
