r"""`mix`: several datasets in one, in exact proportions.

[mix.all]
datasets = { chats = "chats", code = "//code:rows" }
weights = { chats = 3, code = 1 }

Which rows are taken, and where each stands, follows from the seed and the row's own content. So
an edited row changes the shard it is in, and no other row is taken or moved for it.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    RuleError,
    rule,
)
from ftbuild_rules.data._arrow import PRELOAD, read_table, shard_paths
from ftbuild_rules.data._hashing import exact_counts, place_of_text
from ftbuild_rules.data._shards import SizedRow
from ftbuild_rules.data._write import as_sized, form_of, read_index, sized_rows, write_dataset

_BLOCK_ROWS = 512


class MixInputs(Inputs):
    """What is mixed."""

    datasets: dict[str, Dataset]
    """Datasets of one form, each under a name of your choice."""


class MixParams(Params):
    """How much of each."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Proportions by name. Without any, all rows of all datasets are taken."""

    rows: int | None = Field(default=None, gt=0)
    """How many rows there are in the end; with `weights` and without this, as many as the
    datasets give without a row being taken twice."""

    max_rows: dict[str, Annotated[int, Field(gt=0)]] = Field(default={})
    """The most rows that are taken of a dataset, by name."""

    repeat: bool = False
    """Whether rows may be taken more than once, where a dataset has too few of them."""

    order: Literal["shuffled", "sequential"] = "shuffled"
    """`shuffled` by the seed, or one dataset after the other, each in its own order."""

    seed: int = Field(default=0, ge=0)
    """What decides which rows are taken and where they stand."""


def check(kinds: Mapping[str, tuple[str, ...]], params: MixParams) -> None:
    """Check that the attributes go together.

    Raises:
        AttributeProblem: an attribute has no meaning without another one.
    """
    if params.rows is not None and not params.weights:
        raise AttributeProblem("rows", "`rows` has no meaning without `weights`", "add `weights`")
    if params.repeat and params.rows is None:
        raise AttributeProblem("repeat", "`repeat` has no meaning without `rows`", "add `rows`")


@rule(version=1, output=Dataset, pins=("pyarrow",), preload=PRELOAD, check=check)
def mix(ctx: Context, inputs: MixInputs, params: MixParams) -> None:
    """Mix datasets of one form, seeded and in exact proportions."""
    _check_names(inputs, params)
    form = _one_form(inputs)
    counts = _counts(inputs, params)
    taken = _concatenated(
        [
            _taken(dataset, number, counts[name], params.seed)
            for number, (name, dataset) in enumerate(inputs.datasets.items())
        ]
    )
    taken = taken[_order(taken, *(["place"] if params.order == "shuffled" else []))]
    write_dataset(ctx, _rows(inputs, taken), form)
    for name, count in counts.items():
        ctx.log(f"{name}: {count:,} of {read_index(inputs.datasets[name])['rows']:,} rows")
    ctx.facts(counts=counts)


def _check_names(inputs: MixInputs, params: MixParams) -> None:
    for attribute in ("weights", "max_rows"):
        for name in getattr(params, attribute):
            if name not in inputs.datasets:
                raise RuleError(
                    f"`{attribute}` names `{name}`, which is none of `datasets`",
                    code="E0850",
                    fix=f"use {', '.join(f'`{known}`' for known in inputs.datasets)}",
                )
    absent = [name for name in inputs.datasets if params.weights and name not in params.weights]
    if absent:
        raise RuleError(
            f"`weights` says nothing of `{absent[0]}`",
            code="E0850",
            fix="give each of `datasets` a weight, or leave it out",
        )


def _one_form(inputs: MixInputs) -> str:
    forms = {name: form_of(dataset) for name, dataset in inputs.datasets.items()}
    if len(set(forms.values())) != 1:
        shown = ", ".join(f"`{name}` is `{form}`" for name, form in forms.items())
        raise RuleError(
            f"datasets of several forms cannot be mixed: {shown or 'there is none'}",
            code="E0851",
            fix="mix those of one form, or change rows by a `transform`",
        )
    return next(iter(forms.values()))


def _counts(inputs: MixInputs, params: MixParams) -> dict[str, int]:
    """Return how many rows are taken of each dataset."""
    there = {name: int(read_index(d)["rows"]) for name, d in inputs.datasets.items()}
    capped = {name: min(n, params.max_rows.get(name, n)) for name, n in there.items()}
    if not params.weights:
        return capped
    weights = {name: params.weights[name] for name in there}
    if params.rows is None:
        whole = sum(weights.values())
        total = int(min(capped[name] * whole / weight for name, weight in weights.items()))
        while any(n > capped[name] for name, n in exact_counts(weights, total).items()):
            total -= 1
        return exact_counts(weights, total)
    counts = exact_counts(weights, params.rows)
    for name, count in counts.items():
        most = params.max_rows.get(name, count) if params.repeat else capped[name]
        if count > most:
            raise RuleError(
                f"`{name}` should give {count:,} rows; it may give {most:,}",
                code="E0852",
                fix="lower `rows`, or its weight; `repeat = true` takes rows more than once",
            )
    return counts


_ENTRY = [("place", "u8"), ("number", "u4"), ("row", "u8"), ("copy", "u4")]
"""Where it falls, number of the dataset, row, copy: 24 bytes a row are all that memory holds."""


def _taken(dataset: Dataset, number: int, count: int, seed: int) -> Any:
    """Return the `count` rows that the seed puts first, after all rows as often as that is less."""
    import numpy

    fingerprints = numpy.fromiter((row.fingerprint for row in sized_rows(dataset)), numpy.uint64)
    full, rest = divmod(count, len(fingerprints))
    taken = [_entries(fingerprints, number, copy, seed) for copy in range(full)]
    if rest:
        last = _entries(fingerprints, number, full, seed)
        taken.append(last[_order(last, "place")[:rest]])
    return _concatenated(taken)


def _entries(fingerprints: Any, number: int, copy: int, seed: int) -> Any:
    import numpy

    entries: Any = numpy.empty(len(fingerprints), _ENTRY)
    places = (place_of_text(f"{fingerprint}:{copy}", seed) for fingerprint in fingerprints.tolist())
    entries["place"] = numpy.fromiter(places, numpy.uint64, len(fingerprints))
    entries["number"], entries["copy"] = number, copy
    entries["row"] = numpy.arange(len(fingerprints))
    return entries


def _concatenated(parts: list[Any]) -> Any:
    import numpy

    return numpy.concatenate([numpy.empty(0, _ENTRY), *parts])


def _order(entries: Any, *first: str) -> Any:
    """Return the places of the entries by these columns, then by dataset, row and copy."""
    import numpy

    columns = [*first, "number", "row", "copy"]
    return numpy.lexsort([entries[name] for name in reversed(columns)])


def _rows(inputs: MixInputs, taken: Any) -> Iterator[SizedRow]:
    """Yield the rows of all datasets that were taken, in the order of `taken`."""
    import numpy
    import pyarrow as pa

    paths = [[read_table(p) for p in shard_paths(d.path)] for d in inputs.datasets.values()]
    tables = [pa.concat_tables(shards) for shards in paths]
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + table.num_rows)
    whole: Any = pa.concat_tables(tables)
    for at in range(0, len(taken), _BLOCK_ROWS):
        block = taken[at : at + _BLOCK_ROWS]
        indices = numpy.array(starts, numpy.uint64)[block["number"]] + block["row"]
        yield from map(as_sized, whole.take(pa.array(indices)).to_pylist())
