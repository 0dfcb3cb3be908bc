"""JSON files -> rows: one row at a time, each with the line it begins on.

A file is JSON Lines, or one JSON array; its first character says which. Nothing is mended and
nothing is skipped: bytes that are not UTF-8, a key that stands twice, NaN, a file that ends in
the middle of a row are errors with file, line and column. Memory holds one row and one block,
whatever the size of the file.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ftbuild.api import Place, RuleError, SourceFile
from ftbuild_rules.data._json import RefusedError, decoder

MAX_ROW_BYTES = 64 << 20
"""A longer row is a file without line ends, or worse: refused before it fills the memory."""

_BLOCK_BYTES = 1 << 20
_SUFFIXES = (".jsonl", ".ndjson", ".json")
_SNIPPET_CHARACTERS = 100
_WHITESPACE = " \t\r\n"


@dataclass(frozen=True)
class Row:
    """One object of a file, and the 1-based line on which it begins."""

    line: int
    value: dict[str, Any]


def read_rows(file: SourceFile) -> Iterator[Row | RuleError]:
    """Yield the rows of `file` in their order, and an error in the place of each bad one.

    After an error in JSON Lines the next line is read; within an array nothing after it.
    """
    if not file.name.lower().endswith(_SUFFIXES):
        yield RuleError(
            f"a dataset cannot be read from `{file.name}`",
            code="E0801",
            where=Place(file.name),
            why="its name ends in none of .jsonl, .ndjson, .json",
            fix='give it as JSON Lines; of a folder name the files: `source = "data/*.jsonl"`',
        )
        return
    with open(file.path, "rb") as binary:
        if binary.read(3) != codecs.BOM_UTF8:
            binary.seek(0)
        start = binary.tell()
        is_array = _first_character(binary) == b"["
        binary.seek(start)
        yield from (_array_rows if is_array else _line_rows)(binary, file.name)


def _first_character(binary: BinaryIO) -> bytes:
    while block := binary.read(_BLOCK_BYTES):
        if stripped := block.lstrip(_WHITESPACE.encode()):
            return stripped[:1]
    return b""


def _line_rows(binary: BinaryIO, name: str) -> Iterator[Row | RuleError]:
    number = 0
    while raw := binary.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(raw) > MAX_ROW_BYTES:
            yield _too_long(name, number)
            return
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield _not_utf8(name, number, raw, error.start)
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
        return Row(place.line or 1, value)
    found = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}
    return RuleError(
        f"a row is {found.get(type(value), 'a number')}; it should be an object",
        code="E0808",
        where=place,
        fix='write each row as {"column": value, …}',
    )


class _Window:
    """The part of an array's text that is in memory, and the line and column of `at`."""

    def __init__(self, binary: BinaryIO, name: str) -> None:
        self._binary = binary
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.line = 1
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
            raise _not_utf8(self._name, line, tail, len(tail) - 1) from None
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


def _array_rows(binary: BinaryIO, name: str) -> Iterator[Row | RuleError]:
    window = _Window(binary, name)
    try:
        window.next_character()
        window.move(window.at + 1)
        if window.next_character() == "]":
            window.move(window.at + 1)
        else:
            yield from _elements(window)
        if window.next_character():
            yield _not_json("Extra data after the array", window.place(), is_cut=False)
    except RuleError as error:
        yield error


def _elements(window: _Window) -> Iterator[Row | RuleError]:
    """Yield the rows from the first one to the bracket that closes the array.

    Raises:
        RuleError: the text is no JSON; where the next row begins cannot be known.
    """
    while True:
        window.next_character()
        start = Place(window.place().path, window.line)
        value, end = _element(window)
        window.move(end)
        yield _row(value, start)
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
        if len(window.text) - window.at > MAX_ROW_BYTES:
            raise _too_long(window.place().path, window.line)
        window.fill()


def _at(place: Place, column: int | None, text: str) -> Place:
    """Return `place` with its column, and its text where that is short enough to be read."""
    shown = text if len(text) <= _SNIPPET_CHARACTERS else None
    return Place(place.path, place.line, column, shown)


def _too_long(name: str, line: int) -> RuleError:
    return RuleError(
        f"a row is longer than {MAX_ROW_BYTES >> 20} MiB",
        code="E0807",
        where=Place(name, line),
        fix="write one row a line; is this a text file without line ends?",
    )


def _not_utf8(name: str, line: int, raw: bytes, at: int) -> RuleError:
    return RuleError(
        f"byte {at + 1} of the line, 0x{raw[at]:02x}, is not UTF-8",
        code="E0802",
        where=Place(name, line),
        fix=f"convert the file: `iconv -f WINDOWS-1252 -t UTF-8 {name}`, or what it was written in",
    )


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
