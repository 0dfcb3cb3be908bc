"""Near duplicates: rows whose sets of word n-grams are alike (their Jaccard similarity).

MinHash signatures in bands find the candidates; each is then compared exactly, so no row is
called a duplicate that is none. A pair at the threshold is found with a probability of 99% or
more, one well above it nearly always.

Source: Broder 1997, "On the resemblance and containment of documents"; bands: Leskovec et al.,
"Mining of Massive Datasets", section 3.4.
"""

import re
from collections.abc import Callable
from typing import Any

_WORD = re.compile(r"\w+")
_HASHES = 128
_FOUND = 0.99
_SHIFT = 32


class NearIndex:
    """Texts that were kept, to be compared with further ones."""

    def __init__(self, threshold: float, ngram: int, read: Callable[[int], str]) -> None:
        """Compare with what `read` gives for the number of an earlier text."""
        import numpy as np

        self._threshold, self._ngram, self._read = threshold, ngram, read
        self._rows_per_band = _rows_per_band(threshold)
        # Multiply-shift hashing; fixed, since another choice would only miss other pairs.
        random = np.random.Generator(np.random.PCG64(20240229))
        self._a = random.integers(0, 1 << 63, _HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(
            1
        )
        self._b = random.integers(0, 1 << 63, _HASHES, dtype=np.uint64)
        self._bands: dict[int, list[int]] = {}

    def match(self, text: str) -> tuple[int, float] | None:
        """Return the first text that is alike, and how alike it is."""
        shingles = self.shingles(text)
        seen: set[int] = set()
        for band in self._keys(shingles):
            seen.update(self._bands.get(band, ()))
        for number in sorted(seen):
            other = self.shingles(self._read(number))
            similarity = len(shingles & other) / len(shingles | other)
            if similarity >= self._threshold:
                return number, similarity
        return None

    def add(self, text: str, number: int) -> None:
        """Remember a text under its number."""
        for band in self._keys(self.shingles(text)):
            self._bands.setdefault(band, []).append(number)

    def shingles(self, text: str) -> frozenset[int]:
        """Return the hashes of all runs of so many words; of a shorter text, that of its words."""
        import xxhash

        words = _WORD.findall(text.lower())
        runs = range(max(1, len(words) - self._ngram + 1))
        return frozenset(
            xxhash.xxh3_64_intdigest(" ".join(words[at : at + self._ngram]).encode()) for at in runs
        )

    def _keys(self, shingles: frozenset[int]) -> list[int]:
        import numpy as np
        import xxhash

        values = np.fromiter(shingles, np.uint64, len(shingles))
        low = values & np.uint64(0xFFFFFFFF)
        signature: Any = np.full(_HASHES, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(low), 1024):
            block = low[start : start + 1024, None] * self._a + self._b
            signature = np.minimum(signature, (block >> np.uint64(_SHIFT)).min(axis=0))
        width = self._rows_per_band
        return [
            xxhash.xxh3_64_intdigest(signature[at : at + width].astype("<u8").tobytes(), seed=at)
            for at in range(0, _HASHES - width + 1, width)
        ]


def _rows_per_band(threshold: float) -> int:
    """Return the most rows a band may have for a pair at the threshold to be found."""
    return max(
        rows
        for rows in range(1, 33)
        if rows == 1 or 1 - (1 - threshold**rows) ** (_HASHES // rows) >= _FOUND
    )
