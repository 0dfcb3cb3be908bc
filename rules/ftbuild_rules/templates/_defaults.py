r"""Defaults for a chat template, written into its text.

What a target sets for its rows (a system message, variables) stands in the template's own text
from here on, so a model that is trained on the rows carries it, and is asked as it was trained.
Whoever gives the variable or a system message of their own still overrides it.

{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif +%}
"""

import json
from collections.abc import Mapping
from typing import Any

RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables that are given with every conversation."""


def with_defaults(text: str, system: str | None, variables: Mapping[str, Any]) -> str:
    """Return the template with a system message and variables where none are given.

    All stands before its first line, which keeps its number.
    """
    heads = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif +%}}"
        for name, value in sorted(variables.items())
    ]
    if system is not None:
        message = _literal({"role": "system", "content": system})
        heads.append(
            '{%- if not messages or messages[0].role != "system" %}'
            f"{{%- set messages = [{message}] + messages %}}{{%- endif +%}}"
        )
    return "".join(heads) + (_without_indent(text) if heads else text)


def _without_indent(text: str) -> str:
    """Return the text without the blanks that Jinja would strip before a tag on the first line.

    It strips them at the beginning of a line alone, and something now stands before them.
    """
    bare = text.lstrip(" \t")
    strips = bare.startswith(("{%", "{#")) and not bare.startswith(("{%+", "{#+"))
    return bare if strips else text


def _literal(value: Any) -> str:
    """Return a JSON value as Jinja writes it."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_literal(key)}: {_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return json.dumps(value, ensure_ascii=False)
