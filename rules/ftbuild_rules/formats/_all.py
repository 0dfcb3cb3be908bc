"""All formats by name, and a row's columns -> the columns of its format's normal form.

`columns` renames, and reaches into objects (`"model.solution"`); a format may know a column by
other published names too. What no column of the format was read from is kept as `metadata`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ftbuild.api import canonical_json
from ftbuild_rules.data._typed import without_nulls
from ftbuild_rules.formats import (
    alpaca,
    openai,
    preference,
    prompt_completion,
    prompts,
    segments,
    sharegpt,
    stepwise,
    text,
    tokenized,
    unpaired,
)
from ftbuild_rules.formats._prompt import Prompt
from ftbuild_rules.formats._roles import KEYS, renamed, with_keys
from ftbuild_rules.formats._words import BadRow, names

# In the order in which a format is suggested for a row: the one that says most comes first.
FORMATS: dict[str, ModuleType] = {
    "preference": preference,
    "unpaired": unpaired,
    "stepwise": stepwise,
    "openai": openai,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "prompt_completion": prompt_completion,
    "tokenized": tokenized,
    "segments": segments,
    "text": text,
    "completion": text,
    "prompts": prompts,
}
_NEVER_SUGGESTED = ("completion", "prompts")
"""The one is another name, the other fits whatever has a prompt."""
WITH_MESSAGES = (
    "openai",
    "sharegpt",
    "preference",
    "unpaired",
    "prompt_completion",
    "prompts",
)
"""Those whose rows may hold messages."""


@dataclass(frozen=True)
class Formatting:
    """How rows are written."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    prompt: Prompt | None = None

    @property
    def module(self) -> ModuleType:
        """The format's module."""
        return FORMATS[self.format]


def normal_row(row: dict[str, Any], how: Formatting) -> dict[str, Any]:
    """Return the row in its normal form, with all that the format does not read as metadata.

    Raises:
        BadRow: a column is missing, or wrong.
    """
    found = {column: _name_in(row, column, how) for column in how.module.COLUMNS}
    given = {
        column: value
        for column, name in found.items()
        if (value := _value_at(row, name)) is not None
    }
    used = set(found.values())
    if how.prompt is not None:
        given[how.module.PROMPT] = how.prompt.fill(row)
        given = {key: value for key, value in given.items() if key not in how.prompt.replaces}
        used |= set(how.prompt.fields)
    for column in how.module.NEEDED:
        if column not in given:
            raise _missing(row, column, found[column], how)
    keys = {key: how.columns[key] for key in KEYS if key in how.columns}
    if keys:
        given = {
            key: value if key == "tools" else with_keys(value, keys) for key, value in given.items()
        }
    if how.roles:
        given = {key: renamed(value, how.roles) for key, value in given.items()}
    normal: dict[str, Any] = how.module.normalise(given)
    rest = without_nulls({key: value for key, value in row.items() if key not in used})
    return {**normal, "metadata": canonical_json(rest).decode()}


def _name_in(row: Mapping[str, Any], column: str, how: Formatting) -> str:
    """Return the name that a column of the format has in this row."""
    if column in how.columns:
        return how.columns[column]
    if row.get(column) is None:
        for other in getattr(how.module, "ALIASES", {}).get(column, ()):
            if row.get(other) is not None:
                return str(other)
    return column


def _value_at(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _missing(row: dict[str, Any], column: str, name: str, how: Formatting) -> BadRow:
    what = f"row has no `{name}`; it has {names(row)}"
    if row.get(name, "") is None:
        return BadRow("E0810", f"`{name}` is null", "write it, or remove the row")
    for other, module in FORMATS.items():
        if module is not how.module and other not in _NEVER_SUGGESTED and _fits(row, other):
            return BadRow("E0810", what, f'format = "{other}" fits')
    head, point, rest = name.partition(".")
    alike = difflib.get_close_matches(head, row, n=1)
    example = next((key for key in row if key not in how.module.COLUMNS), "NAME")
    if alike:
        example = f"{alike[0]}{point}{rest}"
    return BadRow(
        "E0810", what, f'name the column that holds it: columns = {{ {column} = "{example}" }}'
    )


def _fits(row: dict[str, Any], name: str) -> bool:
    how = Formatting(name)
    return all(row.get(_name_in(row, need, how)) is not None for need in how.module.NEEDED)
