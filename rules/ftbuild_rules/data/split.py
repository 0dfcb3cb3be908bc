"""`split`: one part of a dataset, such as its rows for training or those kept for evaluation.

[split.parts]
dataset = "chats"
fractions = { train = 0.95, eval = 0.05 }
matrix = { part = ["train", "eval"] }          # parts[part=train] and parts[part=eval]

On which side a row falls follows from the seed and from what the row says: adding, removing or
editing another row never moves it, and rows that say the same are never on two sides.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated

from ftbuild.api import (
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    RuleError,
    canonical_json,
    rule,
)
from ftbuild_rules.data._arrow import PRELOAD
from ftbuild_rules.data._by_shard import Numbered, write_changed
from ftbuild_rules.data._hashing import SPACE, place_of, place_of_text
from ftbuild_rules.data._shards import SizedRow
from ftbuild_rules.data._write import form_of, read_index


class SplitInputs(Inputs):
    """What is split."""

    dataset: Dataset
    """Rows of any form."""


class SplitParams(Params):
    """Which part."""

    part: str
    """The part that this target is: one of `fractions`."""

    fractions: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default={"train": 0.9, "eval": 0.1}
    )
    """The parts and their share of the rows, in an order that matters: a later part grows at the
    cost of the one before it, and no row moves between others. Their sum is 1."""

    group: str | None = None
    """A column that the format does not read, such as `"conversation_id"`: rows with the same
    value stay together."""

    seed: int = Field(default=0, ge=0)
    """What decides on which side a row falls."""


def check(kinds: Mapping[str, tuple[str, ...]], params: SplitParams) -> None:
    """Check that the parts are a whole, and that this is one of them.

    Raises:
        AttributeProblem: it is not.
    """
    if params.part not in params.fractions:
        known = ", ".join(f"`{name}`" for name in params.fractions)
        raise AttributeProblem("part", f"there is no part `{params.part}`", f"use one of {known}")
    whole = math.fsum(params.fractions.values())
    if abs(whole - 1) > 1e-9:
        raise AttributeProblem(
            "fractions", f"the fractions add up to {whole:g}", "make their sum 1"
        )


@rule(
    version=1,
    output=Dataset,
    pins=("pyarrow",),
    preload=PRELOAD,
    check=check,
    cpus="all",
)
def split(ctx: Context, inputs: SplitInputs, params: SplitParams) -> None:
    """Take one part of a dataset, by the content of its rows."""
    start, end = _range(params)

    def chosen(rows: Numbered) -> Iterator[SizedRow]:
        return (row for _, row in rows if start <= _place(row, params) < end)

    there = read_index(inputs.dataset)["rows"]
    taken = write_changed(ctx, inputs.dataset, chosen, form_of(inputs.dataset))
    if not taken:
        raise RuleError(
            f"none of {there:,} rows fall into the part `{params.part}`",
            code="E0853",
            fix="give it a larger share, or set another `seed`",
        )
    ctx.log(f"{params.part}: {taken:,} of {there:,} rows")


def _range(params: SplitParams) -> tuple[int, int]:
    names = list(params.fractions)
    at = names.index(params.part)
    shares = [params.fractions[name] for name in names]
    start = int(math.fsum(shares[:at]) * SPACE)
    is_last = at == len(names) - 1
    return start, SPACE if is_last else int(math.fsum(shares[: at + 1]) * SPACE)


def _place(row: SizedRow, params: SplitParams) -> int:
    if params.group is None:
        return place_of(row, params.seed)
    value = json.loads(row.columns["metadata"]).get(params.group)
    if value is None:
        raise RuleError(
            f"a row has no column `{params.group}` to group it by",
            code="E0854",
            fix="name a column that the format does not read, and that all rows have",
        )
    return place_of_text(canonical_json(value).decode(), params.seed)
