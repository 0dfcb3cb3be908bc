"""CSV and TSV -> rows: the first line names the columns, every cell is text.

No type is guessed from the cells, since a guess would change with the data: `types` says which
columns hold numbers. An empty cell is no value. A quoted cell may hold line ends.

question,answer
"How much is 2 + 2?",4
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.data import _rows
from ftbuild_rules.data._rows import Readable, Row, lines, not_utf8, too_long


class _Lines:
    """Decoded lines, and the first byte since `bad` was last cleared that is not UTF-8."""

    def __init__(self, binary: Readable, name: str, *, is_start: bool) -> None:
        self._lines = lines(binary, name)
        self._name = name
        self._is_start = is_start
        self.bad: RuleError | None = None
        self.record_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for number, raw in self._lines:
            self.record_bytes += len(raw)
            if self.record_bytes > _rows.MAX_ROW_BYTES:
                raise too_long(Place(self._name, number))
            try:
                text = raw.decode("utf-8-sig" if self._is_start and number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                self.bad = self.bad or not_utf8(self._name, number, raw, error.start)
                text = raw.decode(errors="replace")
            yield text


def delimited_rows(
    binary: io.BufferedReader, name: str, delimiter: str
) -> Iterator[Row | RuleError]:
    """Yield the rows after the header.

    Raises:
        RuleError: the header is broken, or a row is too long.
    """
    source, reader = _opened(binary, name, delimiter, is_start=True)
    header = _header(next(_records(source, reader, name), None), name)
    for item in _records(source, reader, name):
        yield item if isinstance(item, RuleError) else _row(header, item, name)


def read_header(binary: Readable, name: str, delimiter: str) -> list[str]:
    """Return the names of the columns, and read no line beyond them; none of an empty file.

    Raises:
        RuleError: the header is broken.
    """
    source, reader = _opened(binary, name, delimiter, is_start=True)
    return _header(next(_records(source, reader, name), None), name)


def rows_below(
    header: list[str], binary: Readable, name: str, delimiter: str
) -> Iterator[Row | RuleError]:
    """Yield the rows of a part of a file; lines are counted from its own first one.

    Raises:
        RuleError: a row is too long.
    """
    source, reader = _opened(binary, name, delimiter, is_start=False)
    for item in _records(source, reader, name):
        yield item if isinstance(item, RuleError) else _row(header, item, name)


def _opened(binary: Readable, name: str, delimiter: str, *, is_start: bool) -> tuple[_Lines, Any]:
    # The module's own limit of 128 KiB a cell is a setting of the process; ours is on the row.
    csv.field_size_limit(_rows.MAX_ROW_BYTES)
    source = _Lines(binary, name, is_start=is_start)
    return source, csv.reader(iter(source), delimiter=delimiter, strict=True)


def _records(source: _Lines, reader: Any, name: str) -> Iterator[tuple[int, list[str]] | RuleError]:
    """Yield line and cells of each record that is not blank."""
    while True:
        line = reader.line_num + 1
        source.record_bytes = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _broken(str(error), Place(name, line))
            continue
        if source.bad is not None:
            yield source.bad
            source.bad = None
        elif cells:
            yield line, cells


def _header(found: tuple[int, list[str]] | RuleError | None, name: str) -> list[str]:
    if found is None:
        return []
    if isinstance(found, RuleError):
        raise found
    line, names = found
    if "" in names:
        raise RuleError(
            f"column {names.index('') + 1} has no name",
            code="E0842",
            where=Place(name, line),
            fix="write a name for each column into the first line",
        )
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise RuleError(
            f"the column `{twice}` stands twice in the first line",
            code="E0805",
            where=Place(name, line),
            fix="rename one of the two",
        )
    return names


def _row(header: list[str], record: tuple[int, list[str]], name: str) -> Row | RuleError:
    line, cells = record
    if len(cells) != len(header):
        return RuleError(
            f"the row has {len(cells)} cells; the first line names {len(header)} columns",
            code="E0842",
            where=Place(name, line),
            fix="put cells that hold the delimiter or a line end into double quotes",
        )
    return Row(
        Place(name, line), {key: cell or None for key, cell in zip(header, cells, strict=True)}
    )


def _broken(message: str, place: Place) -> RuleError:
    if message == "unexpected end of data":
        return RuleError(
            "the file ends in the middle of a row",
            code="E0804",
            where=place,
            why="a cell's closing double quote is missing",
            fix="was it copied whole? delete the last line, or get the file again",
        )
    return RuleError(
        f"not CSV: {message}",
        code="E0842",
        where=place,
        fix="write a double quote inside a quoted cell twice",
    )
