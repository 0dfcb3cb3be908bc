"""What a row says, as one text: for lengths, conditions and comparisons of rows."""

from collections.abc import Iterator, Mapping
from typing import Any

_TEXTS = ("content", "reasoning_content", "tool_calls", "text")


def text_of(row: Mapping[str, Any]) -> str:
    """Return the texts of a row in their order, a line each; without its metadata and tools."""
    return "\n".join(_texts({k: v for k, v in row.items() if k not in ("metadata", "tools")}))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        if value and isinstance(value[0], int) and not isinstance(value[0], bool):
            yield " ".join(map(str, value))  # token ids
            return
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict) and ("role" in value or "text" in value):
        yield from (value[key] for key in _TEXTS if value.get(key))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
