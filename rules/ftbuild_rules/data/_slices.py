"""A part of a split: `train[:1%]`, `test[100:200]`, as `datasets` writes it.

The files of such a source lie in a folder of that name. Percents are of all rows, and each end
is rounded to the nearest row, a half to the even one.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from ftbuild.api import Source

_FOLDER = re.compile(r"[\w.-]+\[(-?\d*%?):(-?\d*%?)\]/")
T = TypeVar("T")


def is_part(source: Source) -> bool:
    """Say whether not all rows of the files are meant."""
    return _FOLDER.match(source.files[0].relative) is not None


def part_of(source: Source, rows: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield the rows that are meant; `rows` begins anew with all of them each time."""
    match = _FOLDER.match(source.files[0].relative)
    if match is None:
        return rows()
    is_relative = any(end.startswith("-") or end.endswith("%") for end in match.groups())
    total = sum(1 for _ in rows()) if is_relative else None
    start, stop = (_place(end, total) for end in match.groups())
    return islice(rows(), start or 0, stop)


def _place(end: str, total: int | None) -> int | None:
    if not end:
        return None
    if total is None:
        return int(end)
    place = round(int(end[:-1]) * total / 100) if end.endswith("%") else int(end)
    return max(0, place + total if place < 0 else place)
