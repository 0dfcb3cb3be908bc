"""Conversations without their texts: what a template makes of a shape, once for all rows of it.

Each text gives way to a sentinel. What the template writes around them is the skeleton; a real
conversation must be the skeleton with its texts, letter for letter, or its spans are not known.
"""

import bisect
import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftbuild_rules.templates._turns import Conversation, InexactError, Part, Rendered, Turn

# A text that no template writes, between private-use characters, with white space around it
# that shows whether the template trims: three line ends for `strip("\n")`, an em space for all.
_PAD_LEFT, _PAD_RIGHT = "\n\n\n\u2003", "\u2003\n\n\n"
_SENTINEL = re.compile("\ue000([0-9]+)\ue001")


# What a model thinks before it answers, where it stands within the content.
_THOUGHT = re.compile(r"(\s*<think>\n*)(.*?)(\n*</think>\s*)(.*)", re.DOTALL)
_TEXT_KEYS = ("content", "reasoning_content")
_HOLE = "\ue000"
Owner = tuple[int, str]
"""The message that a text belongs to, and what it is of it: `content` or `reasoning`."""


def has_reasoning(message: dict[str, Any]) -> bool:
    """Say whether the assistant thinks in this message."""
    if message["role"] != "assistant":
        return False
    return bool(message.get("reasoning_content")) or "</think>" in (message.get("content") or "")


def _texts(message: dict[str, Any], key: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the form of a text with holes in it, and what stands in them, each with its name."""
    value = message.get(key)
    if not value:
        return value or "", []
    if key == "reasoning_content":
        return _HOLE, [("reasoning", value)]
    thought = _THOUGHT.fullmatch(value) if message["role"] == "assistant" else None
    if thought is None:
        return _HOLE, [("content", value)]
    before, inner, between, answer = thought.groups()
    found = [pair for pair in (("reasoning", inner), ("content", answer)) if pair[1]]
    return before + _HOLE * bool(inner) + between + _HOLE * bool(answer), found


@dataclass(frozen=True)
class Shape:
    """All of a conversation but its texts: conversations of one shape share a skeleton."""

    messages: tuple[tuple[tuple[str, str | None], ...], ...]
    """Texts stand as their form: which are there, and what is around a thought."""
    owners: tuple[Owner, ...]
    tools: str | None
    roles: frozenset[str]
    """Whose turns are wanted."""

    @classmethod
    def of(
        cls, messages: Conversation, tools: str | None, roles: set[str]
    ) -> tuple["Shape", list[str]]:
        """Return the shape of a conversation, and the texts that it lacks."""
        out = []
        owners: list[Owner] = []
        texts: list[str] = []
        for index, message in enumerate(messages):
            items: list[tuple[str, str | None]] = []
            for key, value in message.items():
                if key in _TEXT_KEYS and value is not None:
                    value, found = _texts(message, key)
                    owners += [(index, name) for name, _ in found]
                    texts += [text for _, text in found]
                if key not in ("train", "train_detail"):
                    items.append((key, value))
            out.append(tuple(items))
        return cls(tuple(out), tuple(owners), tools, frozenset(roles)), texts

    def sentinels(self) -> tuple[list[dict[str, Any]], tuple[Owner, ...]]:
        """Return the messages with a numbered sentinel in the place of each text."""
        numbers = itertools.count()
        out = [dict(message) for message in self.messages]
        for message in out:
            for key in message:
                if key in _TEXT_KEYS and message[key]:
                    message[key] = re.sub(
                        _HOLE,
                        lambda _: f"{_PAD_LEFT}\ue000{next(numbers)}\ue001{_PAD_RIGHT}",
                        message[key] or "",
                    )
        return out, self.owners


@dataclass(frozen=True)
class Slot:
    """Where a skeleton holds text `number` of message `index`, and how the template trims it."""

    number: int
    index: int
    name: str
    start: int
    end: int
    left: str | None
    """What is stripped on the left: None for nothing, "\\n", or "" for all white space."""
    right: str | None

    def fill(self, content: str) -> str:
        """Return the text as the template shows it."""
        if self.left is not None:
            content = content.lstrip(self.left or None)
        if self.right is not None:
            content = content.rstrip(self.right or None)
        return content


def find_slots(text: str, owners: Sequence[Owner]) -> tuple[Slot, ...]:
    slots = []
    for found in _SENTINEL.finditer(text):
        start, end = found.span()
        left: str | None = ""
        right: str | None = ""
        if text.endswith(_PAD_LEFT, 0, start):
            left, start = None, start - len(_PAD_LEFT)
        elif text.endswith("\u2003", 0, start):
            left, start = "\n", start - 1
        if text.startswith(_PAD_RIGHT, end):
            right, end = None, end + len(_PAD_RIGHT)
        elif text.startswith("\u2003", end):
            right, end = "\n", end + 1
        number = int(found[1])
        slots.append(Slot(number, *owners[number], start, end, left, right))
    return tuple(slots)


@dataclass(frozen=True)
class Skeleton:
    """The text of a shape, its slots in their order, and its turns in its own characters."""

    text: str
    slots: tuple[Slot, ...]
    turns: tuple[tuple[Turn, tuple[int, ...], bool], ...]
    """Each with the numbers of its texts, and whether it lacks its thought."""
    prompt_differs: bool = False

    def fill(self, texts: Sequence[str], rendered: str) -> Rendered:
        """Return the turns of a real conversation of this shape.

        Raises:
            InexactError: its text is not the skeleton filled with its texts.
        """
        out: list[str] = []
        grown = [0]  # how much longer the texts are than their sentinels, up to each slot
        parts: dict[int, Part] = {}
        at = growth = 0
        for slot in self.slots:
            whole = texts[slot.number]
            content = slot.fill(whole)
            out += (self.text[at : slot.start], content)
            start = slot.start + growth
            skipped = 0 if content == whole else _stripped(whole, slot.left)
            parts[slot.number] = Part(slot.name, start, start + len(content), skipped)
            growth += len(content) - (slot.end - slot.start)
            grown.append(growth)
            at = slot.end
        out.append(self.text[at:])
        if "".join(out) != rendered:
            raise InexactError("it shows a text otherwise than as it stands in the row")
        turns = (
            _moved(turn, grown, before, tuple(parts[number] for number in own), omits)
            for (turn, own, omits), before in zip(self.turns, self._slots_before, strict=True)
        )
        return Rendered(rendered, tuple(turns), self.prompt_differs)

    @functools.cached_property
    def _slots_before(self) -> list[tuple[int, ...]]:
        """How many slots end by each place of each turn: its begin, its end, its end token's."""
        ends = [slot.end for slot in self.slots]
        return [
            tuple(bisect.bisect_right(ends, at) for at in (turn.start, turn.end, *(turn.eot or ())))
            for turn, _, _ in self.turns
        ]


def _stripped(text: str, left: str | None) -> int:
    return 0 if left is None else len(text) - len(text.lstrip(left or None))


def _moved(
    turn: Turn, grown: Sequence[int], before: Sequence[int], parts: tuple[Part, ...], omits: bool
) -> Turn:
    """Return the turn with its places moved by what the texts before them have grown."""
    start, end = turn.start + grown[before[0]], turn.end + grown[before[1]]
    eot = turn.eot and (turn.eot[0] + grown[before[2]], turn.eot[1] + grown[before[3]])
    return Turn(turn.index, start, end, eot, parts, omits)
