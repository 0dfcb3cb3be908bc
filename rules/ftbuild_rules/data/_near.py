"""Near duplicates: rows whose sets of word n-grams are alike (their Jaccard similarity).

MinHash signatures in bands find the candidates; each is then compared exactly, so no row is
called a duplicate that is none. A pair at the threshold is found with a probability of 99% or
more, one well above it nearly always.

Source: Broder 1997, "On the resemblance and containment of documents"; bands: Leskovec et al.,
"Mining of Massive Datasets", section 3.4.
"""

import re
from typing import Any

_WORD = re.compile(r"\w+")
_HASHES = 128
_FOUND = 0.99
_SHIFT = 32


class Bands:
    """Makes of a text the keys of its bands: texts that are alike share one."""

    def __init__(self, threshold: float) -> None:
        import numpy as np

        self._width = _rows_per_band(threshold)
        # Multiply-shift hashing; fixed, since another choice would only miss other pairs.
        random = np.random.Generator(np.random.PCG64(20240229))
        self._a = random.integers(0, 1 << 63, _HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(
            1
        )
        self._b = random.integers(0, 1 << 63, _HASHES, dtype=np.uint64)

    def __len__(self) -> int:
        """Return how many keys a text has."""
        return _HASHES // self._width

    def keys(self, shingles: frozenset[int]) -> list[int]:
        """Return the keys of a text; no two bands have a key in common."""
        import numpy as np
        import xxhash

        values = np.fromiter(shingles, np.uint64, len(shingles))
        low = values & np.uint64(0xFFFFFFFF)
        signature: Any = np.full(_HASHES, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(low), 1024):
            block = low[start : start + 1024, None] * self._a + self._b
            signature = np.minimum(signature, (block >> np.uint64(_SHIFT)).min(axis=0))
        return [
            xxhash.xxh3_64_intdigest(
                signature[at : at + self._width].astype("<u8").tobytes(), seed=at
            )
            for at in range(0, _HASHES - self._width + 1, self._width)
        ]


def shingles_of(text: str, ngram: int) -> frozenset[int]:
    """Return the hashes of all runs of so many words; of a shorter text, that of its words."""
    import xxhash

    words = _WORD.findall(text.lower())
    runs = range(max(1, len(words) - ngram + 1))
    return frozenset(
        xxhash.xxh3_64_intdigest(" ".join(words[at : at + ngram]).encode()) for at in runs
    )


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Return which share of the n-grams of two texts is in both."""
    return len(one & other) / len(one | other)


def _rows_per_band(threshold: float) -> int:
    """Return the most rows a band may have for a pair at the threshold to be found."""
    return max(
        rows
        for rows in range(1, 33)
        if rows == 1 or 1 - (1 - threshold**rows) ** (_HASHES // rows) >= _FOUND
    )
