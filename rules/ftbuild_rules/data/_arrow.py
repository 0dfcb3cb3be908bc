"""Shards as Arrow IPC files: `data/train-00000.arrow` and so on.

The file format (not the stream), no compression, one record batch, a schema that is fixed and
never inferred: the bytes depend on the rows alone, readers map them into memory, and
`datasets.load_dataset(directory, split="train")` opens them in their order.
"""

import itertools
import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ftbuild.api import canonical_json

_WIDTH = 5
_MOST_OPEN = 4096
PRELOAD = ("pyarrow", "pandas", "xxhash")
"""What rules need that write Arrow files; PyArrow imports pandas where it is installed."""


def dataset_schema(form: str) -> Any:
    """Return the columns of a dataset whose normal form is `form`."""
    import pyarrow as pa

    text = pa.string()
    message = pa.struct(
        [
            ("role", text),
            ("content", text),
            ("name", text),
            ("tool_calls", text),
            ("tool_call_id", text),
            ("train", pa.bool_()),
            ("reasoning_content", text),
            ("train_detail", text),
        ]
    )
    messages = pa.list_(message)
    columns = {
        "messages": [("messages", messages), ("tools", text)],
        "preference": [
            ("prompt", messages),
            ("chosen", messages),
            ("rejected", messages),
            ("tools", text),
        ],
        "text": [("text", text)],
        "segments": [("segments", pa.list_(pa.struct([("text", text), ("train", pa.bool_())])))],
        "tokenized": [("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))],
        "unpaired": [
            ("prompt", messages),
            ("completion", messages),
            ("label", pa.bool_()),
            ("tools", text),
        ],
        "stepwise": [
            ("prompt", text),
            ("completions", pa.list_(text)),
            ("labels", pa.list_(pa.bool_())),
        ],
        "prompts": [("prompt", messages), ("tools", text)],
    }
    return pa.schema([*columns[form], ("metadata", text)])


def write_rows(path: Path, rows: Sequence[dict[str, Any]], schema: Any) -> None:
    """Write `rows` as one file."""
    import pyarrow as pa

    write_batch(path, pa.RecordBatch.from_pylist(list(rows), schema=schema))


def write_batch(path: Path, batch: Any) -> None:
    """Write one record batch as one file."""
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression=None)
    with pa.ipc.new_file(str(path), batch.schema, options=options) as writer:
        writer.write_batch(batch)


def read_table(path: Path) -> Any:
    """Return the rows of a file, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def map_file(path: Path) -> mmap.mmap:
    """Return a file that has bytes, mapped into memory for reading."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class MappedTables:
    """Many files of which some rows each are read; the latest used stay mapped."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, tuple[mmap.mmap, Any]] = OrderedDict()

    def take(self, files: Any, rows: Any) -> list[dict[str, Any]]:
        """Return rows by the numbers of their files and of themselves in these, as two arrays.

        Of all these files pages of one at a time are held in memory.
        """
        import numpy
        import pyarrow as pa

        order = numpy.argsort(files, kind="stable")
        starts = numpy.flatnonzero(numpy.diff(files[order], prepend=-1))
        found = []
        for places in numpy.split(order, starts[1:]):
            mapped, table = self._table(int(files[places[0]]))
            found.append(table.take(pa.array(rows[places])))
            mapped.madvise(mmap.MADV_DONTNEED)  # what was taken is a copy
        back: Any = numpy.empty(len(order), numpy.int64)
        back[order] = numpy.arange(len(order))
        whole: Any = pa.concat_tables(found).combine_chunks()
        taken: list[dict[str, Any]] = whole.take(pa.array(back)).to_pylist()
        return taken

    def _table(self, number: int) -> tuple[mmap.mmap, Any]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        mapped = map_file(self._paths[number])
        self._open[number] = mapped, open_table(mapped)
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return self._open[number]


def open_table(data: Any) -> Any:
    """Return the rows of a file whose bytes are `data`; nothing is copied."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()


def read_rows(directory: Path, *, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of all shards of an artifact in their order."""
    for path in shard_paths(directory):
        yield from read_file(path, columns=columns)


def read_file(path: Path, *, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard, some of them in memory at a time."""
    table = read_table(path)
    for batch in (table.select(columns) if columns else table).to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def rows_of(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a table; a key of a message that is null is no key."""
    import pyarrow as pa

    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        is_structs = pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)
        columns[name] = _lists(column) if is_structs else column.to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _lists(column: Any) -> list[list[dict[str, Any]]]:
    """Return lists of objects; made column by column, for most of the columns are empty."""
    flat = column.flatten()
    values = [
        (flat.type.field(place).name, child.to_pylist(), child.null_count > 0)
        for place, child in enumerate(flat.flatten())
        if child.null_count < len(child)
    ]
    items: list[dict[str, Any]] = [{} for _ in range(len(flat))]
    for name, found, is_sparse in values:
        for item, value in zip(items, found, strict=True):
            if not is_sparse or value is not None:
                item[name] = value
    lengths = column.value_lengths().to_pylist()
    ends = itertools.accumulate(lengths, initial=0)
    return [items[at : at + length] for at, length in zip(ends, lengths, strict=False)]


def shard_paths(directory: Path) -> list[Path]:
    """Return the shards of an artifact in their order."""
    return sorted((directory / "data").glob("train-*.arrow"))


def shard_name(index: int, total: int) -> str:
    """Return the name of one of `total` shards; as text they sort as they are numbered."""
    width = max(_WIDTH, len(str(total - 1)))
    return f"data/train-{index:0{width}}.arrow"


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Write `dataset.json` or `tokens.json`: canonical, so that equal content is equal bytes."""
    path.write_bytes(canonical_json(index) + b"\n")
