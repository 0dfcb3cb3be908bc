"""How an artifact looks to a person: what a viewer returns and the command line prints."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """A run of text with one style: a rich style name such as `green` or `dim`, or none."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class View:
    """An artifact, or one row of it, for a terminal and for other tools."""

    data: Any
    """A JSON value: the answer to `--json`."""
    lines: tuple[tuple[Span, ...], ...] = field(default=())
    """The same for a person; text is shown as it is, never read as markup."""
    distance: float | None = None
    """Of a difference: the largest one between two numbers, if nothing but numbers differs."""
