"""Spans of text -> labels: which tokens are trained on, exactly.

A token is trained where it stands for a character of a trained span. A token that stands for
characters on both sides of a span's edge is neither trained nor masked exactly; such rows are
counted. -100 is what the loss of PyTorch and Transformers leaves out.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftbuild_rules.templates._render import Turn

MASKED = -100

EndOfTurn = Literal["all", "turn", "last", "none"]
Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class MaskPolicy:
    """What of a conversation is trained on: the mask attributes of `tokens`."""

    train_on: tuple[str, ...]
    train_on_eot: EndOfTurn
    last_turn_only: bool

    def trained(self, messages: Sequence[dict[str, Any]]) -> list[int]:
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

    def roles(self, messages: Sequence[dict[str, Any]]) -> set[str]:
        """Return the roles whose places in the text must be known."""
        if self.train_on_eot == "all":
            return {message["role"] for message in messages}
        return {messages[index]["role"] for index in self.trained(messages)}


@dataclass(frozen=True)
class Labelled:
    """The labels of a row, and what is wrong with them."""

    labels: list[int]
    lacks_eot: bool
    """A turn that is trained on has no end token that the policy could train."""
    has_split_token: bool
    """A token reaches over the edge of a trained span."""


def label_turns(
    ids: Sequence[int],
    offsets: Offsets,
    turns: Iterable[Turn],
    trained: Sequence[int],
    policy: MaskPolicy,
) -> Labelled:
    """Return the labels of a conversation's tokens.

    `offsets` are the characters of each token, `trained` the messages that are trained on.
    """
    labels = [MASKED] * len(ids)
    lacks_eot = has_split_token = False
    for turn in turns:
        ender = range(0) if turn.eot is None else _overlapping(offsets, *turn.eot)
        if turn.index in trained:
            tokens = _overlapping(offsets, turn.start, turn.end)
            labels[tokens.start : tokens.stop] = ids[tokens.start : tokens.stop]
            has_split_token |= _is_split(offsets, turn, ender)
        wants_eot = _wants_eot(policy.train_on_eot, turn.index, trained)
        for place in ender:
            labels[place] = ids[place] if wants_eot else MASKED
        lacks_eot |= wants_eot and turn.index in trained and not ender
    return Labelled(labels, lacks_eot, has_split_token)


def _wants_eot(choice: EndOfTurn, index: int, trained: Sequence[int]) -> bool:
    if choice == "turn":
        return index in trained
    if choice == "last":
        return bool(trained) and index == trained[-1]
    return choice == "all"


def _overlapping(offsets: Offsets, start: int, end: int) -> range:
    """Return the tokens that stand for a character from `start` up to `end`."""
    first = bisect_right(offsets, start, key=lambda span: span[1])
    stop = bisect_left(offsets, end, key=lambda span: span[0])
    return range(first, max(first, stop))


def _is_split(offsets: Offsets, turn: Turn, ender: range) -> bool:
    """Say whether a token, the end token aside, reaches over an edge of the turn."""
    return any(
        offsets[place][0] < edge < offsets[place][1]
        for edge in (turn.start, turn.end)
        for place in _overlapping(offsets, edge, edge + 1)
        if place not in ender
    )
