"""Every error a user can see.

    FtbuildError
    ├── ManifestError      exit 2   FTBUILD.toml is wrong; one `Problem` or many
    ├── UsageError         exit 2   the command line is wrong
    ├── ActionError        exit 1   an action failed
    │   └── RuleError      exit 1   raised by a rule: bad data, an impossible request
    ├── DifferenceError    exit 3   a difference where none may be: a lock out of date
    ├── CorruptError       exit 4   stored or fetched bytes are not what they should be
    ├── MachineError       exit 5   disk full, no permission, a network that is down
    └── InterruptedBuild   exit 130, 143

A user reads what is wrong, where, why, and what to write instead; never a traceback.
Anything else that escapes is a bug of ours, exit 70.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A place in a file that a person can open: 1-based line and column where known."""

    path: str
    line: int | None = None
    column: int | None = None
    text: str | None = None
    """The line itself, without its end."""
    width: int = 1
    """How many characters the caret underlines."""
    within: str | None = None
    """The table or row around it, such as `[sft.helper]`."""

    def __str__(self) -> str:
        numbers = [str(n) for n in (self.line, self.column) if n is not None]
        place = ":".join([self.path, *numbers])
        return f"{place} in {self.within}" if self.within else place


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where, why, and what to write instead."""

    code: str
    """Stable, for searching: `E0204`. docs/errors.md lists all."""
    what: str
    where: Place | None = None
    why: str | None = None
    fix: str | None = None

    def render(self) -> str:
        """Return the problem as text without colour, in the form of STYLE section 5."""
        from ftbuild.redaction import of_environment

        lines = [f"error[{self.code}]: {self.what}"]
        if self.where is not None:
            lines.append(f"  --> {self.where}")
            if self.where.text is not None and self.where.line is not None:
                lines += _snippet(self.where)
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            first, *rest = self.fix.splitlines()
            lines.append(f"  fix: {first}")
            lines += [f"       {line}".rstrip() for line in rest]
        return of_environment().text("\n".join(lines))


def problems_from(plain: Iterable[dict[str, Any]]) -> tuple[Problem, ...]:
    """Return the problems that another process sent, each by `dataclasses.asdict`."""
    return tuple(
        Problem(**{**p, "where": None if p["where"] is None else Place(**p["where"])})
        for p in plain
    )


def _snippet(place: Place) -> list[str]:
    """Return the offending line with a caret below; tabs kept so that the caret fits."""
    number = str(place.line)
    text = place.text or ""
    out = [f"  {number} | {text}"]
    if place.column is not None:
        lead = "".join("\t" if c == "\t" else " " for c in text[: place.column - 1])
        out.append(f"  {' ' * len(number)} | {lead}{'^' * max(1, place.width)}")
    return out


class FtbuildError(Exception):
    """The root of all errors that a user can cause or mend."""

    exit_code = 1
    code = "E0000"

    def __init__(
        self,
        what: str,
        *,
        code: str | None = None,
        where: Place | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.problems: tuple[Problem, ...] = (Problem(code or self.code, what, where, why, fix),)

    def render(self) -> str:
        """Return all problems as text, a blank line between them."""
        return "\n\n".join(problem.render() for problem in self.problems)


class ManifestError(FtbuildError):
    """One or many problems in FTBUILD.toml files, sorted by file and line."""

    exit_code = 2
    code = "E0100"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0].what)
        self.problems = tuple(sorted(problems, key=_reading_order))


def _reading_order(problem: Problem) -> tuple[str, int, int, str]:
    place = problem.where
    if place is None:
        return ("", 0, 0, problem.code)
    return (place.path, place.line or 0, place.column or 0, problem.code)


class UsageError(FtbuildError):
    """The command line asks for something that cannot be."""

    exit_code = 2
    code = "E0001"


class ActionError(FtbuildError):
    """An action failed; nothing was recorded for it."""

    code = "E0700"


class RuleError(ActionError):
    """A rule says that it cannot go on: bad rows, a model that does not fit."""

    code = "E0800"


class DifferenceError(FtbuildError):
    """Two things differ that must be equal."""

    exit_code = 3
    code = "E0500"


class CorruptError(FtbuildError):
    """Bytes do not have the digest by which they are known."""

    exit_code = 4
    code = "E0600"


class MachineError(FtbuildError):
    """The machine cannot do it: disk full, no permission, a needed host is down."""

    exit_code = 5
    code = "E0650"


class InterruptedBuild(FtbuildError):
    """A signal ended the build; what was finished is kept."""

    code = "E0702"

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted; finished targets are kept")
        self.exit_code = 128 + signal_number
