"""Parquet and Arrow -> rows, as the same values in JSON would be.

Dates and times become ISO texts, decimals texts. What JSON cannot hold (NaN, bytes) is refused,
as it is in a JSON file. A null inside a struct is a key that is not there, since all structs of
a column must have the same keys. Nothing in a file is ever run: no pickles, no extensions.
"""

import datetime
import decimal
import math
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ftbuild.api import Place, RuleError
from ftbuild_rules.data._json import RefusedError
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._streams import seekable

_BATCH_ROWS = 256


def parquet_rows(
    binary: BinaryIO, name: str, *, groups: range | None = None
) -> Iterator[Row | RuleError]:
    """Yield the rows of a Parquet file, or of some row groups, some of them in memory at a time.

    Raises:
        RuleError: it is no Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with seekable(binary) as file:
        try:
            opened = parquet.ParquetFile(file)
            _check_names(opened.schema_arrow.names, name)
            about = opened.metadata
            before = sum(about.row_group(n).num_rows for n in range(groups.start if groups else 0))
            batches = opened.iter_batches(_BATCH_ROWS, row_groups=groups)
            yield from _batches_rows(batches, name, before)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(error, name, "Parquet") from None


def arrow_rows(
    binary: BinaryIO, name: str, *, groups: range | None = None
) -> Iterator[Row | RuleError]:
    """Yield the rows of an Arrow IPC file (Feather is the same), of some batches, or of a stream.

    Raises:
        RuleError: it is neither.
    """
    import pyarrow as pa

    with seekable(binary) as file:
        magic = file.read(6)
        file.seek(0)
        try:
            if magic == b"ARROW1":
                opened = pa.ipc.open_file(file)
                chosen = groups or range(opened.num_record_batches)
                batches = map(opened.get_batch, chosen)
                before = sum(opened.get_batch(n).num_rows for n in range(chosen.start))
            else:
                opened = pa.ipc.open_stream(file)
                batches, before = iter(opened), 0
            _check_names(opened.schema.names, name)
            yield from _batches_rows(batches, name, before)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(error, name, "Arrow") from None


def parquet_groups(path: Path) -> list[int]:
    """Return the bytes of each row group; none where it is no Parquet file, as reading it says."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        about = parquet.read_metadata(path)
    except (pa.ArrowException, OSError):
        return []
    return [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]


def arrow_batches(path: Path) -> list[int]:
    """Return the bytes of each record batch; none where it is no Arrow file, or a stream."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as opened:
            return [opened.get_batch(n).nbytes for n in range(opened.num_record_batches)]
    except (pa.ArrowException, OSError):
        return []


def _check_names(names: list[str], name: str) -> None:
    twice, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise RuleError(
            f"there are two columns named `{twice}`",
            code="E0805",
            where=Place(name),
            fix="rename one of the two",
        )


def _damaged(error: Exception, name: str, what: str) -> RuleError:
    if getattr(error, "errno", None) is not None:  # the machine's, not the file's
        raise error
    return RuleError(
        f"not a whole {what} file",
        code="E0843",
        where=Place(name),
        why=str(error).strip().splitlines()[0][:200],
        fix="was it copied whole? get the file again, or rename it if it is of another type",
    )


def _batches_rows(batches: Iterator[Any], name: str, before: int) -> Iterator[Row | RuleError]:
    number = before
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            part = batch.slice(start, _BATCH_ROWS)
            for item in _values(part):
                number += 1
                yield _row(item, Place(name, within=f"row {number}"))


def _values(batch: Any) -> list[Any]:
    try:
        values: list[Any] = batch.to_pylist()
    except (UnicodeDecodeError, ValueError, OverflowError):
        return [_value(batch.slice(n, 1)) for n in range(batch.num_rows)]
    return values


def _value(batch: Any) -> Any:
    """Return the one row of `batch`, or why Python cannot hold it."""
    try:
        return batch.to_pylist()[0]
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        return error


def _row(value: Any, place: Place) -> Row | RuleError:
    if isinstance(value, UnicodeDecodeError):
        return RuleError(
            f"a text has the byte 0x{value.object[value.start]:02x}, which is not UTF-8",
            code="E0802",
            where=place,
            fix="write the file again with texts in UTF-8",
        )
    if isinstance(value, Exception):
        return _refused(RefusedError("E0806", str(value), "write the value as text"), place)
    try:
        return Row(place, {key: json_value(item, f"`{key}`") for key, item in value.items()})
    except RefusedError as error:
        return _refused(error, place)


def _refused(error: RefusedError, place: Place) -> RuleError:
    return RuleError(str(error), code=error.code, where=place, fix=error.fix)


def json_value(value: Any, where: str) -> Any:
    """Return `value` as JSON has it.

    Raises:
        RefusedError: JSON has nothing of the kind.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RefusedError(
                "E0806", f"{where} is {value}, which is no number", "write null where there is none"
            )
        return value
    if isinstance(value, dict):
        return {key: json_value(item, where) for key, item in value.items() if item is not None}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return [value[0], json_value(value[1], where)]
    if isinstance(value, list):
        return [json_value(item, where) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID | datetime.timedelta):
        return str(value)
    raise RefusedError(
        "E0843",
        f"{where} holds values of type {type(value).__name__}, which no format takes",
        "leave the column out, or write it as text",
    )
