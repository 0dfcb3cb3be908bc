"""Where the messages of a conversation stand in its text, and why that may not be known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Conversation = Sequence[dict[str, Any]]


class TemplateError(Exception):
    """The template refuses a conversation or fails on it; the text says why."""


class BrokenTemplateError(Exception):
    """The template is no Jinja; the text says where and why."""


class InexactError(Exception):
    """Where a message stands in the text cannot be told exactly; the text says why."""


@dataclass(frozen=True)
class Part:
    """Where a text of a message stands in the rendered text."""

    name: str
    """`content` or `reasoning`."""
    start: int
    end: int
    skipped: int = 0
    """How many characters at its beginning the template has stripped."""


@dataclass(frozen=True)
class Turn:
    """Where one message stands in the rendered text, in characters."""

    index: int
    """Of the message."""
    start: int
    """Of an assistant's turn: where the prompt ends. Of other roles: where their text begins."""
    end: int
    eot: tuple[int, int] | None
    """The special token that ends the turn: at `end`, or within the span where a template's
    mark covers it. None where no special token follows the message."""
    parts: tuple[Part, ...] = ()
    """Its texts in their order, where they were asked for."""
    omits_reasoning: bool = False
    """The template has left out what the assistant thought."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    turns: tuple[Turn, ...]
    prompt_differs: bool = False
    """The last answer's prompt, rendered alone, is not how the conversation begins."""
