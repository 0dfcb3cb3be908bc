"""JSON read strictly: what the grammar lets pass and two readers would read in two ways is refused.

{"score": 1, "score": 2} and {"score": NaN} are errors here.
"""

import json
import math
from collections import Counter
from typing import Any


class RefusedError(Exception):
    """A value that is not taken; the text says which, `fix` what to write instead."""

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.code = code
        self.fix = fix


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RefusedError(
            "E0805", f"the key `{twice}` stands twice in one object", "keep one of the two"
        )
    return value


def _constant(text: str) -> None:
    raise RefusedError(
        "E0806", f"`{text}` is no JSON number", "write a number, or null where there is none"
    )


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RefusedError("E0806", f"the number {text} is out of range", "write it as a string")
    return value


decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
"""Raises RefusedError, and what `json` raises: JSONDecodeError, RecursionError, and a ValueError
for a whole number of more digits than Python reads."""
