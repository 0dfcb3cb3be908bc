"""What changed between two versions of a text file, row by row: for `why` and `plan`.

A row is a line; where both versions of it are JSON objects, the fields that differ are named.
"""

import json
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

_SHOWN = 60
"""Characters of an old or new value that fit on one line beside each other."""
_LEAD = 20
"""Characters shown before the first difference of two long texts."""
MAX_BYTES = 16 << 20
"""Above this a file is compared by its digest alone, and no copy of it is kept for `why`."""


def differences(old: bytes, new: bytes) -> Iterator[str]:
    """Yield one line for each row that was changed, added or removed, in file order."""
    before, after = _lines(old), _lines(new)
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    a, b = before[head : len(before) - tail], after[head : len(after) - tail]
    # autojunk would treat a frequent row as noise and report rows as moved that are not.
    for tag, a1, a2, b1, b2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        paired = min(a2 - a1, b2 - b1)
        for i in range(paired):
            yield from _changed(head + b1 + i + 1, a[a1 + i], b[b1 + i])
        for i in range(a1 + paired, a2):
            yield f"line {head + i + 1} removed: {_cut(a[i])}"
        for i in range(b1 + paired, b2):
            yield f"line {head + i + 1} added: {_cut(b[i])}"


def _lines(data: bytes) -> list[str]:
    # Not splitlines: U+2028 and others may stand within a row of JSON, and end no line of a file.
    lines = data.decode("utf-8", "replace").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _common(a: list[str], b: list[str]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _changed(number: int, old: str, new: str) -> Iterator[str]:
    try:
        a, b = json.loads(old), json.loads(new)
    except ValueError:
        a = b = None
    fields = list(_fields(a, b, "")) if isinstance(a, dict) and isinstance(b, dict) else []
    if not fields:
        yield f"line {number}: {_both(old, new)}"
    for name, before, after in fields:
        yield f"line {number}, `{name}`: {_both(before, after)}"


def _fields(a: Any, b: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield the path, old and new value of each leaf in which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in [*a, *(n for n in b if n not in a)]:
            inner = f"{path}.{name}" if path else str(name)
            yield from _fields(a.get(name, _ABSENT), b.get(name, _ABSENT), inner)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _fields(x, y, f"{path}[{i}]")
    elif a != b or type(a) is not type(b):
        yield path, _text(a), _text(b)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _both(old: str, new: str) -> str:
    """Return an old and a new text, both cut around the first place where they differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
        min(len(old), len(new)),
    )
    start = max(0, same - _LEAD) if max(len(old), len(new)) > _SHOWN else 0
    lead = "…" if start else ""
    return f"{lead}{_cut(old[start:])} → {lead}{_cut(new[start:])}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
