r"""`transform`: rows changed by a function of yours.

[transform.polite]
dataset = "chats"
function = "rows.py:polite"

def polite(row):
    row["messages"][-1]["content"] += "\n\nAnything else?"
    return row              # or None to leave the row out, or a list of rows

The row is its normal form as plain values: `tools`, `metadata` and the `tool_calls` of a message
are no JSON texts but what they say. The function's code, and that of the project's files it
imports, is in the key; so it must depend on nothing else: no clock, no file, no other row.
Rows are given to it in several processes, and after an edit only those of the changed shards.
"""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ftbuild.api import (
    Context,
    Dataset,
    Function,
    Inputs,
    Params,
    RuleError,
    canonical_json,
    rule,
)
from ftbuild_rules.data._arrow import PRELOAD
from ftbuild_rules.data._by_shard import Numbered, write_changed
from ftbuild_rules.data._shards import SizedRow, size_row
from ftbuild_rules.data._write import form_of
from ftbuild_rules.formats import (
    openai,
    preference,
    prompts,
    segments,
    stepwise,
    text,
    tokenized,
    unpaired,
)
from ftbuild_rules.formats._words import BadRow, kind, names

_FORMS: dict[str, Any] = {
    "messages": openai,
    "preference": preference,
    "prompts": prompts,
    "segments": segments,
    "stepwise": stepwise,
    "text": text,
    "tokenized": tokenized,
    "unpaired": unpaired,
}
Form = Literal[
    "messages", "preference", "prompts", "segments", "stepwise", "text", "tokenized", "unpaired"
]


class TransformInputs(Inputs):
    """What is changed, and by what."""

    dataset: Dataset
    """Rows of any form."""

    function: Function
    """A function of one row: `file.py:function`. It returns the row, None, or a list of rows."""


class TransformParams(Params):
    """What comes out."""

    form: Form | None = None
    """The form of the rows that the function returns, where it is another one."""


@rule(version=2, output=Dataset, pins=("pyarrow",), preload=PRELOAD, cpus="all")
def transform(ctx: Context, inputs: TransformInputs, params: TransformParams) -> None:
    """Change the rows of a dataset by a Python function."""
    form = params.form or form_of(inputs.dataset)

    def changed(rows: Numbered) -> Iterator[SizedRow]:
        # Loaded anew for each shard: what a function remembers of other rows must not show.
        return _changed(inputs.function, inputs.function.load(), rows, form)

    if not write_changed(ctx, inputs.dataset, changed, form):
        raise RuleError(
            f"`{inputs.function.spec}` leaves no row",
            code="E0858",
            fix="a function that changes its row in place returns it too",
        )


def _changed(
    given: Function, function: Callable[[Any], Any], rows: Numbered, form: str
) -> Iterator[SizedRow]:
    for number, row in rows:
        for found in _called(given, function, row.columns, number):
            try:
                yield size_row(_normal(found, form))
            except (BadRow, TypeError, ValueError) as error:
                raise RuleError(
                    f"`{given.spec}` returns no row for row {number}: {error}",
                    code="E0858",
                    fix=error.fix if isinstance(error, BadRow) else "return values that JSON has",
                ) from None


def _called(
    given: Function, function: Callable[[Any], Any], row: dict[str, Any], number: int
) -> list[Any]:
    try:
        found = function(plain_row(row))
    except Exception as error:
        failure = given.failure(error)
        problem = failure.problems[0]
        raise RuleError(
            f"{problem.what} (row {number})",
            code=problem.code,
            where=problem.where,
            fix=problem.fix,
        ) from error
    if found is None:
        return []
    return copy.deepcopy(found) if isinstance(found, list) else [found]


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with values in the place of JSON texts."""
    plain = copy.deepcopy(row)
    for name in ("tools", "metadata"):
        if plain.get(name) is not None:
            plain[name] = json.loads(plain[name])
    for value in plain.values():
        for item in value if isinstance(value, list) else []:
            if isinstance(item, dict) and "tool_calls" in item:
                item["tool_calls"] = json.loads(item["tool_calls"])
            if isinstance(item, dict) and "train_detail" in item:
                item["train_detail"] = _detail(json.loads(item["train_detail"]))
    return plain


def _detail(ranges: list[tuple[int, int, bool]]) -> list[dict[str, Any]]:
    return [
        {"begin_offset": begin, "end_offset": end - 1, "train": train}
        for begin, end, train in ranges
    ]


def _normal(row: Any, form: str) -> dict[str, Any]:
    """Return what a function returned in its normal form, checked as rows of a file are."""
    if not isinstance(row, dict):
        raise BadRow("E0858", f"it is {kind(row)}", "return the row, None or a list of rows")
    module = _FORMS[form]
    metadata = row.get("metadata") or {}
    given = {key: item for key, item in row.items() if key != "metadata" and item is not None}
    known = [*module.COLUMNS]
    if unknown := sorted(set(given) - set(known)):
        raise BadRow(
            "E0858",
            f"it has {names(unknown)}; the form has {names(known)}",
            "put it into `metadata`",
        )
    absent = [column for column in module.NEEDED if column not in given]
    if absent:
        raise BadRow("E0858", f"it has no {names(absent)}", "return all columns of the form")
    return {**module.normalise(given), "metadata": canonical_json(metadata).decode()}
