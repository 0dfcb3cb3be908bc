"""What an importer of a rule pack makes of another tool's configuration: plain data.

An importer is a module `importers/NAME.py` of a pack with a `TITLE`, `recognises(config)`, which
says whether a configuration is of its tool, and `convert(config, folder)`, which returns an
`Imported`; a path that the configuration names is relative to `folder`.
"""

from dataclasses import dataclass
from typing import Any

Key = tuple[str | int, ...]
"""Where a value stands: `("datasets", 0, "path")`."""


@dataclass(frozen=True)
class Table:
    """One target, as FTBUILD.toml shall declare it."""

    rule: str
    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Note:
    """What is to be known about one key of the configuration."""

    key: Key
    text: str


@dataclass(frozen=True)
class Imported:
    """All that a configuration becomes."""

    tables: tuple[Table, ...]
    default: str
    """The target that a plain `ftbuild make` builds."""
    notes: tuple[Note, ...]


class ImportProblem(Exception):
    """Raised by an importer: which key has no counterpart without which nothing can be trained."""

    def __init__(self, key: Key, what: str, fix: str) -> None:
        super().__init__(what)
        self.key = key
        self.what = what
        self.fix = fix
