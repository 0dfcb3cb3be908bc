"""Plain text -> rows with one column, `text`: a row for each line, or one for the file.

Lines that hold nothing but white space are no rows.
"""

import io
from collections.abc import Iterator
from typing import Literal

from ftbuild.api import Place, RuleError
from ftbuild_rules.data import _rows
from ftbuild_rules.data._rows import Row, lines, not_utf8, too_long

SampleBy = Literal["line", "document"]


def text_rows(
    binary: io.BufferedReader, name: str, sample_by: SampleBy
) -> Iterator[Row | RuleError]:
    """Yield the rows of a text file.

    Raises:
        RuleError: a line, or the whole document, is too long to be a row.
    """
    if sample_by == "document":
        yield document(binary.read(_rows.MAX_ROW_BYTES + 1), name)
        return
    for number, raw in lines(binary, name):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield not_utf8(name, number, raw, error.start)
            continue
        if text.strip():
            yield Row(Place(name, number), {"text": text.rstrip("\r\n")})


def document(raw: bytes, name: str) -> Row | RuleError:
    """Return a whole text as one row.

    Raises:
        RuleError: it is too long to be one.
    """
    if len(raw) > _rows.MAX_ROW_BYTES:
        raise too_long(Place(name))
    try:
        return Row(Place(name), {"text": raw.decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        at = error.start - (before.rfind(b"\n") + 1)
        return not_utf8(name, line, raw[error.start - at : error.start + 1], at)
