r"""`dataset`: rows from outside -> rows in their normal form, in shards that follow edits.

What a format does not read is kept as `metadata`: an edit there changes the dataset and no
token, so it ends at `tokens`. Each normal form has one fixed schema.

{"messages": [{"role": "user", "content": "Hi"}, …], "tools": null, "metadata": "{\"id\":7}"}
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

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
    rule,
)
from ftbuild_rules.data._plain_text import SampleBy
from ftbuild_rules.data._read import Reading, files_with_rows, read_rows
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._shards import SizedRow, size_row
from ftbuild_rules.data._typed import typed
from ftbuild_rules.data._write import write_dataset
from ftbuild_rules.formats._all import FORMATS, Formatting, normal_row
from ftbuild_rules.formats._prompt import Prompt, problem
from ftbuild_rules.formats._words import BadRow, names

_MAX_PROBLEMS = 5
_PROGRESS_ROWS = 10_000


class DatasetInputs(Inputs):
    """Where the rows are."""

    source: Source
    """Files of rows, read in their order: JSON Lines, JSON (an array, or one object), CSV, TSV,
    Parquet, Arrow or Feather, plain text, each also as .gz, .zst, .bz2, .xz or in a tar or zip
    archive; WebDataset shards; or a folder, also one that `save_to_disk` wrote."""


class DatasetParams(Params):
    """How the rows are written."""

    format: Literal[
        "openai",
        "sharegpt",
        "alpaca",
        "text",
        "completion",
        "prompt_completion",
        "segments",
        "tokenized",
        "preference",
        "unpaired",
        "stepwise",
        "prompts",
    ]
    """How a row looks: `openai` has `messages` (role, content), `sharegpt` has `conversations`
    (from, value), `alpaca` has `instruction`, `input`, `output`, `text` (or `completion`) has
    `text`, `prompt_completion` has what it says, `segments` has texts with a flag each,
    `tokenized` has `input_ids` and `labels`, `preference` has `prompt`, `chosen`, `rejected`,
    `unpaired` has `prompt`, `completion` (or `messages`) and `label`, `stepwise` has `prompt`,
    `completions`, `labels`, and `prompts` has `prompt` alone."""

    columns: dict[str, str] = Field(default={})
    """Other names for the format's columns: `columns = { messages = "dialog" }` reads the rows'
    `dialog` as `messages`; a point reaches into an object: `"model.solution"`."""

    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default={})
    """Other names for the roles of messages: `roles = { bot = "assistant" }`."""

    prompt: str | None = None
    """A prompt of your own, made of the row's columns: `"Question: {question}\\nAnswer: "`. It
    stands for the format's `prompt`, or for the `instruction` and `input` of `alpaca`."""

    prompt_no_input: str | None = None
    """The same for rows in which a column that only `prompt` reads is empty."""

    types: dict[str, Literal["integer", "number", "boolean", "json"]] = Field(default={})
    """What the texts of a column stand for, where the file can hold texts alone, as CSV does."""

    sample_by: SampleBy = "line"
    """Whether a row of a plain text file is a line of it or all of it."""

    members: str = Field(default="*", min_length=1)
    """Which members of an archive are read, as a pattern: `"train/*.jsonl"`."""

    on_error: Literal["error", "drop"] = "error"
    """What becomes of a row that is broken or does not fit the format."""

    max_dropped: int = Field(default=100, ge=0)
    """With `on_error = "drop"`, how many rows may be dropped before it is an error after all."""


def check(kinds: Mapping[str, tuple[str, ...]], params: DatasetParams) -> None:
    """Check that what is set has a meaning for the format.

    Raises:
        AttributeProblem: the format has no such column, or no prompt.
    """
    known = FORMATS[params.format].COLUMNS
    for column in params.columns:
        if column not in known:
            raise AttributeProblem(
                "columns",
                f"format `{params.format}` has no column `{column}`",
                f"use {names(known)}, each with the name it has in your rows",
            )
    if params.prompt is None and params.prompt_no_input is not None:
        raise AttributeProblem(
            "prompt_no_input", "`prompt_no_input` has no meaning without `prompt`", "add `prompt`"
        )
    for name in ("prompt", "prompt_no_input"):
        if (template := getattr(params, name)) is not None:
            _check_prompt(name, template, params.format)


def _check_prompt(name: str, template: str, format_name: str) -> None:
    if not hasattr(FORMATS[format_name], "PROMPT"):
        able = [other for other, module in FORMATS.items() if hasattr(module, "PROMPT")]
        raise AttributeProblem(
            name, f"format `{format_name}` has no prompt to write", f"use one of {names(able)}"
        )
    if (what := problem(template)) is not None:
        raise AttributeProblem(
            name, f"`{name}` is no format string: {what}", 'write "Question: {question}\\nAnswer: "'
        )


@rule(version=4, output=Dataset, pins=("pyarrow",), preload=("pyarrow", "xxhash"), check=check)
def dataset(ctx: Context, inputs: DatasetInputs, params: DatasetParams) -> None:
    """Read rows into their normal form, cut into shards by content."""
    rows = _rows(ctx, inputs.source, params)
    first = next(rows, None)
    if first is None:
        raise RuleError(
            "the source has no rows",
            code="E0809",
            where=Place(inputs.source.spec),
            fix="write one JSON object a line",
        )
    form = _form_of(first, params)
    write_dataset(ctx, _of_form(chain([first], rows), form, inputs.source), form)


def _form_of(row: SizedRow, params: DatasetParams) -> str:
    """Return the normal form of the rows: of `prompt_completion` it follows from the first one."""
    return "messages" if "messages" in row.columns else str(FORMATS[params.format].FORM)


def _of_form(rows: Iterable[SizedRow], form: str, source: Source) -> Iterator[SizedRow]:
    for row in rows:
        if ("messages" in row.columns) != (form == "messages"):
            raise RuleError(
                "some prompts are texts and others are messages",
                code="E0811",
                where=Place(source.spec),
                fix="make a dataset of each",
            )
        yield row


def _formatting(params: DatasetParams) -> Formatting:
    prompt = None
    if params.prompt is not None:
        replaces = ("input",) if params.format == "alpaca" else ()
        prompt = Prompt(params.prompt, params.prompt_no_input, replaces)
    return Formatting(params.format, params.columns, params.roles, prompt)


@dataclass(frozen=True)
class _Unreadable:
    """The rest of a file, which no `on_error` passes over: nobody knows how much it is."""

    error: RuleError


def _rows(ctx: Context, source: Source, params: DatasetParams) -> Iterator[SizedRow]:
    """Yield the rows of all files.

    Raises:
        RuleError: rows are bad; it names the first five.
    """
    found = _Problems(params)
    for number, item in enumerate(_items(ctx, source, params), 1):
        if isinstance(item, SizedRow):
            yield item
        else:
            found.add(item)
        if number % _PROGRESS_ROWS == 0:
            ctx.progress(number)
    found.end(ctx)


def _items(
    ctx: Context, source: Source, params: DatasetParams
) -> Iterator[SizedRow | RuleError | _Unreadable]:
    files, others = files_with_rows(source)
    for other in others:
        ctx.log(f"{other.name} holds no rows and is not read")
    reading = Reading(params.sample_by, params.members)
    how = _formatting(params)
    for file in files:
        try:
            for row in read_rows(file, reading):
                yield _normal_row(row, params, how) if isinstance(row, Row) else row
        except RuleError as error:
            yield _Unreadable(error)


class _Problems:
    """What is wrong with the rows, and whether that is too much."""

    def __init__(self, params: DatasetParams) -> None:
        self._drops = params.on_error == "drop"
        self._max_dropped = params.max_dropped
        self._first: list[RuleError] = []
        self._dropped = 0

    def add(self, found: RuleError | _Unreadable) -> None:
        """Count a bad row.

        Raises:
            RuleError: there are too many of them, or rows that are not even known.
        """
        if self._drops and isinstance(found, _Unreadable):
            raise found.error
        self._dropped += 1
        if len(self._first) < _MAX_PROBLEMS:
            self._first.append(found.error if isinstance(found, _Unreadable) else found)
        if self._dropped > (self._max_dropped if self._drops else _MAX_PROBLEMS - 1):
            self._fail()

    def end(self, ctx: Context) -> None:
        """Report what was dropped.

        Raises:
            RuleError: rows are bad, and are not to be dropped.
        """
        if self._first and not self._drops:
            self._fail()
        if self._first:
            what = self._first[0].problems[0]
            rows = "1 row was" if self._dropped == 1 else f"{self._dropped:,} rows were"
            ctx.warn(f"{rows} dropped; the first: {what.where}: {what.what}")
            ctx.facts(dropped=self._dropped)

    def _fail(self) -> None:
        first = self._first[0]
        problems = [problem for error in self._first for problem in error.problems]
        if self._drops:
            what = f"more than {self._max_dropped:,} rows are bad; the first of them:"
            fix = "mend the source, or raise `max_dropped`"
            problems[:0] = RuleError(what, code="E0846", fix=fix).problems
        first.problems = tuple(problems)
        raise first


def _normal_row(row: Row, params: DatasetParams, how: Formatting) -> SizedRow | RuleError:
    try:
        return size_row(normal_row(typed(row.value, params.types), how))
    except BadRow as error:
        return RuleError(str(error), code=error.code, where=row.place, fix=error.fix)
    except UnicodeError:
        return RuleError(
            "a text holds half of a surrogate pair (`\\ud800` to `\\udfff`), which is no character",
            code="E0816",
            where=row.place,
            fix="write the whole pair, or the character itself in UTF-8",
        )
    except RecursionError:
        return RuleError(
            "a row is nested too deeply",
            code="E0807",
            where=row.place,
            fix="flatten its columns",
        )
