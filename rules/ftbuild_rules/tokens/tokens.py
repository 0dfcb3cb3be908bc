"""`tokens`: a dataset and a model's tokenizer -> token ids and labels, ready to train on.

Nothing is tokenized again later, so what stands here is what is trained on. Each shard of the
dataset is a fragment of its own: an edit of one row tokenizes one shard. Conversations and texts
become `input_ids` and `labels`, preference pairs `prompt_ids`, `chosen_ids`, `rejected_ids`.

{"input_ids": [1, 4093, 198, 19556, 17, 2], "labels": [-100, -100, -100, 19556, 17, 2]}
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ftbuild.api import (
    TOKENIZER,
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Fragment,
    Inputs,
    Model,
    Params,
    Piece,
    Place,
    QuantizedModel,
    RuleError,
    Source,
    Tokens,
    hash_bytes,
    hash_file,
    rule,
)
from ftbuild_rules.data._arrow import (
    read_table,
    shard_name,
    shard_paths,
    write_batch,
    write_index,
)
from ftbuild_rules.templates import _defaults
from ftbuild_rules.templates._limits import LimitedRenderer
from ftbuild_rules.templates._turns import BrokenTemplateError
from ftbuild_rules.tokens._encoder import Encoder, load_encoder
from ftbuild_rules.tokens._findings import Allowable, Findings, ShardFindings, check_findings
from ftbuild_rules.tokens._masks import MASKED, EndOfTurn, MaskPolicy
from ftbuild_rules.tokens._preference import preference_rows
from ftbuild_rules.tokens._sft import Overflow, RowLimitError, Tally, Task, sft_rows
from ftbuild_rules.tokens._template import resolve_template

_BATCH_ROWS = 256
_SFT_COLUMNS = ("input_ids", "labels")
_TEMPLATES = (
    "chat_template",
    "chat_template_jinja",
    "default_system_message",
    "template_variables",
)
_MASKS = ("train_on", "last_turn_only", "train_on_reasoning", "train_on_tool_calls")
_PREFERENCE_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class TokensInputs(Inputs):
    """What is tokenized, and with what."""

    dataset: Dataset
    """The rows."""
    model: Annotated[Model | QuantizedModel, TOKENIZER]
    """Whose tokenizer and chat template; its weights are not read."""
    chat_template_file: Source | None = None
    """A chat template of your own, a Jinja file, in the place of the tokenizer's."""


class TokensParams(Params):
    """What is trained on, and how long a row may be."""

    train_on: tuple[Literal["system", "user", "assistant", "tool"], ...] = Field(
        default=("assistant",), min_length=1
    )
    """The roles whose messages are trained on; a message's own `train` overrides it."""

    train_on_eot: EndOfTurn = "turn"
    """Which end-of-turn tokens are trained on: of `all` messages, of each trained `turn`, of the
    `last` trained turn, or `none`."""

    last_turn_only: bool = False
    """Train on the last of the messages that would be trained on."""

    train_on_reasoning: bool = True
    """Train on what the assistant thinks before it answers: its `reasoning_content`, or what
    stands between `<think>` and `</think>` at the beginning of its text."""

    train_on_tool_calls: bool = True
    """Train on the tool calls of the messages that are trained on."""

    train_on_inputs: bool = False
    """Train on every token, the prompt's and the template's too."""

    max_length: int = Field(default=1024, gt=0)
    """In tokens: of a row, or of a prompt with the longer of its answers."""

    overflow: Overflow = "error"
    """What happens to a longer row: an `error`, `drop` it, or `truncate` it at its end."""

    chat_template: str | None = None
    """The name of a chat template (`chatml`), or of one of the tokenizer's, if it has several;
    the tokenizer's own if not given."""

    chat_template_jinja: str | None = Field(default=None, min_length=1)
    """A chat template of your own, as Jinja text; `chat_template_file` reads it from a file."""

    default_system_message: str | None = Field(default=None, min_length=1)
    """The system message of conversations that have none. It becomes part of the chat template,
    so the trained model says it too."""

    template_variables: dict[str, Any] = Field(default={})
    """Variables that the chat template reads: `template_variables = { enable_thinking = false }`.
    They become part of the chat template, as its defaults."""

    allow: tuple[Allowable, ...] = ()
    """Findings that are no errors here: rows with `no_trainable_tokens`, turns whose
    `end_of_turn` is never trained, `double_bos`, `equal_pairs` of answers, a prompt that is no
    prefix of the conversation (`prompt_prefix`), tokens over the edge of a trained text
    (`split_tokens`; they are trained)."""


def check(kinds: Mapping[str, tuple[str, ...]], params: TokensParams) -> None:
    """Check that no attribute contradicts another.

    Raises:
        AttributeProblem: one does.
    """
    if params.train_on_inputs:
        for name in _set_names(params, (*_MASKS, "train_on_eot")):
            raise AttributeProblem(
                name,
                f"`{name}` has no effect: `train_on_inputs` trains every token",
                f"remove `{name}` or `train_on_inputs`",
            )
    if params.chat_template is not None and params.chat_template_jinja is not None:
        raise AttributeProblem(
            "chat_template_jinja",
            "`chat_template` and `chat_template_jinja` are both given",
            "remove one of them",
        )
    for name in params.template_variables:
        if name in _defaults.RESERVED or not name.isidentifier():
            raise AttributeProblem(
                "template_variables",
                f"`{name}` is given with every conversation"
                if name in _defaults.RESERVED
                else f"`{name}` is no name of a variable",
                f"remove `{name}`",
            )


def _set_names(params: TokensParams, names: Iterable[str]) -> list[str]:
    """Return those attributes that differ from their defaults."""
    fields = TokensParams.model_fields
    return [name for name in names if getattr(params, name) != fields[name].default]


@rule(
    version=1,
    output=Tokens,
    pins=("jinja2", "pyarrow", "tokenizers", "transformers"),
    preload=(
        "pyarrow",
        "tokenizers",
        "transformers.models.auto.tokenization_auto",
        "transformers.utils.chat_template_utils",
    ),
    check=check,
    cpus="all",
)
def tokens(ctx: Context, inputs: TokensInputs, params: TokensParams) -> None:
    """Tokenize a dataset with a model's tokenizer and chat template, and mask it exactly."""
    index = json.loads((inputs.dataset.path / "dataset.json").read_bytes())
    encoder = load_encoder(inputs.model.path, inputs.model.label or "model")
    label = inputs.dataset.label or "dataset"
    _check_form(index["form"], params, label)
    template = resolve_template(index["form"], encoder, inputs, params)
    task = Task(
        form=index["form"],
        encoder=encoder,
        renderer=LimitedRenderer(encoder.template(template)) if template is not None else None,
        policy=_policy(params),
        train_on_inputs=params.train_on_inputs,
        max_length=params.max_length,
        overflow=params.overflow,
    )

    def shard(piece: Piece, out: Path) -> dict[str, Any]:
        path, first_row = piece.payload
        try:
            return _tokenize_shard(task, Path(path), out / "shard.arrow")
        except BrokenTemplateError as error:
            raise _template_error("is no Jinja", str(error), Place(label)) from error
        except RowLimitError as error:
            row = None if error.row is None else f"row {first_row + error.row}"
            place = Place(label, within=row)
            raise _template_error("goes over a limit", str(error), place) from error

    try:
        fragments = ctx.fragments(shard, _pieces(inputs.dataset.path, index), of="dataset")
    finally:
        if task.renderer is not None:
            task.renderer.close()
    _check_values([fragment.value for fragment in fragments], params, index["rows"], label)
    totals = _assemble(ctx, fragments)
    is_pair = index["form"] == "preference"
    totals |= {
        "form": "preference" if is_pair else "sft",
        "max_length": params.max_length,
        "chat_template": hash_bytes(template.encode()) if template is not None else None,
    }
    write_index(ctx.out / "tokens.json", totals)
    if template is not None:
        (ctx.out / "chat_template.jinja").write_bytes(template.encode())
    _keep_vocabulary(ctx, inputs.model.path, encoder)
    ctx.facts(**{name: totals[name] for name in ("rows", "tokens", "trainable_tokens")})


def _policy(params: TokensParams) -> MaskPolicy:
    return MaskPolicy(
        params.train_on,
        params.train_on_eot,
        params.last_turn_only,
        params.train_on_reasoning,
        params.train_on_tool_calls,
    )


def _pieces(dataset: Path, index: dict[str, Any]) -> list[Piece]:
    """Return a piece for each shard: its path, and the number of its first row for messages."""
    starts = itertools.accumulate((rows for _, rows in index["shards"]), initial=0)
    paths = shard_paths(dataset)
    return [
        Piece(hash_file(path), (str(path), start))
        for path, start in zip(paths, starts, strict=False)
    ]


def _template_error(what: str, why: str, where: Place) -> RuleError:
    return RuleError(
        f"the chat template {what}",
        code="E0834",
        where=where,
        why=why,
        fix="mend the template, or take another",
    )


def _check_form(form: str, params: TokensParams, label: str) -> None:
    """Check that only attributes are set that mean something for the rows' form.

    Raises:
        RuleError: one does not.
    """
    masks = (*_MASKS, "train_on_inputs")
    unused = {
        "messages": (),
        "text": (*masks, *_TEMPLATES),
        "preference": (*masks, "train_on_eot"),
    }
    for name in _set_names(params, unused[form]):
        raise RuleError(
            f"`{name}` has no meaning for a dataset of form `{form}`",
            code="E0830",
            where=Place(label),
            why="all of a text is trained on"
            if form == "text"
            else "of a preference pair the two answers are trained on",
            fix=f"remove `{name}`",
        )


def _tokenize_shard(task: Task, path: Path, out: Path) -> dict[str, Any]:
    """Write the tokens of one shard; return the counts and what is wrong with its rows."""
    import pyarrow as pa

    is_pair = task.form == "preference"
    columns = _PREFERENCE_COLUMNS if is_pair else _SFT_COLUMNS
    make: Any = preference_rows if is_pair else sft_rows
    table = read_table(path)
    rows = table.drop_columns(["metadata"])
    tally = Tally(Findings())
    found: list[Sequence[list[int]]] = []
    for start in range(0, rows.num_rows, _BATCH_ROWS):
        batch = rows.slice(start, _BATCH_ROWS).to_pylist()
        found.extend(make(task, list(enumerate(batch, start)), tally))
    ids = pa.list_(pa.int32())
    arrays = [pa.array([row[place] for row in found], ids) for place in range(len(columns))]
    write_batch(out, pa.RecordBatch.from_arrays(arrays, names=list(columns)))
    return {
        "input_rows": rows.num_rows,
        "rows": len(found),
        "tokens": sum(len(column) for row in found for column in (row if is_pair else row[:1])),
        "trainable_tokens": sum(_trainable(row) for row in found),
        "dropped": tally.dropped,
        "truncated": tally.truncated,
        "findings": tally.findings.to_plain(),
    }


def _trainable(row: Sequence[list[int]]) -> int:
    if len(row) == len(_PREFERENCE_COLUMNS):
        return len(row[1]) + len(row[2])
    return len(row[1]) - row[1].count(MASKED)


def _check_values(
    values: Sequence[dict[str, Any]], params: TokensParams, rows: int, label: str
) -> None:
    """Check what the shards say of their rows.

    Raises:
        RuleError: something is wrong with them, or none is left.
    """
    starts = itertools.accumulate((value["input_rows"] for value in values), initial=0)
    shards = [
        ShardFindings(start, value["findings"])
        for start, value in zip(starts, values, strict=False)
    ]
    check_findings(shards, params.allow, rows=rows, label=label)
    if not any(value["rows"] for value in values):
        raise RuleError(
            f"all {rows:,} rows are longer than `max_length = {params.max_length}`: none is left",
            code="E0833",
            where=Place(label),
            fix="raise `max_length`",
        )


def _assemble(ctx: Context, fragments: Sequence[Fragment]) -> dict[str, Any]:
    """Link the shards that have rows into the output; return the totals."""
    kept = [fragment for fragment in fragments if fragment.value["rows"]]
    shards = []
    for number, fragment in enumerate(kept):
        name = shard_name(number, len(kept))
        ctx.link(fragment.path / "shard.arrow", name)
        shards.append([name, fragment.value["rows"]])
    names = ("rows", "tokens", "trainable_tokens", "dropped", "truncated")
    totals: dict[str, Any] = {
        name: sum(fragment.value[name] for fragment in fragments) for name in names
    }
    for name in ("dropped", "truncated"):
        if totals[name]:
            ctx.warn(f"{totals[name]:,} rows were longer than `max_length` and were {name}")
    return {**totals, "shards": shards}


def _keep_vocabulary(ctx: Context, model: Path, encoder: Encoder) -> None:
    """Put the tokenizer beside the ids, so that the artifact can be read alone."""
    from tokenizers import Tokenizer

    file = model / "tokenizer.json"
    vocabulary = encoder.plain.get_vocab(with_added_tokens=True)
    if file.exists() and Tokenizer.from_file(str(file)).get_vocab() == vocabulary:
        ctx.link(file, "tokenizer/tokenizer.json")
        return
    # Transformers made it of other files, or added tokens that stand in its configuration.
    (ctx.out / "tokenizer").mkdir()
    (ctx.out / "tokenizer" / "tokenizer.json").write_text(encoder.plain.to_str(), "utf-8")
