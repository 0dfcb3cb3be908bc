"""Rows of two artifacts side by side: which were added, removed, changed.

Shards of equal bytes are left out before any row is read, so the work is proportional to what
differs, not to the data.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from ftbuild.api import Artifact, RuleError, canonical_json, hash_file
from ftbuild.view import Span
from ftbuild_rules.data._arrow import read_table

_MAX_ALIGNED = 20_000
"""Beyond so many differing rows they are counted and no longer aligned, which is quadratic."""

Line = tuple[Span, ...]


@dataclass(frozen=True)
class RowChange:
    """One row that differs: both texts where it was changed, one where it came or went."""

    before: Any
    after: Any
    number: int
    """Of the row, from 0; where it came, its number afterwards."""


@dataclass(frozen=True)
class RowDiff:
    """How the rows of two artifacts differ."""

    added: int
    removed: int
    changed: int
    examples: tuple[RowChange, ...]
    """The first of them."""


def read_row(artifact: Artifact, index: dict[str, Any], row: int) -> dict[str, Any]:
    """Return one row of an artifact; `index` is its `dataset.json` or `tokens.json`.

    Raises:
        RuleError: it has no such row.
    """
    start = 0
    for name, rows in index["shards"]:
        if start <= row < start + rows:
            found: dict[str, Any] = (
                read_table(artifact.path / name).slice(row - start, 1).to_pylist()[0]
            )
            return found
        start += rows
    raise RuleError(
        f"there is no row {row}: the rows are 0 to {index['rows'] - 1}",
        code="E0832",
        fix=f"--row {max(0, min(row, index['rows'] - 1))}",
    )


def diff_rows(a: Artifact, b: Artifact, *, examples: int = 5) -> RowDiff:
    """Return how the rows of `b` differ from those of `a`."""
    before, after = _differing_shards(a.path, b.path)
    old, new = _rows(before), _rows(after)
    if len(old) + len(new) > _MAX_ALIGNED:
        return _counted(old, new)
    added = removed = changed = 0
    found: list[RowChange] = []
    matcher = SequenceMatcher(None, [one.key for one in old], [one.key for one in new], False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            continue
        both = min(j - i, m - k)
        changed += both
        removed += j - i - both
        added += m - k - both
        pairs = zip(old[i : i + both], new[k : k + both], strict=True)
        found += [RowChange(a.row, b.row, a.number) for a, b in pairs]
        found += [RowChange(a.row, None, a.number) for a in old[i + both : j]]
        found += [RowChange(None, b.row, b.number) for b in new[k + both : m]]
    return RowDiff(added, removed, changed, tuple(found[:examples]))


class _Row(NamedTuple):
    key: bytes
    row: Any
    number: int


def _counted(old: Sequence[_Row], new: Sequence[_Row]) -> RowDiff:
    before, after = Counter(one.key for one in old), Counter(one.key for one in new)
    return RowDiff((after - before).total(), (before - after).total(), 0, ())


def _differing_shards(a: Path, b: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Return the shards of each that the other lacks, in their order, with their first row."""
    before, after = _shards(a), _shards(b)
    shared = Counter(digest for _, digest in before) & Counter(digest for _, digest in after)
    return _without(before, Counter(shared)), _without(after, Counter(shared))


def _shards(directory: Path) -> list[tuple[Path, str]]:
    return [(path, hash_file(path)) for path in sorted((directory / "data").glob("*.arrow"))]


def _without(shards: Sequence[tuple[Path, str]], shared: "Counter[str]") -> list[tuple[Path, int]]:
    kept = []
    start = 0
    for path, digest in shards:
        if shared[digest]:
            shared[digest] -= 1
        else:
            kept.append((path, start))
        start += read_table(path).num_rows  # mapped into memory: only its footer is read
    return kept


def _rows(shards: Sequence[tuple[Path, int]]) -> list[_Row]:
    rows = []
    for path, start in shards:
        found = enumerate(read_table(path).to_pylist(), start)
        rows += [_Row(canonical_json(row), row, number) for number, row in found]
    return rows


def summary_lines(diff: RowDiff) -> list[Line]:
    """Return the counts of a difference, a line each; nothing where the rows are equal."""
    counts = (("+", diff.added, "added", "green"), ("-", diff.removed, "removed", "red"))
    signs = (*counts, ("~", diff.changed, "changed", "yellow"))
    lines: list[Line] = [
        (Span(f"{sign} {count:,} row{'s' if count != 1 else ''} {word}", style),)
        for sign, count, word, style in signs
        if count
    ]
    return lines or [(Span("the rows are equal", "dim"),)]
