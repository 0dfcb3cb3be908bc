"""How files look: their names and sizes, the head of a text, and which of them differ."""

from difflib import unified_diff
from pathlib import Path

from ftbuild.api import Artifact, RuleError, hash_file
from ftbuild.view import Span, View

_HEAD_LINES = 20
_TEXT_BYTES = 1 << 20
_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the files of an artifact; with `row` that line of the only file there is.

    Raises:
        RuleError: E0832, there is no such line.
    """
    files = _files(artifact.path)
    if row is not None:
        return _line(artifact, files, row)
    data = {
        name: {"size": path.stat().st_size, "sha256": hash_file(path)}
        for name, path in files.items()
    }
    lines: list[tuple[Span, ...]] = [
        (Span(name, "bold"), Span(f"  {path.stat().st_size:,} bytes"))
        for name, path in files.items()
    ]
    if len(files) == 1 and (text := _text(next(iter(files.values())))) is not None:
        shown = text.splitlines()
        lines += [(Span(line),) for line in shown[:_HEAD_LINES]]
        if len(shown) > _HEAD_LINES:
            lines.append((Span(f"and {len(shown) - _HEAD_LINES:,} more lines", "dim"),))
    return View(data, tuple(lines))


def _line(artifact: Artifact, files: dict[str, Path], row: int) -> View:
    text = _text(next(iter(files.values()))) if len(files) == 1 else None
    lines = [] if text is None else text.splitlines()
    if not 0 <= row < len(lines):
        raise RuleError(
            f"`{artifact.label}` has no row {row}",
            code="E0832",
            fix="rows are the lines of an artifact that is one text file"
            if not lines
            else f"its rows are 0 to {len(lines) - 1}",
        )
    return View(lines[row], ((Span(lines[row]),),))


def diff(a: Artifact, b: Artifact) -> View:
    """Show which files are only in `a`, only in `b`, or differ; of texts the lines."""
    ours, theirs = _files(a.path), _files(b.path)
    data: dict[str, str] = {}
    lines: list[tuple[Span, ...]] = []
    for name in sorted({*ours, *theirs}):
        if name not in theirs:
            data[name] = "removed"
            lines.append((Span(f"- {name}", "red"),))
        elif name not in ours:
            data[name] = "added"
            lines.append((Span(f"+ {name}", "green"),))
        elif hash_file(ours[name]) != hash_file(theirs[name]):
            data[name] = "changed"
            lines.append((Span(f"~ {name}", "yellow"),))
            lines += _changes(_text(ours[name]), _text(theirs[name]))
    return View(data, tuple(lines) or ((Span("no file differs"),),))


def _changes(old: str | None, new: str | None) -> list[tuple[Span, ...]]:
    if old is None or new is None:
        return []
    changed = list(unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=1))[2:]
    return [(Span(line, _STYLES.get(line[:1], "")),) for line in changed]


def _files(folder: Path) -> dict[str, Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def _text(path: Path) -> str | None:
    """Return a file's text; None if it is large or no text."""
    if path.stat().st_size > _TEXT_BYTES:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
