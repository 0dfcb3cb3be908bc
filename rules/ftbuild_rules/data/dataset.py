r"""`dataset`: rows from outside -> rows in their normal form, in shards that follow edits.

What a format does not read is kept as `metadata`: an edit there changes the dataset and no
token, so it ends at `tokens`. Messages, preference pairs and texts each have one fixed schema.

{"messages": [{"role": "user", "content": "Hi"}, …], "tools": null, "metadata": "{\"id\":7}"}
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    Place,
    RuleError,
    Source,
    canonical_json,
    rule,
)
from ftbuild_rules.data._arrow import dataset_schema, shard_name, write_index, write_rows
from ftbuild_rules.data._read import Row, read_rows
from ftbuild_rules.data._shards import SizedRow, cut, size_row
from ftbuild_rules.formats import alpaca, openai, preference, sharegpt, text
from ftbuild_rules.formats._messages import BadRow, names

# In the order in which a format is suggested for a row: the one that says most comes first.
FORMATS: dict[str, ModuleType] = {
    "preference": preference,
    "openai": openai,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "text": text,
}
_MAX_PROBLEMS = 5
_PROGRESS_ROWS = 10_000


class DatasetInputs(Inputs):
    """Where the rows are."""

    source: Source
    """JSON Lines files, or files that hold one JSON array; several are read in their order."""


class DatasetParams(Params):
    """How the rows are written."""

    format: Literal["openai", "sharegpt", "alpaca", "text", "preference"]
    """How a row looks: `openai` has `messages` (role, content), `sharegpt` has `conversations`
    (from, value), `alpaca` has `instruction`, `input`, `output`, `text` has `text`, and
    `preference` has `prompt`, `chosen`, `rejected`."""

    columns: dict[str, str] = Field(default={})
    """Other names for the format's columns: `columns = { messages = "dialog" }` reads the rows'
    `dialog` as `messages`."""


def check(kinds: Mapping[str, tuple[str, ...]], params: DatasetParams) -> None:
    """Check that only columns of the format are renamed.

    Raises:
        AttributeProblem: the format has no such column.
    """
    known = FORMATS[params.format].COLUMNS
    for column in params.columns:
        if column not in known:
            raise AttributeProblem(
                "columns",
                f"format `{params.format}` has no column `{column}`",
                f"use {names(known)}, each with the name it has in your rows",
            )


@rule(version=1, output=Dataset, pins=("pyarrow",), preload=("pyarrow", "xxhash"), check=check)
def dataset(ctx: Context, inputs: DatasetInputs, params: DatasetParams) -> None:
    """Read rows into their normal form, cut into shards by content."""
    form = FORMATS[params.format].FORM
    schema = dataset_schema(form)
    (ctx.out / "data").mkdir()
    counts: list[int] = []
    for shard in cut(_rows(ctx, inputs.source, params)):
        path = ctx.out / "data" / f"{len(counts)}.arrow"
        write_rows(path, [row.columns for row in shard], schema)
        counts.append(len(shard))
    if not counts:
        raise RuleError(
            "the source has no rows",
            code="E0809",
            where=Place(inputs.source.spec),
            fix="write one JSON object a line",
        )
    shards = _name_shards(ctx.out, counts)
    index = {"form": form, "rows": sum(counts), "shards": shards}
    write_index(ctx.out / "dataset.json", index)
    ctx.facts(rows=sum(counts), shards=len(counts))


def _name_shards(out: Path, counts: list[int]) -> list[list[Any]]:
    """Give the shards the names that sort in their order, now that their number is known."""
    shards = []
    for number, rows in enumerate(counts):
        name = shard_name(number, len(counts))
        (out / "data" / f"{number}.arrow").rename(out / name)
        shards.append([name, rows])
    return shards


def _rows(ctx: Context, source: Source, params: DatasetParams) -> Iterator[SizedRow]:
    """Yield the rows of all files.

    Raises:
        RuleError: rows are bad; it names the first five.
    """
    problems: list[RuleError] = []
    number = 0
    for file in source.files:
        for row in read_rows(file):
            item = _normal_row(row, file.name, params) if isinstance(row, Row) else row
            if isinstance(item, RuleError):
                problems.append(item)
                if len(problems) == _MAX_PROBLEMS:
                    raise _joined(problems)
            else:
                yield item
            number += 1
            if number % _PROGRESS_ROWS == 0:
                ctx.progress(number)
    if problems:
        raise _joined(problems)


def _joined(errors: list[RuleError]) -> RuleError:
    first = errors[0]
    first.problems = tuple(problem for error in errors for problem in error.problems)
    return first


def _normal_row(row: Row, name: str, params: DatasetParams) -> SizedRow | RuleError:
    try:
        return size_row(_columns(row.value, params))
    except BadRow as error:
        return RuleError(str(error), code=error.code, where=Place(name, row.line), fix=error.fix)
    except UnicodeError:
        return RuleError(
            "a text holds half of a surrogate pair (`\\ud800` to `\\udfff`), which is no character",
            code="E0816",
            where=Place(name, row.line),
            fix="write the whole pair, or the character itself in UTF-8",
        )
    except RecursionError:
        return RuleError(
            "a row is nested too deeply",
            code="E0807",
            where=Place(name, row.line),
            fix="flatten its columns",
        )


def _columns(row: dict[str, Any], params: DatasetParams) -> dict[str, Any]:
    """Return the row in its normal form, with all that the format does not read as metadata."""
    module = FORMATS[params.format]
    sources = {column: params.columns.get(column, column) for column in module.COLUMNS}
    for column in module.NEEDED:
        if row.get(sources[column]) is None:
            raise _missing(row, column, sources[column], params.format)
    given = {column: row[name] for column, name in sources.items() if name in row}
    used = set(sources.values())
    metadata = {key: value for key, value in row.items() if key not in used}
    normal: dict[str, Any] = module.normalise(given)
    return {**normal, "metadata": canonical_json(metadata).decode()}


def _missing(row: dict[str, Any], column: str, name: str, format_name: str) -> BadRow:
    what = f"row has no `{name}`; it has {names(row)}"
    if row.get(name, "") is None:
        return BadRow("E0810", f"`{name}` is null", "write it, or remove the row")
    for other, module in FORMATS.items():
        if other != format_name and all(row.get(need) is not None for need in module.NEEDED):
            return BadRow("E0810", what, f'format = "{other}" fits')
    example = next((key for key in row if key not in FORMATS[format_name].COLUMNS), "NAME")
    return BadRow(
        "E0810", what, f'name the column that holds it: columns = {{ {column} = "{example}" }}'
    )
