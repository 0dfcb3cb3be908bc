"""Other names within messages: `roles = { bot = "assistant" }`, `columns = { role = "who" }`."""

from collections.abc import Callable, Mapping
from typing import Any

from ftbuild_rules.formats._messages import messages_in
from ftbuild_rules.formats._words import BadRow, names

KEYS = ("role", "content")
"""Keys of a message that `columns` renames as it does columns."""


def renamed(value: Any, roles: Mapping[str, str]) -> Any:
    """Return the messages of a column under the names that roles have here."""

    def change(message: dict[str, Any]) -> dict[str, Any]:
        return {
            key: roles.get(item, item)
            if key in ("role", "from") and isinstance(item, str)
            else item
            for key, item in message.items()
        }

    return _changed(value, change, "role")


def with_keys(value: Any, keys: Mapping[str, str]) -> Any:
    """Return the messages of a column with other keys: those here -> those they have in the rows.

    Raises:
        BadRow: a message has both.
    """
    here = {given: key for key, given in keys.items()}

    def change(message: dict[str, Any]) -> dict[str, Any]:
        for given, key in here.items():
            if given != key and message.get(given) is not None and message.get(key) is not None:
                raise BadRow(
                    "E0811",
                    f"a message has both {names((given, key))}",
                    f"which is meant? remove the other, or `{key}` from `columns`",
                )
        return {here.get(key, key): item for key, item in message.items()}

    return _changed(value, change, keys.get("role", "role"))


def _changed(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]], role: str) -> Any:
    """Return a column with each of its messages changed; a text that holds them as JSON too."""
    if isinstance(value, str):
        found = messages_in(value, role)
        return value if found is None else _changed(found, change, role)
    if isinstance(value, dict):
        return change(value)
    return [_changed(item, change, role) for item in value] if isinstance(value, list) else value
