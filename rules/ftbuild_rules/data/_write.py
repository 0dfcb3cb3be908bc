"""Rows in their normal form -> a dataset artifact, and back."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ftbuild.api import Artifact, Context
from ftbuild_rules.data._arrow import (
    dataset_schema,
    read_rows,
    shard_name,
    write_index,
    write_rows,
)
from ftbuild_rules.data._shards import SizedRow, cut, size_row


def write_dataset(ctx: Context, rows: Iterable[SizedRow], form: str) -> int:
    """Write `rows`, cut into shards by content, and return how many there are.

    Without any row nothing is finished: the caller says what that means.
    """
    (ctx.out / "data").mkdir()
    schema = dataset_schema(form)
    counts: list[int] = []
    for shard in cut(rows):
        path = ctx.out / "data" / f"{len(counts)}.arrow"
        write_rows(path, [row.columns for row in shard], schema)
        counts.append(len(shard))
    for number in range(len(counts)):
        # Now that their number is known they get the names that sort in their order.
        (ctx.out / "data" / f"{number}.arrow").rename(ctx.out / shard_name(number, len(counts)))
    if counts:
        finish_dataset(ctx, form, counts)
    return sum(counts)


def finish_dataset(ctx: Context, form: str, counts: Sequence[int]) -> None:
    """Write what `dataset.json` says of shards of so many rows."""
    shards = [[shard_name(number, len(counts)), rows] for number, rows in enumerate(counts)]
    write_index(ctx.out / "dataset.json", {"form": form, "rows": sum(counts), "shards": shards})
    ctx.facts(rows=sum(counts), shards=len(counts))


def form_of(dataset: Artifact) -> str:
    """Return the normal form of a dataset's rows."""
    return str(read_index(dataset)["form"])


def read_index(dataset: Artifact) -> dict[str, Any]:
    """Return what `dataset.json` says."""
    index: dict[str, Any] = json.loads((dataset.path / "dataset.json").read_bytes())
    return index


def sized_rows(dataset: Artifact) -> Iterator[SizedRow]:
    """Yield the rows of a dataset in their order."""
    for row in read_rows(dataset.path):
        yield as_sized(row)


def as_sized(row: dict[str, Any]) -> SizedRow:
    """Return a row that was read as it was when it was written: what is not given is no key."""
    return size_row({name: _without_absent(value) for name, value in row.items()})


def _without_absent(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_absent(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return value
