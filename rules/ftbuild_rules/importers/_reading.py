"""A configuration that is read key by key, so that what nobody read is known in the end."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ftbuild.api import ImportProblem, Key, Note
from ftbuild_rules.data._other_tools import DATASET_NAMES, DATASET_REMEDIES
from ftbuild_rules.tokens._other_tools import TOKENS_NAMES, TOKENS_REMEDIES
from ftbuild_rules.training._other_tools import TRAINING_NAMES, TRAINING_REMEDIES

_REMEDIES = {**DATASET_REMEDIES, **TOKENS_REMEDIES, **TRAINING_REMEDIES}
_NAMES = {**DATASET_NAMES, **TOKENS_NAMES, **TRAINING_NAMES}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NONE = "not imported: nothing was written for it"


class Reading:
    """One table of a configuration; remembers which keys were read, and what is to be said."""

    def __init__(self, values: Mapping[str, Any], key: Key = (), notes: list[Note] | None = None):
        self.values = values
        self.key = key
        self.notes: list[Note] = [] if notes is None else notes
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def take(self, name: str, default: Any = None) -> Any:
        """Return the value of a key, which counts as read; null is as not given."""
        self._read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> Any:
        """Return a number; YAML takes `2e-4`, which has no point, for a text."""
        value = self.take(name, default)
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            return float(value) if set(value) & set(".eE") else int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.problem(name, f"`{name}` should be a number", "write one")
        return value

    def names(self, name: str) -> list[str]:
        """Return a list of names, which may be written as one text with commas."""
        value = self.take(name, [])
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list):
            raise self.problem(name, f"`{name}` should be a list of names", "write one")
        return [str(part).strip() for part in parts]

    def tables(self, name: str) -> list["Reading"]:
        """Return a list of tables, each to be read on its own."""
        value = self.take(name, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.problem(name, f"`{name}` should be a list of tables", "write `- path: …`")
        return [Reading(v, (*self.key, name, i), self.notes) for i, v in enumerate(value)]

    def table(self, name: str) -> "Reading":
        """Return a table within this one; an empty one where it is not given."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise self.problem(name, f"`{name}` should be a table", "write keys and values")
        return Reading(value, (*self.key, name), self.notes)

    def note(self, name: str, text: str) -> None:
        """Say something of a key, which counts as read."""
        self._read.add(name)
        self.notes.append(Note((*self.key, name), text))

    def problem(self, name: str, what: str, fix: str) -> ImportProblem:
        """Return the error for a key without whose meaning nothing can be trained."""
        return ImportProblem((*self.key, name), what, fix)

    def ignore(self, names: Iterable[str], text: str) -> None:
        """Note each of `names` that is given and not read yet."""
        for name in names:
            if name in self and name not in self._read:
                self.note(name, text)

    def finish(self) -> None:
        """Note every key that was not read. One without a value says nothing."""
        for name in self.values:
            if name in self._read or name not in self:
                continue
            if name in _REMEDIES:
                self.note(name, f"not imported: {_REMEDIES[name]}")
            elif name in _NAMES:
                self.note(name, f"not imported; here it would be `{_NAMES[name]}`")
            else:
                self.note(name, _NONE)
