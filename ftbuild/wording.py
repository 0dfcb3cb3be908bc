"""Words for people: how values of a manifest are named and shown in a message."""

import json
import re
from collections.abc import Iterable
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def shown(text: str, longest: int = 80) -> str:
    """Return `text` fit for one line of a terminal: no control characters, not too long."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: longest + 1])
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


def as_key(text: str) -> str:
    """Return `text` as a TOML key, quoted where it has to be."""
    return text if _BARE_KEY.fullmatch(text) else f'"{shown(text)}"'


def as_toml(value: Any) -> str:
    """Return a TOML value on one line, for messages and for text to paste."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(shown(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{as_key(key)} = {as_toml(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return str(value)


def kind_of_value(value: Any) -> str:
    """Return what sort of TOML value this is, in the words of a person."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    words |= {list: "a list", dict: "a table"}
    return words.get(type(value), "a date or time")


def dotted(path: Iterable[str | int]) -> str:
    """Return a path into a table as a person writes it: `lora.r`, `train_on[1]`."""
    out = ""
    for step in path:
        if isinstance(step, int):
            out += f"[{step}]"
        else:
            out += f".{as_key(step)}" if out else as_key(step)
    return out


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that `word` was most likely meant to be, if there is one."""
    import difflib  # only wanted when there is an error

    by_folded = {option.casefold(): option for option in options}
    matches = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, options: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return the remedy for a slip of the pen, or `otherwise`."""
    match = nearest(word, options)
    if match is None:
        return otherwise
    question = f"did you mean `{match}`?"
    return f"{question} {otherwise}" if otherwise else question
