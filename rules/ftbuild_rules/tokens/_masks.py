"""Spans of text -> labels: which tokens are trained on, exactly.

A token is trained where it stands for a character of a trained span. A token that stands for
characters on both sides of a span's edge is neither trained nor masked exactly; such rows are
counted. -100 is what the loss of PyTorch and Transformers leaves out.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftbuild_rules.templates._skeleton import has_reasoning
from ftbuild_rules.templates._turns import Part, Turn
from ftbuild_rules.tokens._offsets import Offsets

MASKED = -100

EndOfTurn = Literal["all", "turn", "last", "none"]
Span = tuple[int, int]
Message = dict[str, Any]


@dataclass(frozen=True)
class MaskPolicy:
    """What of a conversation is trained on: the mask attributes of `tokens`."""

    train_on: tuple[str, ...]
    train_on_eot: EndOfTurn
    last_turn_only: bool
    train_on_reasoning: bool = True
    train_on_tool_calls: bool = True

    def trained(self, messages: Sequence[Message]) -> list[int]:
        """Return which messages are trained on; a message's own `train` overrides its role."""
        chosen = [
            index
            for index, message in enumerate(messages)
            if (
                message["role"] in self.train_on
                if message.get("train") is None
                else message["train"]
            )
        ]
        return chosen[-1:] if self.last_turn_only else chosen

    def roles(self, messages: Sequence[Message]) -> set[str]:
        """Return the roles whose places in the text must be known."""
        if self.train_on_eot == "all":
            return {message["role"] for message in messages}
        shown = {messages[index]["role"] for index in self.trained(messages)}
        return shown | {m["role"] for m in messages if m.get("train_detail")}

    def needs_parts(self, messages: Sequence[Message]) -> bool:
        """Say whether the places of the texts within the messages must be known."""
        return any(
            message.get("train_detail")
            or (not self.train_on_reasoning and has_reasoning(message))
            or (not self.train_on_tool_calls and message.get("tool_calls"))
            for message in messages
        )

    def spans(self, turn: Turn, message: Message, is_trained: bool) -> list[Span]:
        """Return the parts of a turn that are trained on, in their order."""
        spans = [(turn.start, turn.end)] if is_trained else []
        content = next((part for part in turn.parts if part.name == "content"), None)
        if not self.train_on_reasoning and len(turn.parts) > (content is not None):
            end = content.start if content is not None else turn.parts[-1].end
            spans = _without(spans, (turn.start, end))
        if not self.train_on_tool_calls and message.get("tool_calls"):
            start = turn.parts[-1].end if turn.parts else turn.start
            spans = _without(spans, (start, turn.end))
        if content is not None and message.get("train_detail"):
            spans = _with_detail(spans, content, json.loads(message["train_detail"]))
        return spans


def _with_detail(
    spans: list[Span], content: Part, detail: list[tuple[int, int, bool]]
) -> list[Span]:
    """Return the spans with a text's own flags: (begin, end, train) in its characters."""
    for begin, end, is_trained in detail:
        start = max(content.start, content.start + begin - content.skipped)
        stop = min(content.end, content.start + end - content.skipped)
        if start < stop:
            spans = _without(spans, (start, stop))
            spans = sorted([*spans, (start, stop)]) if is_trained else spans
    return _joined(spans)


def _without(spans: Iterable[Span], hole: Span) -> list[Span]:
    pieces = []
    for start, end in spans:
        pieces += [(start, min(end, hole[0])), (max(start, hole[1]), end)]
    return [(start, end) for start, end in pieces if start < end]


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Return sorted spans with those that touch made one: between them is no edge."""
    out: list[Span] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


@dataclass(frozen=True)
class Labelled:
    """The labels of a row, and what is wrong with them."""

    labels: Any
    """As ids: an array of int32, -100 where a token is masked."""
    lacks_eot: bool
    """A turn that is trained on has no end token that the policy could train."""
    has_split_token: bool
    """A token reaches over the edge of a trained span."""
    omits: int | None = None
    """The first message that is trained on though the template leaves out what it thought."""


def label_turns(
    ids: Any,
    offsets: Offsets,
    turns: Iterable[Turn],
    messages: Sequence[Message],
    policy: MaskPolicy,
) -> Labelled:
    """Return the labels of a conversation's tokens; `ids` is an array of int32."""
    labels = _masked(ids)
    trained = policy.trained(messages)
    plans = [
        (turn, policy.spans(turn, messages[turn.index], turn.index in trained)) for turn in turns
    ]
    edges = [e for turn, spans in plans for s in (*spans, turn.eot or (0, 0)) for e in s]
    cuts = iter(offsets.cuts(edges))
    lacks_eot = has_split_token = False
    omits: int | None = None
    for turn, spans in plans:
        pairs = [(next(cuts), next(cuts)) for _ in (*spans, turn.eot)]
        ender = range(0) if turn.eot is None else _tokens(*pairs[-1])
        for pair in pairs[:-1]:
            has_split_token |= _train(labels, ids, pair, ender)
        wants_eot = _wants_eot(policy.train_on_eot, turn.index, trained)
        labels[ender.start : ender.stop] = ids[ender.start : ender.stop] if wants_eot else MASKED
        is_trained = turn.index in trained
        lacks_eot |= wants_eot and is_trained and not ender
        if is_trained and turn.omits_reasoning and policy.train_on_reasoning:
            omits = turn.index if omits is None else omits
    return Labelled(labels, lacks_eot, has_split_token, omits)


def label_spans(ids: Any, offsets: Offsets, spans: Iterable[Span]) -> Labelled:
    """Return the labels of a text's tokens of which `spans` are trained on, in their order."""
    labels = _masked(ids)
    cuts = iter(offsets.cuts([edge for span in _joined(spans) for edge in span]))
    # Each span's begin and end, two at a time.
    splits = [_train(labels, ids, pair, range(0)) for pair in zip(cuts, cuts, strict=True)]
    return Labelled(labels, lacks_eot=False, has_split_token=any(splits))


def _wants_eot(choice: EndOfTurn, index: int, trained: Sequence[int]) -> bool:
    if choice == "turn":
        return index in trained
    if choice == "last":
        return bool(trained) and index == trained[-1]
    return choice == "all"


def _masked(ids: Any) -> Any:
    import numpy

    return numpy.full(len(ids), MASKED, numpy.int32)


Cut = tuple[int, int]
"""As `Offsets.cuts` gives it."""


def _tokens(start: Cut, end: Cut) -> range:
    """Return the tokens that stand for a character between two cuts."""
    return range(start[0], max(start[0], end[1]))


def _train(labels: Any, ids: Any, span: tuple[Cut, Cut], ender: range) -> bool:
    """Train the tokens of a span; say whether one, the end token aside, reaches over its edge."""
    tokens = _tokens(*span)
    labels[tokens.start : tokens.stop] = ids[tokens.start : tokens.stop]
    return any(ended < begun and ended not in ender for ended, begun in span)
