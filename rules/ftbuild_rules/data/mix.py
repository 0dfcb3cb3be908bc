r"""`mix`: several datasets in one, in exact proportions.

[mix.all]
datasets = { chats = "chats", code = "//code:rows" }
weights = { chats = 3, code = 1 }

Which rows are taken, and where each stands, follows from the seed and the row's own content. So
an edited row changes the shard it is in, and no other row is taken or moved for it.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

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
from ftbuild_rules.data._arrow import PRELOAD
from ftbuild_rules.data._by_shard import write_pieces
from ftbuild_rules.data._hashing import exact_counts
from ftbuild_rules.data._order import Shuffled, place, sequential, sequential_rows
from ftbuild_rules.data._shards import SMALL_ROWS
from ftbuild_rules.data._write import form_of, read_index


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


@rule(version=1, output=Dataset, pins=("pyarrow",), preload=PRELOAD, check=check, cpus="all")
def mix(ctx: Context, inputs: MixInputs, params: MixParams) -> None:
    """Mix datasets of one form, seeded and in exact proportions."""
    _check_names(inputs, params)
    form = _one_form(inputs)
    counts = _counts(inputs, params)
    draws = place(
        ctx,
        [(d, read_index(d)["rows"], counts[name]) for name, d in inputs.datasets.items()],
        params.seed,
        of="datasets",
    )
    is_large = sum(counts.values()) > SMALL_ROWS
    if params.order == "shuffled":
        order = Shuffled(draws, ctx.scratch / "order")
        pieces, rows = order.pieces, order.rows
    else:
        pieces, rows = sequential(draws), sequential_rows
    write_pieces(ctx, pieces, rows, form, of=("datasets",), is_large=is_large)
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
