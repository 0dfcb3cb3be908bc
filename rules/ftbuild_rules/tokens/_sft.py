"""Rows of conversations and texts -> `input_ids` and `labels`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ftbuild_rules.templates._limits import Call, LimitedRenderer, LimitError, Result
from ftbuild_rules.templates._turns import InexactError, Rendered, TemplateError
from ftbuild_rules.tokens._encoder import Encoder
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._masks import MASKED, Labelled, MaskPolicy, label_turns
from ftbuild_rules.tokens._segments import given_rows, segment_rows

Overflow = Literal["error", "drop", "truncate", "split"]


@dataclass(frozen=True)
class Steps:
    """How a solution's steps are written and told."""

    separator: str
    """Follows each step."""
    last_only: bool
    """Only the last step has a label."""


@dataclass(frozen=True)
class Task:
    """All that decides how a row becomes tokens."""

    form: str
    encoder: Encoder
    renderer: LimitedRenderer | None
    """None for plain text."""
    policy: MaskPolicy
    train_on_inputs: bool
    max_length: int
    overflow: Overflow | None
    """None: a row of any length is kept, for packing will cut it."""
    split_tokens: dict[str, int]
    """Special tokens of the template that the tokenizer splits, each with its number of tokens."""
    steps: Steps


@dataclass
class Tally:
    """What became of the rows of a shard."""

    findings: Findings
    dropped: list[int] = field(default_factory=list)
    """Numbers of rows, as are those below."""
    truncated: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)


def is_dropped(task: Task, number: int, length: int, tally: Tally) -> bool:
    """Count a row that is longer than `max_length`; False where it is to be truncated."""
    if task.overflow == "drop":
        tally.dropped.append(number)
        return True
    if task.overflow == "error":
        tally.findings.add("too_long", number, f"it has {length:,} tokens")
    tally.truncated.append(number)
    return False


_Row = tuple[Any, Any]
"""Ids and labels, arrays of int32."""


def sft_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], tally: Tally
) -> Iterator[tuple[int, _Row]]:
    """Yield ids and labels of each row that is kept; `rows` are numbered within their shard."""
    import numpy

    for number, ids, labelled in _MAKERS[task.form](task, rows, tally.findings):
        ids, labels = numpy.asarray(ids, numpy.int32), numpy.asarray(labelled.labels, numpy.int32)
        _lint(task, number, ids, labelled, tally.findings)
        pieces = _fit(task, number, (ids, labels), tally)
        if pieces and not any(_is_trainable(labels) for _, labels in pieces):
            tally.findings.add("no_trainable_tokens", number)
            pieces = pieces[:1]
        elif len(pieces) > 1:
            # What is left of a long prompt teaches nothing.
            pieces = [piece for piece in pieces if _is_trainable(piece[1])]
        for piece in pieces:
            yield number, piece


def _fit(task: Task, number: int, row: _Row, tally: Tally) -> list[_Row]:
    """Return the row as rows within `max_length`: one, none, or all of it in several."""
    ids, labels = row
    room = task.max_length
    if task.overflow is None or len(ids) <= room:
        return [row]
    if task.overflow == "split":
        tally.split.append(number)
        return [(ids[at : at + room], labels[at : at + room]) for at in range(0, len(ids), room)]
    return [] if is_dropped(task, number, len(ids), tally) else [(ids[:room], labels[:room])]


def _is_trainable(labels: Any) -> bool:
    # The label of the first token is never used: nothing comes before it to predict it.
    return bool((labels[1:] != MASKED).any())


_Numbered = tuple[int, Any, Labelled]


def _lint(task: Task, number: int, ids: Any, labelled: Labelled, findings: Findings) -> None:
    if is_double_bos(task.encoder, ids):
        findings.add("double_bos", number)
    if labelled.lacks_eot:
        findings.add("end_of_turn", number)
    if labelled.omits is not None:
        message = labelled.omits + 1
        findings.add("inexact", number, f"it leaves out what is thought in message {message}")
    if labelled.has_split_token:
        findings.add("split_tokens", number)


def is_double_bos(encoder: Encoder, ids: Sequence[int]) -> bool:
    """Say whether the ids begin with two BOS tokens."""
    return (
        encoder.bos_id is not None
        and len(ids) > 1
        and bool(ids[0] == encoder.bos_id and ids[1] == encoder.bos_id)
    )


def _text_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], findings: Findings
) -> Iterator[_Numbered]:
    """Yield texts, all of each trained on, with the tokenizer's BOS and one EOS at the end."""
    eos = task.encoder.eos_id
    assert eos is not None  # checked before the first shard
    texts = [row["text"] for _, row in rows]
    for (number, _), ids in zip(
        rows, task.encoder.encode(texts, with_special_tokens=True), strict=True
    ):
        whole = ids if ids[-1:] == [eos] else [*ids, eos]
        labels = list(whole)
        if task.policy.train_on_eot == "none":
            labels[-1] = MASKED
        yield number, whole, Labelled(labels, lacks_eot=False, has_split_token=False)


def _message_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], findings: Findings
) -> Iterator[_Numbered]:
    rendered = _rendered(task, rows, findings)
    texts = [found.text for _, _, found in rendered]
    if task.train_on_inputs:
        for (number, _, _), ids in zip(rendered, task.encoder.encode_arrays(texts), strict=True):
            yield number, ids, Labelled(ids, lacks_eot=False, has_split_token=False)
        return
    encoded = task.encoder.encode_with_offsets(texts)
    for (number, row, found), (ids, offsets) in zip(rendered, encoded, strict=True):
        yield number, ids, label_turns(ids, offsets, found.turns, row["messages"], task.policy)


def _segment_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], findings: Findings
) -> Iterator[_Numbered]:
    trains_eot = task.policy.train_on_eot != "none"
    for number, ids, labelled in segment_rows(task.encoder, rows, trains_eot=trains_eot):
        if task.train_on_inputs:
            labelled = Labelled(list(ids), lacks_eot=False, has_split_token=False)
        yield number, ids, labelled


def _given_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], findings: Findings
) -> Iterator[_Numbered]:
    return given_rows(task.encoder, rows, findings)


_MAKERS = {
    "text": _text_rows,
    "messages": _message_rows,
    "segments": _segment_rows,
    "tokenized": _given_rows,
}


def _rendered(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], findings: Findings
) -> list[tuple[int, dict[str, Any], Rendered]]:
    """Return the rows with their text and turns, without those that have none: they are noted."""
    calls = [_call(task, row) for _, row in rows]
    out = []
    for (number, row), found in zip(
        rows, run_calls(task, calls, [number for number, _ in rows]), strict=True
    ):
        if isinstance(found, TemplateError):
            findings.add("template", number, str(found))
        elif isinstance(found, InexactError):
            findings.add("inexact", number, str(found))
        else:
            lint_template_tokens(task, number, found.text, findings)
            if found.prompt_differs:
                findings.add("prompt_prefix", number)
            out.append((number, row, found))
    return out


def lint_template_tokens(task: Task, number: int, text: str, findings: Findings) -> None:
    """Note a text in which a special token of the template is not one token."""
    for token, size in task.split_tokens.items():
        if token in text:
            findings.add("template_tokens", number, f"`{token}` becomes {size} tokens")
            return


def _call(task: Task, row: dict[str, Any]) -> Call:
    messages, tools = row["messages"], row["tools"]
    if task.train_on_inputs:
        return Call(messages, tools, None)
    roles = frozenset(task.policy.roles(messages))
    return Call(messages, tools, roles, task.policy.needs_parts(messages))


class RowLimitError(Exception):
    """The template went over a limit in one row; the text says which limit."""

    def __init__(self, what: str, row: int | None) -> None:
        super().__init__(what)
        self.row = row
        """Its number in the shard; None where no row was rendered yet."""


def run_calls(task: Task, calls: Sequence[Call], rows: Sequence[int]) -> list[Result]:
    """Render; `rows` are the numbers of the rows that the calls are for.

    Raises:
        RowLimitError: the template went over a limit.
    """
    assert task.renderer is not None
    try:
        return task.renderer.run(calls)
    except LimitError as error:
        row = rows[error.place] if error.place >= 0 else None
        raise RowLimitError(str(error), row) from error
