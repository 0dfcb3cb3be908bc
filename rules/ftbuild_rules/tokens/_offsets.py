"""Where the tokens of a text stand in it.

Of byte-level BPE each id stands for a fixed number of bytes, so places are sums of sizes, without
a Python object for each token. Of other tokenizers they are the offsets which the library gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Offsets:
    """The beginning and the end of each token, in bytes of UTF-8 or in characters."""

    starts: Any
    ends: Any
    characters: Any = None
    """Where each character of the text begins; None where that is its own number."""

    def cuts(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Return for each character how many tokens end by it, and how many begin before it.

        The first less than the second: a token reaches over the beginning of that character.
        """
        found = places if self.characters is None else self.characters[list(places)]
        ended = self.ends.searchsorted(found, "right").tolist()
        return list(zip(ended, self.starts.searchsorted(found, "left").tolist(), strict=True))


def offsets_by_size(text: str, sizes: Any) -> Offsets | None:
    """Return the offsets of tokens of so many bytes; None where they are not those of the text."""
    import numpy

    ends = sizes.cumsum(dtype=numpy.int64)
    characters = None if text.isascii() else _byte_places(text)
    size = len(text) if characters is None else int(characters[-1])
    if (int(ends[-1]) if len(ends) else 0) != size:
        return None
    return Offsets(ends - sizes, ends, characters)


def offsets_in_characters(pairs: list[tuple[int, int]]) -> Offsets:
    """Return offsets that were given as the characters of each token."""
    import numpy

    places = numpy.array(pairs, numpy.int64).reshape(-1, 2)
    return Offsets(places[:, 0].copy(), places[:, 1].copy())


def _byte_places(text: str) -> Any:
    """Return where each character of a text begins in its UTF-8, and where the text ends."""
    import numpy

    codes = numpy.frombuffer(text.encode("utf-32-le"), numpy.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    return numpy.concatenate(([0], widths.cumsum(dtype=numpy.int64)))
