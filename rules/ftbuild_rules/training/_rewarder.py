"""Functions of the user's that reward the completions of `grpo`.

A function is called as TRL calls it, with a list for each name, one item for each completion:

    def correct(completions, answer):                    # `answer` is a column of the prompts
        return [float(said.strip().endswith(a)) for said, a in zip(completions, answer)]

It gets the names that its signature has, of `prompts` and `completions` (texts),
`completion_ids`, and the columns of the rows; all of them if it takes `**others`. It returns a
number for each completion, or None where it has nothing to say.
"""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftbuild.api import Function, Place, RuleError
from ftbuild_rules.training._shards import TokenRows

Columns = dict[str, list[Any]]
"""A list for each name that a function may ask for, with an item for each completion."""
GIVEN = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True)
class Rewarder:
    """A function of the user's, checked."""

    given: Function
    function: Callable[..., Any]
    names: tuple[str, ...] | None
    """What it asks for; None for all there is."""

    def __call__(self, columns: Columns, rows: Sequence[int]) -> list[float | None]:
        """Return the reward of each completion; `rows` are the rows of their prompts.

        Raises:
            RuleError: E0914: the function fails, or returns no reward for a completion.
        """
        names = [*columns] if self.names is None else [n for n in self.names if n in columns]
        try:
            found = self.function(**{name: columns[name] for name in names})
        except Exception as error:
            raise self._failed(error, {name: columns[name] for name in names}, rows) from error
        if not isinstance(found, list | tuple) or len(found) != len(rows):
            count = len(found) if isinstance(found, list | tuple) else type(found).__name__
            raise self._wrong(
                f"`{self.given.spec}` returns {count} for {len(rows)} completions",
                rows,
                "return a list with one number for each item of `completions`",
            )
        return [self._reward(value, row) for value, row in zip(found, rows, strict=True)]

    def _reward(self, value: Any, row: int) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise self._wrong(
            f"`{self.given.spec}` returns {value!r} for a completion of row {row}",
            [row],
            "return a finite number, or None where it has nothing to say",
        )

    def _wrong(self, what: str, rows: Sequence[int], fix: str) -> RuleError:
        file = self.given.spec.rpartition(":")[0]
        line = inspect.unwrap(self.function).__code__.co_firstlineno
        return RuleError(
            what, code="E0914", where=Place(file, line, within=_shown_rows(rows)), fix=fix
        )

    def _failed(self, error: Exception, columns: Columns, rows: Sequence[int]) -> RuleError:
        """Return what is said when the function raises, with the first row that makes it."""
        at = list(rows)
        for place, row in enumerate(rows):
            try:
                self.function(**{name: [values[place]] for name, values in columns.items()})
            except Exception as single:
                error, at = single, [row]
                break
        problem = self.given.failure(error).problems[0]
        place_ = problem.where
        assert place_ is not None
        return RuleError(
            problem.what,
            code="E0914",
            where=Place(place_.path, place_.line, within=_shown_rows(at)),
            fix=f"mend it; `ftbuild inspect` shows the row: --row {at[0]}",
        )


def _shown_rows(rows: Sequence[int]) -> str:
    distinct = sorted(set(rows))
    shown = ", ".join(map(str, distinct[:8])) + (", …" if len(distinct) > 8 else "")
    return f"row {shown}" if len(distinct) == 1 else f"rows {shown}"


def load_rewarder(given: Function, rows: TokenRows) -> Rewarder:
    """Import a function and see that the rows have what it asks for.

    Raises:
        RuleError: E0715: its file fails; E0914: it asks for what is not there.
    """
    function = given.load()
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    rewarder = Rewarder(given, function, None if takes_all else tuple(p.name for p in named))
    columns = column_names(rows)
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in (*GIVEN, *columns):
            raise RuleError(
                f"`{given.spec}` asks for `{parameter.name}`, which the rows of `{rows.label}` "
                "do not have",
                code="E0914",
                where=Place(given.spec.rpartition(":")[0], function.__code__.co_firstlineno),
                why=f"they have {_listed(columns)}" if columns else "they have prompts alone",
                fix=f"ask for one of {_listed((*GIVEN, *columns))}",
            )
    return rewarder


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def column_names(rows: TokenRows) -> tuple[str, ...]:
    """Return the names of all columns that rows of prompts have besides the prompt."""
    found: set[str] = set()
    for text in rows.table.column("metadata").to_pylist():
        found.update(json.loads(text or "{}"))
    return tuple(sorted(found - set(GIVEN)))
