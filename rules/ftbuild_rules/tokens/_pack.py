"""Several short rows in one: fewer rows, and hardly any padding.

Rows are packed within their shard and never across, so an edit packs one shard anew and the
result is the same whatever the number of workers. `seq_lengths` says where each document ends;
a trainer that attends across that border trains on something else than this.

{"input_ids": [1, 9, 2, 1, 7, 2], "labels": [-100, 9, 2, -100, 7, 2], "seq_lengths": [3, 3]}
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal

from ftbuild_rules.tokens._masks import MASKED

Packing = Literal["bfd", "ffd", "wrapped"]
Row = tuple[Any, Any]
PackedRow = tuple[Any, Any, list[int]]


def pack(
    rows: Sequence[Row], packing: Packing, max_length: int
) -> tuple[list[PackedRow], list[int | None]]:
    """Return the rows, each of ids and labels, packed into rows of at most `max_length` tokens.

    With it, of each row, which of the documents it is of that the packed ones hold one after
    another; None of one that is not whole in any.
    """
    if packing == "wrapped":
        return _wrapped(rows, max_length)
    lengths = [len(ids) for ids, _ in rows]
    found = (best_fit if packing == "bfd" else first_fit)(lengths, max_length)
    bins = [sorted(places) for places in sorted(found, key=min)]
    numbers: list[int | None] = [None] * len(rows)
    for number, place in enumerate(chain.from_iterable(bins)):
        numbers[place] = number
    return [_joined(rows[place] for place in places) for places in bins], numbers


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return which rows go together: each, the longest first, where it leaves the least room."""
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # what is left in a bin, and its number; sorted
    for place in _longest_first(lengths):
        found = bisect_left(spaces, (lengths[place], -1))
        if found == len(spaces):
            bins.append([])
            space, number = room, len(bins) - 1
        else:
            space, number = spaces.pop(found)
        bins[number].append(place)
        insort(spaces, (space - lengths[place], number))
    return bins


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return which rows go together: each, the longest first, in the first bin that takes it."""
    bins: list[list[int]] = []
    spaces: list[int] = []
    for place in _longest_first(lengths):
        length = lengths[place]
        number = next((n for n, space in enumerate(spaces) if space >= length), len(bins))
        if number == len(bins):
            bins.append([])
            spaces.append(room)
        bins[number].append(place)
        spaces[number] -= length
    return bins


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


def _joined(rows: Iterable[Row]) -> PackedRow:
    import numpy

    documents = list(rows)
    ids = numpy.concatenate([ids for ids, _ in documents])
    labels = numpy.concatenate([labels for _, labels in documents])
    sizes = [len(ids) for ids, _ in documents]
    # Nothing of its own comes before a document's first token to predict it.
    labels[[0, *numpy.cumsum(sizes)[:-1]]] = MASKED
    return ids, labels, sizes


def _wrapped(rows: Sequence[Row], max_length: int) -> tuple[list[PackedRow], list[int | None]]:
    """Return the rows one after another, cut wherever `max_length` is full."""
    packed: list[PackedRow] = []
    numbers: list[int | None] = []
    documents = 0
    pending: list[Row] = []
    room = max_length
    for ids, labels in rows:
        at = 0
        numbers.append(documents if 0 < len(ids) <= room else None)
        while at < len(ids):
            piece = ids[at : at + room], labels[at : at + room]
            pending.append(piece)
            at += len(piece[0])
            documents += 1
            room -= len(piece[0])
            if not room:
                packed.append(_joined(pending))
                pending, room = [], max_length
    return ([*packed, _joined(pending)] if pending else packed), numbers
