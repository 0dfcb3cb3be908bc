"""What is wrong with the rows of a source, and when that is too much."""

from dataclasses import asdict, dataclass
from typing import Any

from ftbuild.api import Context, Place, RuleError

MAX_PROBLEMS = 5
"""So many are told of."""


@dataclass(frozen=True)
class Unreadable:
    """The rest of a file, which no `on_error` passes over: nobody knows how much it is."""

    error: RuleError


class Problems:
    """What is wrong with the rows, and whether that is too much."""

    def __init__(self, *, max_dropped: int | None) -> None:
        """Let `max_dropped` rows be dropped; None: none may be wrong."""
        self._max_dropped = max_dropped
        self._first: list[RuleError] = []
        self._dropped = 0

    def add(self, found: RuleError | Unreadable) -> None:
        """Count a bad row.

        Raises:
            RuleError: there are too many of them, or rows that are not even known.
        """
        if self._max_dropped is not None and isinstance(found, Unreadable):
            raise found.error
        self._dropped += 1
        if len(self._first) < MAX_PROBLEMS:
            self._first.append(found.error if isinstance(found, Unreadable) else found)
        if self._dropped > (MAX_PROBLEMS - 1 if self._max_dropped is None else self._max_dropped):
            self._fail()

    def end(self, ctx: Context) -> None:
        """Report what was dropped.

        Raises:
            RuleError: rows are bad, and are not to be dropped.
        """
        if self._first and self._max_dropped is None:
            self._fail()
        if self._first:
            what = self._first[0].problems[0]
            rows = "1 row was" if self._dropped == 1 else f"{self._dropped:,} rows were"
            ctx.warn(f"{rows} dropped; the first: {what.where}: {what.what}")
            ctx.facts(dropped=self._dropped)

    def _fail(self) -> None:
        first = self._first[0]
        problems = [problem for error in self._first for problem in error.problems]
        if self._max_dropped is not None:
            what = f"more than {self._max_dropped:,} rows are bad; the first of them:"
            fix = "mend the source, or raise `max_dropped`"
            problems[:0] = RuleError(what, code="E0846", fix=fix).problems
        first.problems = tuple(problems)
        raise first


def to_plain(found: RuleError | Unreadable) -> dict[str, Any]:
    """Return what is wrong with a row as a JSON value; its place is one within a piece."""
    error = found.error if isinstance(found, Unreadable) else found
    return {"problem": asdict(error.problems[0]), "is_end": isinstance(found, Unreadable)}


def place_of(plain: dict[str, Any]) -> str:
    """Return the path in what `to_plain` returned."""
    return str(plain["problem"]["where"]["path"])


def from_plain(plain: dict[str, Any], lines_before: int) -> RuleError | Unreadable:
    """Return what `to_plain` was given, its line now one of the whole file."""
    problem = plain["problem"]
    where = problem["where"]
    line = None if where["line"] is None else where["line"] + lines_before
    error = RuleError(
        problem["what"],
        code=problem["code"],
        where=Place(**{**where, "line": line}),
        why=problem["why"],
        fix=problem["fix"],
    )
    return Unreadable(error) if plain["is_end"] else error
