"""Text for people and for tools: streams, colour, and characters that must not act.

A row of data or a child's output may hold escape sequences, and a CI runner may take a line
for a command. Nothing reaches a stream here but through `visible`, `neutral` or JSON.
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

from ftbuild.redaction import Redactor, of_environment
from ftbuild.view import Span

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Line = Sequence[Span]

# C0 without tab and line feed, DEL, C1, the marks that reorder text, lone surrogates.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# A runner reads `::command` at the start of a trimmed line, and `##[command]` anywhere.
_RUNNER = re.compile(r"(?m)^[^\S\n]*(?=::)|#(?=#(?:\[|vso\[))")


def visible(text: str) -> str:
    """Return `text` without secrets, and with what could act on a terminal made readable.

    Line feeds and tabs stay; ESC becomes `^[`, U+009B becomes `<U+009B>`.
    """
    return _ACTIVE.sub(lambda match: _name(match.group()), _redactor().text(text))


@lru_cache(maxsize=1)
def _redactor() -> Redactor:
    return of_environment()


@lru_cache(maxsize=1)
def _has_escaped_secrets() -> bool:
    """Say whether a secret looks otherwise in JSON, so that a search in that would miss it."""
    return any(json.dumps(secret) != f'"{secret}"' for secret in _redactor().secrets)


def one_line(text: str) -> str:
    """Return `text` as `visible` does, on one line."""
    return visible(text).replace("\t", " ").replace("\n", "^J")


def _name(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return f"^{chr(code + 0x40)}"
    if code == 0x7F:
        return "^?"
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"<U+{code:04X}>"


def neutral(text: str) -> str:
    """Return `text` so that a CI runner takes no line of it for a command."""
    if not (os.environ.get("GITHUB_ACTIONS") or os.environ.get("TF_BUILD")):
        return text
    return _RUNNER.sub(lambda match: f"{match.group()}\\", text)


def use_color(stream: TextIO, choice: str) -> bool:
    """Say whether `stream` gets colour; `choice` is auto, always or never."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream)


def is_terminal(stream: TextIO) -> bool:
    """Say whether `stream` is a terminal that can do more than print."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@lru_cache(maxsize=2)
def console(stream: TextIO) -> "Console":
    """Return a rich console that prints in colour to `stream`, whatever it is."""
    from rich.console import Console

    return Console(
        file=stream,
        force_terminal=True,
        color_system="standard",
        no_color=False,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def write(lines: Iterable[Line], stream: TextIO, *, color: bool) -> None:
    """Print styled lines; without colour nothing of rich is imported."""
    for line in lines:
        if not color:
            print(neutral(visible("".join(span.text for span in line))), file=stream)
            continue
        console(stream).print(styled(line), soft_wrap=True)


def styled(line: Line) -> "Text":
    """Return a line as rich prints it: text as it is, never read as markup."""
    from rich.text import Text

    return Text.assemble(*((neutral(visible(span.text)), span.style) for span in line))


def plain(text: str, style: str = "") -> Line:
    """Return one line in one style."""
    return (Span(text, style),)


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON in ASCII, which no terminal and no runner acts on."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    if _redactor().text(text) != text or _has_escaped_secrets():
        text = json.dumps(_redactor().value(value), ensure_ascii=True, allow_nan=False)
    # Only inside a string can these stand, where JSON has a second spelling for each.
    text = text.replace("\x7f", "\\u007f").replace("##", "#\\u0023")
    print(text, flush=True)


def table(rows: Sequence[Sequence[Span]], *, gap: str = "  ") -> list[Line]:
    """Return rows as lines with aligned columns; the last column is not padded."""
    count = max((len(row) for row in rows), default=0)
    texts = [[one_line(span.text) for span in row] for row in rows]
    widths = [max(columns(row[i]) for row in texts if i < len(row)) for i in range(count)]
    lines: list[Line] = []
    for row, cells in zip(rows, texts, strict=True):
        line: list[Span] = []
        for index, (span, text) in enumerate(zip(row, cells, strict=True)):
            is_last = not any(cells[index + 1 :])
            padding = "" if is_last else " " * (widths[index] - columns(text)) + gap
            line += [Span(text, span.style), Span(padding)]
            if is_last:
                break
        lines.append(tuple(line))
    return lines


def columns(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def say(text: str) -> None:
    """Print a message to standard error."""
    print(neutral(visible(text)), file=sys.stderr)
