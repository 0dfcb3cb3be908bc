"""JSON files -> rows: one row at a time, each with the line it begins on.

A file holds one JSON array, as its first character says, or else JSON Lines; a file whose name
ends in `.json` may also hold one object over several lines. Nothing is mended and nothing is
skipped: bytes that are not UTF-8, a key that stands twice, NaN, a file that ends in
the middle of a row are errors with file, line and column. Memory holds one row and one block,
whatever the size of the file.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
"""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from ftbuild.api import Place, RuleError
from ftbuild_rules.data import _rows
from ftbuild_rules.data._json import RefusedError, decoder
from ftbuild_rules.data._rows import Readable, Row, lines, not_utf8, too_long

_BLOCK_BYTES = 1 << 20
_SNIPPET_CHARACTERS = 100
_WHITESPACE = " \t\r\n"


def json_rows(binary: io.BufferedReader, name: str, *, is_lines: bool) -> Iterator[Row | RuleError]:
    """Yield the rows of `binary` in their order.

    With `is_lines` a bad line stands for itself and the next one is read; without, where the
    next row begins cannot be known.

    Raises:
        RuleError: nothing after a bad row can be read.
    """
    start, mark = _skip_blank(binary)
    if mark == b"[":
        yield from _array_rows(binary, name, start)
    elif is_lines:
        yield from line_rows(binary, name, start)
    else:
        yield from _object_rows(binary, name, start)


def _skip_blank(binary: io.BufferedReader) -> tuple[int, bytes]:
    """Skip blocks of white space; return the line that follows and its first character."""
    line = 1
    if binary.peek(3)[:3] == codecs.BOM_UTF8:
        binary.read(3)
    while block := binary.peek(1):
        if stripped := block.lstrip(_WHITESPACE.encode()):
            return line, stripped[:1]
        line += block.count(b"\n")
        binary.read(len(block))
    return line, b""


def line_rows(binary: Readable, name: str, start: int = 1) -> Iterator[Row | RuleError]:
    """Yield the rows of `binary`, one a line; its first line has the number `start`."""
    for number, raw in lines(binary, name, start=start):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield not_utf8(name, number, raw, error.start)
            continue
        if not text.isspace():
            yield _parse_line(text, Place(name, number))


def _parse_line(text: str, place: Place) -> Row | RuleError:
    line = text.rstrip(_WHITESPACE)
    assert place.line is not None
    try:
        return _row(decoder.decode(line), place)
    except json.JSONDecodeError as error:
        is_cut = not text.endswith("\n") and _ends_early(error, line)
        return _not_json(error.msg, _at(place, error.pos + 1, line), is_cut=is_cut)
    except (RefusedError, ValueError, RecursionError) as error:
        return _refused(error, _at(place, None, line))


def _ends_early(error: json.JSONDecodeError, text: str) -> bool:
    return error.pos >= len(text) or error.msg.startswith("Unterminated string")


def _row(value: Any, place: Place) -> Row | RuleError:
    if isinstance(value, dict):
        return Row(place, value)
    found = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}
    return RuleError(
        f"a row is {found.get(type(value), 'a number')}; it should be an object",
        code="E0808",
        where=place,
        fix='write each row as {"column": value, …}',
    )


class _Window:
    """The part of an array's text that is in memory, and the line and column of `at`."""

    def __init__(self, binary: BinaryIO, name: str, line: int) -> None:
        self._binary = binary
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.line = line
        self.column = 1
        self.is_whole = False

    def fill(self) -> None:
        """Read on; twice as much as is held, so that a long row costs linear time."""
        block = self._binary.read(max(_BLOCK_BYTES, len(self.text) - self.at))
        self.is_whole = not block
        held = self.text[self.at :]
        try:
            self.text = held + self._decoder.decode(block, final=self.is_whole)
        except UnicodeDecodeError as error:
            before = held.encode() + error.object[: error.start]
            line = self.line + before.count(b"\n")
            tail = before.rpartition(b"\n")[2] + error.object[error.start : error.start + 1]
            raise not_utf8(self._name, line, tail, len(tail) - 1) from None
        self.at = 0

    def move(self, to: int) -> None:
        """Go on to the character `to`."""
        newlines = self.text.count("\n", self.at, to)
        if newlines:
            self.line += newlines
            self.column = to - self.text.rfind("\n", self.at, to)
        else:
            self.column += to - self.at
        self.at = to

    def next_character(self) -> str:
        """Skip white space; return the character there, or an empty string at the end."""
        while True:
            at = self.at
            while at < len(self.text) and self.text[at] in _WHITESPACE:
                at += 1
            self.move(at)
            if at < len(self.text) or self.is_whole:
                return self.text[at : at + 1]
            self.fill()

    def place(self, offset: int = 0) -> Place:
        """Return where the character `offset` after `at` is."""
        before = self.text[self.at : self.at + offset]
        newlines = before.count("\n")
        column = offset - before.rfind("\n") if newlines else self.column + offset
        return Place(self._name, self.line + newlines, column)


def _array_rows(binary: BinaryIO, name: str, start: int) -> Iterator[Row | RuleError]:
    window = _Window(binary, name, start)
    window.next_character()
    window.move(window.at + 1)
    if window.next_character() == "]":
        window.move(window.at + 1)
    else:
        yield from _elements(window)
    if window.next_character():
        raise _not_json("Extra data after the array", window.place(), is_cut=False)


def _object_rows(binary: BinaryIO, name: str, start: int) -> Iterator[Row | RuleError]:
    window = _Window(binary, name, start)
    while window.next_character():
        yield _next_row(window)


def _next_row(window: _Window) -> Row | RuleError:
    start = Place(window.place().path, window.line)
    value, end = _element(window)
    window.move(end)
    return _row(value, start)


def _elements(window: _Window) -> Iterator[Row | RuleError]:
    """Yield the rows from the first one to the bracket that closes the array.

    Raises:
        RuleError: the text is no JSON; where the next row begins cannot be known.
    """
    while True:
        window.next_character()
        yield _next_row(window)
        mark = window.next_character()
        if mark not in (",", "]"):
            raise _not_json("Expecting ',' delimiter", window.place(), is_cut=not mark)
        window.move(window.at + 1)
        if mark == "]":
            return


def _element(window: _Window) -> tuple[Any, int]:
    while True:
        try:
            return decoder.raw_decode(window.text, window.at)
        except json.JSONDecodeError as error:
            if window.is_whole:
                is_cut = _ends_early(error, window.text.rstrip(_WHITESPACE))
                place = window.place(error.pos - window.at)
                raise _not_json(error.msg, place, is_cut=is_cut) from None
        except (RefusedError, ValueError, RecursionError) as error:
            raise _refused(error, Place(window.place().path, window.line)) from None
        if len(window.text) - window.at > _rows.MAX_ROW_BYTES:
            raise too_long(Place(window.place().path, window.line))
        window.fill()


def _at(place: Place, column: int | None, text: str) -> Place:
    """Return `place` with its column, and its text where that is short enough to be read."""
    shown = text if len(text) <= _SNIPPET_CHARACTERS else None
    return Place(place.path, place.line, column, shown)


def _not_json(message: str, place: Place, *, is_cut: bool) -> RuleError:
    if is_cut:
        return RuleError(
            "the file ends in the middle of a row",
            code="E0804",
            where=place,
            why=f"JSON: {message}",
            fix="was it copied whole? delete the last line, or get the file again",
        )
    return RuleError(
        f"not JSON: {message}",
        code="E0803",
        where=place,
        fix="write one JSON object a line (.jsonl), or one array of objects (.json)",
    )


def _refused(error: Exception, place: Place) -> RuleError:
    if isinstance(error, RefusedError):
        return RuleError(str(error), code=error.code, where=place, fix=error.fix)
    if isinstance(error, RecursionError):
        return RuleError(
            "a row is nested too deeply", code="E0807", where=place, fix="flatten its columns"
        )
    # The only other ValueError of `json`: Python's limit on the digits of a whole number.
    return RuleError(
        "a number has more than 4,300 digits", code="E0806", where=place, fix="write it as a string"
    )
