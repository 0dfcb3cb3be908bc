"""One FTBUILD.toml: its bytes, checked and parsed, with clear words for what is no TOML.

A manifest may come from a stranger's branch, so its size and its nesting are capped before
anything walks it: parsing takes time that grows with the square of a dotted key's length.
"""

import ast
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from ftbuild.root import LARGEST_BYTES
from ftbuild.spans import Finding, Spot, locate
from ftbuild.wording import as_key

DEEPEST = 32
_LONG_KEY = re.compile(
    rb"(?m)(?:^[ \t]*\[{0,2}|[{,])[ \t]*((?:[A-Za-z0-9_\"'-]+[ \t]*\.[ \t]*){%d})" % DEEPEST
)
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TWICE = re.compile(r"Cannot (?:declare|mutate immutable namespace) (\(.*\))(?: twice)?")


def read(path: Path, name: str) -> tuple[bytes, dict[str, Any] | None, list[Finding]]:
    """Return the bytes of the file, its tables (None if they cannot be had) and what is wrong.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return b"", None, [_unreadable(name, "it is not a regular file")]
        if status.st_size > LARGEST_BYTES:
            return b"", None, [_too_large(name, status.st_size)]
        text = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        return b"", None, [_unreadable(name, (error.strerror or str(error)).lower())]
    tables, findings = parse(text, name)
    return text, tables, findings


def parse(text: bytes, name: str) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Return the tables of a TOML text, or None and what is wrong with it."""
    if wrong := _not_utf8(text, name):
        return None, [wrong]
    if match := _LONG_KEY.search(text):
        return None, [_too_deep(name, _spot_of(text, match.start(1)))]
    try:
        return tomllib.loads(text.decode()), []
    except RecursionError:
        return None, [_too_deep(name, None)]
    except tomllib.TOMLDecodeError as error:
        return None, [_syntax(str(error), text, name)]
    except ValueError:
        what, fix = f"`{name}` holds a number that is too long to read", _LONGEST_NUMBER
        return None, [Finding("E0107", what, name, fix=fix)]


def too_deep(name: str, path: tuple[str | int, ...]) -> Finding:
    """Return the finding for a value below `path` that nests too deeply."""
    return Finding("E0106", _DEEP, name, path, fix=_DEEP_FIX)


_DEEP = f"tables and lists nest deeper than {DEEPEST} levels"
_LONGEST_NUMBER = "Python reads numbers of up to 4,300 digits"
_DEEP_FIX = "no rule takes values as deep as that; is a bracket missing?"


def _too_deep(name: str, spot: Spot | None) -> Finding:
    return Finding("E0106", _DEEP, name, spot=spot, fix=_DEEP_FIX)


def _unreadable(name: str, why: str) -> Finding:
    return Finding("E0102", f"`{name}` cannot be read", name, why=why)


def _too_large(name: str, size: int) -> Finding:
    what = f"`{name}` has {size:,} bytes; at most {LARGEST_BYTES:,} are read"
    fix = "move targets into packages: folders with an FTBUILD.toml of their own"
    return Finding("E0105", what, name, fix=fix)


def _not_utf8(text: bytes, name: str) -> Finding | None:
    fix = "save the file as UTF-8 without a byte order mark"
    if text.startswith(b"\xef\xbb\xbf"):
        return Finding("E0104", f"`{name}` begins with a byte order mark", name, fix=fix)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Finding("E0104", f"`{name}` is UTF-16, not UTF-8", name, fix=fix)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        what = f"`{name}` is not UTF-8: byte 0x{text[error.start]:02x}"
        return Finding("E0104", what, name, spot=_spot_of(text, error.start), fix=fix)
    return None


def _spot_of(text: bytes, offset: int) -> Spot:
    start = text.rfind(b"\n", 0, offset) + 1
    column = len(text[start:offset].decode("utf-8", "replace")) + 1
    return Spot(text.count(b"\n", 0, offset) + 1, column, 1)


def _whole_line(text: bytes, number: int) -> Spot:
    line = text.decode().split("\n")[number - 1]
    return Spot(number, len(line) - len(line.lstrip()) + 1, max(1, len(line.strip())))


def _syntax(message: str, text: bytes, name: str) -> Finding:
    at = _AT.search(message)
    words = message[: at.start()] if at else message
    if at and at[1]:
        spot = Spot(int(at[1]), int(at[2]), 1)
    else:
        lines = text.decode().rstrip().split("\n")
        spot = Spot(len(lines), len(lines[-1].rstrip("\r")) + 1, 1)
    if twice := _TWICE.fullmatch(words):
        return _declared_twice(ast.literal_eval(twice[1]), spot, text, name)
    if words == "Cannot overwrite a value":
        fix = "each key may stand once in a table; remove one of them"
        line = _whole_line(text, spot.line)
        return Finding("E0111", "this key is set twice", name, spot=line, fix=fix)
    what = f"not valid TOML: {words[0].lower()}{words[1:]}"
    return Finding("E0103", what, name, spot=spot, fix=_syntax_fix(words, text, spot))


def _declared_twice(path: tuple[str, ...], spot: Spot, text: bytes, name: str) -> Finding:
    header = f"[{'.'.join(as_key(key) for key in path)}]"
    first = locate(text, path, of="key")
    return Finding(
        "E0111",
        f"`{header}` is declared twice",
        name,
        spot=_whole_line(text, spot.line),
        why=f"first declared at {name}:{first.line}",
        fix="give one of them another name, or make one table of both",
    )


def _syntax_fix(words: str, text: bytes, spot: Spot) -> str:
    line = text.decode().split("\n")[spot.line - 1]
    if words == "Invalid value":
        return 'a text stands in quotes: `name = "value"`; true and false are in lower case'
    if "initial character" in words and line.strip().startswith("["):
        return "a header is `[RULE.TARGET]`, such as `[sft.helper]`"
    if words.startswith("Expected '='"):
        return "a line is `key = value`, or a header such as `[sft.helper]`"
    if words.startswith(("Unclosed", "Unterminated", "Illegal", "Expected")):
        return "is a quote, a bracket or a comma missing here, or on a line before?"
    return "https://toml.io shows what TOML looks like"
