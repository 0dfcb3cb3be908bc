r"""A prompt of one's own: a format string whose fields are columns of the row.

prompt = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
prompt_no_input = "### Instruction:\n{instruction}\n\n### Response:\n"

Two braces stand for one. The second string is for rows in which a field of the first one that it
lacks is empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from ftbuild_rules.formats._words import BadRow, kind, names


@dataclass(frozen=True)
class Prompt:
    """What the prompt of a row is made of."""

    template: str
    without_input: str | None = None
    replaces: tuple[str, ...] = ()
    """Columns of the format that are in the prompt now, and no further text."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return tuple(dict.fromkeys((*_fields(self.template), *_fields(self.without_input or ""))))

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            BadRow: a field is empty, or no text.
        """
        wanted = _fields(self.template)
        if self.without_input is not None:
            kept = _fields(self.without_input)
            optional = [name for name in wanted if name not in kept]
            if any(row.get(name) in (None, "") for name in optional):
                return _fill(self.without_input, kept, row)
        return _fill(self.template, wanted, row)


def problem(template: str) -> str | None:
    """Return what is wrong with a format string, or None."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return str(error)
    for _, name, spec, conversion in parts:
        if name == "":
            return "a field `{}` has no name"
        if name is not None and (spec or conversion or not set(name).isdisjoint(".[")):
            return f"the field `{{{name}}}` is more than the name of a column"
    return None if _fields(template) else "it has no field, so all prompts would be the same"


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]


def _fill(template: str, wanted: list[str], row: Mapping[str, Any]) -> str:
    values = {}
    for name in wanted:
        value = row.get(name)
        if value is None:
            raise BadRow(
                "E0810",
                f"row has no `{name}`, which `prompt` reads; it has {names(row)}",
                "write it, or give `prompt_no_input` for rows without it",
            )
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadRow(
                "E0811",
                f"`{name}`, which `prompt` reads, should be text; found {kind(value)}",
                'write a "string"',
            )
        values[name] = str(value)
    return template.format(**values)
