"""`filter`: the rows that fulfil a condition, in their order.

[filter.short]
dataset = "chats"
where = 'language == "de" and "as an AI" not in text'
max_characters = 4000
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

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
from ftbuild_rules.data._by_shard import Numbered, write_changed
from ftbuild_rules.data._expression import Condition, ExpressionError, compile_condition
from ftbuild_rules.data._shards import SizedRow
from ftbuild_rules.data._text_of import text_of
from ftbuild_rules.data._write import form_of, read_index


class FilterInputs(Inputs):
    """What is filtered."""

    dataset: Dataset
    """Rows of any form."""


class FilterParams(Params):
    """Which rows stay: those that fulfil all that is set."""

    where: str | None = None
    """A condition: comparisons, `and`, `or`, `not`, `in`, arithmetic, `len`, `lower`,
    `startswith`, `endswith` and `count`, on the columns that the format does not read and on
    `text` (all texts of the row), `characters`, `words` and `turns`."""

    min_characters: int | None = Field(default=None, ge=0)
    """The fewest characters of all texts of a row."""

    max_characters: int | None = Field(default=None, ge=0)
    """The most characters of all texts of a row."""

    min_turns: int | None = Field(default=None, ge=0)
    """The fewest messages of a conversation."""

    max_turns: int | None = Field(default=None, ge=0)
    """The most messages of a conversation."""


def check(kinds: Mapping[str, tuple[str, ...]], params: FilterParams) -> None:
    """Check that there is a condition, and that it can be read.

    Raises:
        AttributeProblem: it is not so.
    """
    if params == FilterParams():
        raise AttributeProblem("where", "nothing is filtered", "add `where` or `max_characters`")
    if params.where is not None:
        try:
            compile_condition(params.where)
        except ExpressionError as error:
            raise AttributeProblem(
                "where", f"`where` cannot be read: {error}", "write 'language == \"de\"'"
            ) from None


@rule(
    version=1,
    output=Dataset,
    pins=("pyarrow",),
    preload=PRELOAD,
    check=check,
    cpus="all",
)
def filter(ctx: Context, inputs: FilterInputs, params: FilterParams) -> None:
    """Keep the rows that fulfil a condition."""
    there = read_index(inputs.dataset)["rows"]
    condition = None if params.where is None else compile_condition(params.where)

    def fitting(rows: Numbered) -> Iterator[SizedRow]:
        for number, row in rows:
            names = names_of(row.columns)
            if _fits(names, params) and (condition is None or _holds(condition, names, number)):
                yield row

    kept = write_changed(ctx, inputs.dataset, fitting, form_of(inputs.dataset))
    if not kept:
        raise RuleError(
            f"none of {there:,} rows fulfil the condition",
            code="E0855",
            fix="look at the rows: `ftbuild inspect` with --row 0 shows what they hold",
        )
    ctx.log(f"{kept:,} of {there:,} rows are kept")
    ctx.facts(dropped=there - kept)


def names_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a condition can name of a row."""
    text = text_of(row)
    turns = sum(
        len(value)
        for name, value in row.items()
        if name in ("messages", "prompt", "chosen", "completion") and isinstance(value, list)
    )
    figures = {"text": text, "characters": len(text), "words": len(text.split()), "turns": turns}
    return {**json.loads(row["metadata"]), **figures}


def _fits(names: Mapping[str, Any], params: FilterParams) -> bool:
    return all(
        (least is None or names[name] >= least) and (most is None or names[name] <= most)
        for name, least, most in (
            ("characters", params.min_characters, params.max_characters),
            ("turns", params.min_turns, params.max_turns),
        )
    )


def _holds(condition: Condition, names: Mapping[str, Any], number: int) -> bool:
    try:
        return bool(condition(names))
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise RuleError(
            f"the condition has no meaning for row {number}: {error}",
            code="E0855",
            fix="compare a column with a value of its own type: see `ftbuild inspect --row`",
        ) from None
