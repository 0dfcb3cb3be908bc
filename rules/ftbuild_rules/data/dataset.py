r"""`dataset`: rows from outside -> rows in their normal form, in shards that follow edits.

What a format does not read is kept as `metadata`: an edit there changes the dataset and no
token, so it ends at `tokens`. Each normal form has one fixed schema.

{"messages": [{"role": "user", "content": "Hi"}, …], "tools": null, "metadata": "{\"id\":7}"}
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    Piece,
    Place,
    RuleError,
    Source,
    SourceFile,
    rule,
)
from ftbuild_rules.data._arrow import PRELOAD, dataset_schema, shard_name
from ftbuild_rules.data._chunks import assemble, write_segments
from ftbuild_rules.data._other_tools import DATASET_NAMES, DATASET_REMEDIES
from ftbuild_rules.data._pieces import SourcePiece, file_of, hashed, pieces_of, with_names
from ftbuild_rules.data._plain_text import SampleBy
from ftbuild_rules.data._problems import (
    MAX_PROBLEMS,
    Problems,
    Unreadable,
    from_plain,
    place_of,
    to_plain,
)
from ftbuild_rules.data._read import Reading, files_with_rows, read_rows
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._shards import SizedRow, size_row
from ftbuild_rules.data._slices import is_part, part_of
from ftbuild_rules.data._typed import typed
from ftbuild_rules.data._write import finish_dataset, write_dataset
from ftbuild_rules.formats._all import FORMATS, WITH_MESSAGES, Formatting, normal_row
from ftbuild_rules.formats._prompt import Prompt, problem
from ftbuild_rules.formats._roles import KEYS
from ftbuild_rules.formats._words import BadRow, names

_PROGRESS_ROWS = 10_000


class DatasetInputs(Inputs):
    """Where the rows are."""

    source: Source
    """Files of rows, read in their order: JSON Lines, JSON (an array, or one object), CSV, TSV,
    Parquet, Arrow or Feather, plain text, each also as .gz, .zst, .bz2, .xz or in a tar or zip
    archive; WebDataset shards; or a folder, also one that `save_to_disk` wrote."""


class DatasetParams(Params):
    """How the rows are written."""

    other_names = DATASET_NAMES
    elsewhere = DATASET_REMEDIES

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
    `dialog` as `messages`; a point reaches into an object: `"model.solution"`. So are keys of
    messages: `{ role = "speaker", content = "says" }`."""

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
    if params.format in WITH_MESSAGES:
        known = (*known, *KEYS)
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


@rule(
    version=4,
    output=Dataset,
    pins=("pyarrow",),
    preload=PRELOAD,
    check=check,
    cpus="all",
)
def dataset(ctx: Context, inputs: DatasetInputs, params: DatasetParams) -> None:
    """Read rows into their normal form, cut into shards by content."""
    _tell_of_others(ctx, inputs.source)
    if not is_part(inputs.source):
        expanded = ctx.scratch / "expanded"
        try:
            pieces = pieces_of(inputs.source, expanded)
            if pieces is not None and _by_pieces(ctx, inputs.source, params, pieces):
                return
        finally:
            shutil.rmtree(expanded, ignore_errors=True)
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


def _tell_of_others(ctx: Context, source: Source) -> None:
    for other in files_with_rows(source)[1]:
        ctx.log(f"{other.name} holds no rows and is not read")


def _by_pieces(
    ctx: Context, source: Source, params: DatasetParams, pieces: Sequence[SourcePiece]
) -> bool:
    """Make the dataset of pieces; False where one pass over all rows has to."""
    how = _formatting(params)

    def piece(given: Piece, out: Path) -> dict[str, Any]:
        return _read_piece(given.payload, out, params, how)

    read = ctx.fragments(piece, hashed(pieces, ctx.cpus), of="source")
    found = Problems(max_dropped=params.max_dropped if params.on_error == "drop" else None)
    broken: set[Path] = set()  # files of which the rest cannot be read
    for one, fragment in zip(pieces, read, strict=True):
        for plain in fragment.value["problems"]:
            file = file_of(place_of(plain), one.files)
            if file.path in broken:
                continue
            item = from_plain(with_names(plain, one.files), one.lines_before())
            found.add(item)
            if isinstance(item, Unreadable):
                broken.add(file.path)
    found.end(ctx)
    forms = sorted({form for fragment in read for form in fragment.value["forms"]})
    if len(forms) > 1:
        raise _two_forms(source)
    shards = assemble(ctx, read, of="source")
    if not shards:  # so few, or so large, that where one ends depends on all before it
        return False
    for number, (path, _) in enumerate(shards):
        ctx.link(path, shard_name(number, len(shards)))
    finish_dataset(ctx, forms[0], [rows for _, rows in shards])
    return True


def _read_piece(
    piece: SourcePiece, out: Path, params: DatasetParams, how: Formatting
) -> dict[str, Any]:
    """Write the rows of a piece; return their counts, their forms, and what is wrong with some."""
    problems: list[RuleError | Unreadable] = []
    forms: set[str] = set()

    def rows() -> Iterator[SizedRow]:
        for item in piece.rows(_reading(params)):
            row = _normal_row(item, params, how) if isinstance(item, Row) else item
            if isinstance(row, SizedRow):
                forms.add(_form_of(row, params))
                if len(forms) == 1:
                    yield row
            elif len(problems) <= max(MAX_PROBLEMS, params.max_dropped):
                problems.append(row)

    source = rows()
    first = next(source, None)
    form = _form_of(first, params) if first is not None else FORMATS[params.format].FORM
    sized = chain([first] if first is not None else [], source)
    value = write_segments(sized, out, dataset_schema(str(form)))
    return {**value, "forms": sorted(forms), "problems": [to_plain(item) for item in problems]}


def _reading(params: DatasetParams) -> Reading:
    return Reading(params.sample_by, params.members)


def _form_of(row: SizedRow, params: DatasetParams) -> str:
    """Return the normal form of the rows: of `prompt_completion` it follows from the first one."""
    return "messages" if "messages" in row.columns else str(FORMATS[params.format].FORM)


def _of_form(rows: Iterable[SizedRow], form: str, source: Source) -> Iterator[SizedRow]:
    for row in rows:
        if ("messages" in row.columns) != (form == "messages"):
            raise _two_forms(source)
        yield row


def _two_forms(source: Source) -> RuleError:
    return RuleError(
        "some prompts are texts and others are messages",
        code="E0811",
        where=Place(source.spec),
        fix="make a dataset of each",
    )


def _formatting(params: DatasetParams) -> Formatting:
    prompt = None
    if params.prompt is not None:
        replaces = ("input",) if params.format == "alpaca" else ()
        prompt = Prompt(params.prompt, params.prompt_no_input, replaces)
    return Formatting(params.format, params.columns, params.roles, prompt)


def _rows(ctx: Context, source: Source, params: DatasetParams) -> Iterator[SizedRow]:
    """Yield the rows of all files.

    Raises:
        RuleError: rows are bad; it names the first five.
    """
    found = Problems(max_dropped=params.max_dropped if params.on_error == "drop" else None)
    for number, item in enumerate(_items(source, params), 1):
        if isinstance(item, SizedRow):
            yield item
        else:
            found.add(item)
        if number % _PROGRESS_ROWS == 0:
            ctx.progress(number)
    found.end(ctx)


def _items(source: Source, params: DatasetParams) -> Iterator[SizedRow | RuleError | Unreadable]:
    files, _ = files_with_rows(source)
    reading, how = _reading(params), _formatting(params)
    for row in part_of(source, lambda: _all_rows(files, reading)):
        yield _normal_row(row, params, how) if isinstance(row, Row) else row


def _all_rows(
    files: Sequence[SourceFile], reading: Reading
) -> Iterator[Row | RuleError | Unreadable]:
    for file in files:
        try:
            yield from read_rows(file, reading)
        except RuleError as error:
            yield Unreadable(error)


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
