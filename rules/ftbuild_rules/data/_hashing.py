"""Where a row falls when a seed decides: by what it says, and by nothing beside it."""

import hashlib
import marshal
from collections.abc import Mapping
from typing import Any

from ftbuild_rules.data._shards import SizedRow

SPACE = 1 << 64
_MARSHAL = 2
"""The last version of the format that writes equal values as equal bytes."""


def place_of(row: SizedRow, seed: int, copy: int = 0) -> int:
    """Return a number below `SPACE` for a row; rows that say the same get the same."""
    return place_of_text(f"{row.fingerprint}:{copy}", seed)


def place_of_text(text: str, seed: int) -> int:
    """Return a number below `SPACE` for a text."""
    import xxhash

    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed)


def row_digest(row: dict[str, Any]) -> bytes:
    """Return the SHA-256 of all that a row holds."""
    return hashlib.sha256(marshal.dumps(row, _MARSHAL)).digest()


def exact_counts(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Return whole numbers in the proportion of `weights` whose sum is `total`.

    Each is its exact share or one more; the largest remainders get the rows that are left.
    """
    whole = sum(weights.values())
    shares: dict[str, float] = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: int(share) for name, share in shares.items()}
    left = total - sum(counts.values())
    by_remainder: list[Any] = sorted(shares, key=lambda name: (counts[name] - shares[name], name))
    for name in by_remainder[:left]:
        counts[name] += 1
    return counts
