"""A row that is refused, and the words for what it holds."""

from collections.abc import Mapping, Sequence
from typing import Any


class BadRow(Exception):
    """What is wrong with one row, and what to write instead; the caller knows the place."""

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.code = code
        self.fix = fix


def text(value: Any, where: str) -> str:
    """Return `value` where it is a string.

    Raises:
        BadRow: it is something else.
    """
    if not isinstance(value, str):
        raise BadRow("E0811", f"{where} should be text; found {kind(value)}", 'write a "string"')
    return value


def kind(value: Any) -> str:
    """Return what a JSON value is, in a person's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    found: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return found.get(type(value), "a number")


def names(values: Mapping[str, Any] | Sequence[str]) -> str:
    """Return names for a sentence, each in backticks."""
    return ", ".join(f"`{value}`" for value in values) or "nothing"
