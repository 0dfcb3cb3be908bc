"""Values that mean the same, made the same whatever file they come from.

A CSV cell is text until `types` says what it stands for. A column that is null is a column that
is not there: Parquet and SQL know no other way to leave one out.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ftbuild_rules.data._json import RefusedError, decoder
from ftbuild_rules.formats._words import BadRow

_INTEGER = re.compile(r"[+-]?\d+")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def typed(row: dict[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with the texts of the columns `types` as the values they stand for.

    Raises:
        BadRow: a text is nothing of its type.
    """
    if not types:
        return row
    return {
        key: _value(item, types[key], key) if key in types and isinstance(item, str) else item
        for key, item in row.items()
    }


def _value(text: str, wanted: str, column: str) -> Any:
    text = text.strip()
    try:
        return _READERS[wanted](text) if text else None
    except (RefusedError, ValueError, KeyError, RecursionError):
        shown = json.dumps(text[:40], ensure_ascii=False)
        raise BadRow(
            "E0847",
            f"`{column}` is {shown}, which is not of type `{wanted}`",
            f"mend it, or remove `{column}` from `types`",
        ) from None


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_READERS: Mapping[str, Callable[[str], Any]] = {
    "integer": int,
    "number": _number,
    "boolean": lambda text: _BOOLEANS[text.lower()],
    "json": decoder.decode,
}


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the keys that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
