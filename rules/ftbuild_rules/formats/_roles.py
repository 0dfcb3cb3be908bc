"""`roles = { bot = "assistant" }`: other names for the roles of messages."""

from collections.abc import Mapping
from typing import Any

from ftbuild_rules.formats._messages import messages_in


def renamed(value: Any, roles: Mapping[str, str]) -> Any:
    """Return the messages of a column under the names that roles have here."""
    if isinstance(value, str):
        found = messages_in(value)
        return value if found is None else renamed(found, roles)
    if isinstance(value, dict):
        return {
            key: roles.get(item, item)
            if key in ("role", "from") and isinstance(item, str)
            else item
            for key, item in value.items()
        }
    return [renamed(item, roles) for item in value] if isinstance(value, list) else value
