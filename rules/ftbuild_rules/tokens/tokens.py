"""`tokens`: a dataset and a model's tokenizer -> token ids and labels, ready to train on.

Nothing is tokenized again later, so what stands here is what is trained on. Each shard of the
dataset is a fragment of its own: an edit of one row tokenizes one shard. Of a shard that is not
known, those rows are tokenized that no other shard has had before (`_memo.py`). What the rows of
each form become is the table in `_forms.py`.

{"input_ids": [1, 4093, 198, 19556, 17, 2], "labels": [-100, -100, -100, 19556, 17, 2]}
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
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
    rule,
)
from ftbuild_rules.data._arrow import (
    PRELOAD,
    shard_name,
    shard_paths,
    write_index,
)
from ftbuild_rules.templates import _defaults
from ftbuild_rules.templates._limits import LimitedRenderer
from ftbuild_rules.templates._turns import BrokenTemplateError
from ftbuild_rules.tokens._encoder import VOCABULARY, open_encoder, settle
from ftbuild_rules.tokens._findings import Allowable, ShardFindings, check_findings
from ftbuild_rules.tokens._forms import FORMS, MASKS, STEPS
from ftbuild_rules.tokens._masks import EndOfTurn, MaskPolicy
from ftbuild_rules.tokens._memo import NAME as ROWS
from ftbuild_rules.tokens._memo import RowMemo
from ftbuild_rules.tokens._other_tools import TOKENS_NAMES, TOKENS_REMEDIES
from ftbuild_rules.tokens._pack import Packing
from ftbuild_rules.tokens._sft import Overflow, RowLimitError, Steps, Task
from ftbuild_rules.tokens._shard import tokenize_shard
from ftbuild_rules.tokens._template import resolve_template, split_tokens, with_eot_tokens


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

    other_names = TOKENS_NAMES
    elsewhere = TOKENS_REMEDIES

    train_on: tuple[Literal["system", "user", "assistant", "tool"], ...] = Field(
        default=("assistant",), min_length=1
    )
    """The roles whose messages are trained on; a message's own `train` overrides it."""

    train_on_eot: EndOfTurn = "turn"
    """Which end-of-turn tokens are trained on: of `all` messages, of each trained `turn`, of the
    `last` trained turn, or `none`."""

    eot_tokens: tuple[str, ...] = ()
    """Tokens that end a turn besides the tokenizer's special ones."""

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
    """What happens to a longer row: an `error`, `drop` it, `truncate` it at its end, or `split`
    it into rows of that length, of which those with nothing to train on are left out."""

    packing: Packing | None = None
    """Put several rows into one of at most `max_length` tokens, within their shard: best fit
    (`bfd`) or first fit (`ffd`), the longest first, or `wrapped`: one after another, cut where
    the row is full. `seq_lengths` says where each ends."""

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

    step_separator: str = Field(default="\n", min_length=1)
    """What follows each step of a `stepwise` row; the step's label stands at its last token."""

    train_on_last_step_only: bool = False
    """Of a `stepwise` row, only the last step's label counts."""

    allow: tuple[Allowable, ...] = ()
    """Findings that are no errors here: rows with `no_trainable_tokens`, turns whose
    `end_of_turn` is never trained, `double_bos`, `equal_pairs` of answers, a prompt that is no
    prefix of the conversation (`prompt_prefix`), tokens over the edge of a trained text
    (`split_tokens`; they are trained), special tokens of the template that the tokenizer splits
    (`template_tokens`)."""


def check(kinds: Mapping[str, tuple[str, ...]], params: TokensParams) -> None:
    """Check that no attribute contradicts another.

    Raises:
        AttributeProblem: one does.
    """
    if params.train_on_inputs:
        for name in _set_names(params, (*MASKS, "train_on_eot")):
            raise AttributeProblem(
                name,
                f"`{name}` has no effect: `train_on_inputs` trains every token",
                f"remove `{name}` or `train_on_inputs`",
            )
    if params.packing == "wrapped" and _set_names(params, ["overflow"]):
        raise AttributeProblem(
            "overflow",
            '`overflow` has no effect: `packing = "wrapped"` cuts every row where it is full',
            "remove `overflow`",
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
    version=3,
    output=Tokens,
    pins=("jinja2", "pyarrow", "tokenizers", "transformers"),
    preload=(*PRELOAD, "tokenizers", "jinja2.ext", "jinja2.sandbox"),
    check=check,
    cpus="all",
)
def tokens(ctx: Context, inputs: TokensInputs, params: TokensParams) -> None:
    """Tokenize a dataset with a model's tokenizer and chat template, and mask it exactly."""
    index = json.loads((inputs.dataset.path / "dataset.json").read_bytes())
    settled = ctx.once(
        partial(settle, inputs.model.path, inputs.model.label or "model"), "tokenizer", of="dataset"
    )
    encoder = open_encoder(settled)
    label = inputs.dataset.label or "dataset"
    _check_form(index["form"], params, label)
    encoder = with_eot_tokens(encoder, params.eot_tokens, inputs.model.label or "model")
    template = resolve_template(index["form"], encoder, inputs, params)
    task = Task(
        form=index["form"],
        encoder=encoder,
        renderer=LimitedRenderer(encoder.template(template)) if template is not None else None,
        policy=_policy(params),
        train_on_inputs=params.train_on_inputs,
        max_length=params.max_length,
        overflow=None if params.packing == "wrapped" else params.overflow,
        split_tokens=split_tokens(template or "", encoder),
        steps=Steps(params.step_separator, params.train_on_last_step_only),
    )

    memo: RowMemo | None = None

    def look_through(siblings: list[Fragment]) -> None:
        nonlocal memo
        folders = [found.path for found in siblings if (found.path / ROWS).exists()]
        if folders:
            memo = RowMemo(folders, FORMS[index["form"]].columns, ctx.scratch / "rows")

    def shard(piece: Piece, out: Path) -> dict[str, Any]:
        path, first_row = piece.payload
        try:
            return tokenize_shard(task, params.packing, Path(path), out, memo)
        except BrokenTemplateError as error:
            raise _template_error("is no Jinja", str(error), Place(label)) from error
        except RowLimitError as error:
            row = None if error.row is None else f"row {first_row + error.row}"
            place = Place(label, within=row)
            raise _template_error("goes over a limit", str(error), place) from error

    try:
        pieces = _pieces(ctx, inputs.dataset.path, index)
        fragments = ctx.fragments(shard, pieces, of="dataset", siblings=look_through)
    finally:
        if task.renderer is not None:
            task.renderer.close()
    if memo is not None:
        new = sum(f.value["new_rows"] for f in fragments if f.was_built)
        ctx.log(f"{new:,} of {index['rows']:,} rows tokenized; the others were known")
    _check_values([fragment.value for fragment in fragments], params, index["rows"], label)
    totals = _assemble(ctx, fragments, params)
    totals |= {
        "form": FORMS[index["form"]].name,
        "max_length": params.max_length,
        "chat_template": hash_bytes(template.encode()) if template is not None else None,
    }
    if params.packing is not None:
        totals["packing"] = params.packing
    write_index(ctx.out / "tokens.json", totals)
    if template is not None:
        (ctx.out / "chat_template.jinja").write_bytes(template.encode())
    _keep_vocabulary(ctx, inputs.model.path, settled)
    ctx.facts(**{name: totals[name] for name in ("rows", "tokens", "trainable_tokens")})


def _policy(params: TokensParams) -> MaskPolicy:
    return MaskPolicy(
        params.train_on,
        params.train_on_eot,
        params.last_turn_only,
        params.train_on_reasoning,
        params.train_on_tool_calls,
    )


def _pieces(ctx: Context, dataset: Path, index: dict[str, Any]) -> list[Piece]:
    """Return a piece for each shard: its path, and the number of its first row for messages."""
    starts = itertools.accumulate((rows for _, rows in index["shards"]), initial=0)
    paths = shard_paths(dataset)
    return [
        Piece(ctx.digest(path), (str(path), start))
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
    known = FORMS[form]
    if params.overflow in known.no_overflow:
        others = [choice for choice in ("drop", "truncate") if choice not in known.no_overflow]
        raise RuleError(
            f'`overflow = "{params.overflow}"` has no meaning for a dataset of form `{form}`',
            code="E0830",
            where=Place(label),
            why=known.why_overflow,
            fix="use " + " or ".join(f'"{choice}"' for choice in others),
        )
    for name in _set_names(params, known.unused):
        raise RuleError(
            f"`{name}` has no meaning for a dataset of form `{form}`",
            code="E0830",
            where=Place(label),
            why="rows of form `stepwise` alone have steps" if name in STEPS else known.why,
            fix=f"remove `{name}`",
        )


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


def _assemble(ctx: Context, fragments: Sequence[Fragment], params: TokensParams) -> dict[str, Any]:
    """Link the shards that have rows into the output; return the totals."""
    kept = [fragment for fragment in fragments if fragment.value["rows"]]
    shards = []
    for number, fragment in enumerate(kept):
        name = shard_name(number, len(kept))
        ctx.link(fragment.path / "shard.arrow", name)
        shards.append([name, fragment.value["rows"]])
    names = ["rows", "tokens", "trainable_tokens", "dropped", "truncated"]
    # Only where they are asked for: the bytes of other targets stay as they were.
    names += ["documents"] if params.packing is not None else []
    names += ["split"] if params.overflow == "split" else []
    totals: dict[str, Any] = {
        name: sum(fragment.value[name] for fragment in fragments) for name in names
    }
    for name in ("dropped", "truncated"):
        if totals[name]:
            ctx.warn(f"{totals[name]:,} rows were longer than `max_length` and were {name}")
    return {**totals, "shards": shards}


def _keep_vocabulary(ctx: Context, model: Path, settled: Path) -> None:
    """Put the tokenizer beside the ids, so that the artifact can be read alone."""
    made = settled / VOCABULARY
    ctx.link(made if made.exists() else model / "tokenizer.json", "tokenizer/tokenizer.json")
