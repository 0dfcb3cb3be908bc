"""Rows of two artifacts side by side: which were added, removed, changed.

Shards of equal bytes are left out before any row is read, so the work is proportional to what
differs, not to the data.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

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
    matcher = SequenceMatcher(None, [key for key, _ in old], [key for key, _ in new], False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            continue
        both = min(j - i, m - k)
        changed += both
        removed += j - i - both
        added += m - k - both
        found += [RowChange(old[i + n][1], new[k + n][1]) for n in range(both)]
        found += [RowChange(row, None) for _, row in old[i + both : j]]
        found += [RowChange(None, row) for _, row in new[k + both : m]]
    return RowDiff(added, removed, changed, tuple(found[:examples]))


def _counted(old: Sequence[tuple[bytes, Any]], new: Sequence[tuple[bytes, Any]]) -> RowDiff:
    before, after = Counter(key for key, _ in old), Counter(key for key, _ in new)
    return RowDiff((after - before).total(), (before - after).total(), 0, ())


def _differing_shards(a: Path, b: Path) -> tuple[list[Path], list[Path]]:
    """Return the shards of each that the other lacks, in their order."""
    before, after = _shards(a), _shards(b)
    shared = Counter(digest for _, digest in before) & Counter(digest for _, digest in after)
    return _without(before, Counter(shared)), _without(after, Counter(shared))


def _shards(directory: Path) -> list[tuple[Path, str]]:
    return [(path, hash_file(path)) for path in sorted((directory / "data").glob("*.arrow"))]


def _without(shards: Sequence[tuple[Path, str]], shared: "Counter[str]") -> list[Path]:
    kept = []
    for path, digest in shards:
        if shared[digest]:
            shared[digest] -= 1
        else:
            kept.append(path)
    return kept


def _rows(paths: Sequence[Path]) -> list[tuple[bytes, Any]]:
    rows = (row for path in paths for row in read_table(path).to_pylist())
    return [(canonical_json(row), row) for row in rows]


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
