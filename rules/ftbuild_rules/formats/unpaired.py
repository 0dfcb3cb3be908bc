"""Format `unpaired`: one answer to a prompt, and whether it is a good one, as KTO learns from it.

{"prompt": "How are you?", "completion": "Very well, thank you!", "label": true}
{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", …}], "label": false}

A string prompt is the user's message, a string completion the assistant's. In a conversation the
last turn of the assistant is the answer. All goes through the chat template.
"""

from typing import Any

from ftbuild_rules.formats._messages import Message, check_turns, conversation, tools
from ftbuild_rules.formats._words import BadRow, kind
from ftbuild_rules.formats.preference import check_prompt, read_answer, read_prompt

FORM = "unpaired"
PROMPT = "prompt"
COLUMNS = ("prompt", "completion", "messages", "label", "system", "tools")
NEEDED = ("label",)
ALIASES = {"label": ("kto_tag",), "messages": ("conversations",)}
_TRUE = {"true": True, "1": True, "false": False, "0": False}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return prompt, completion and label.

    Raises:
        BadRow: the conversation is broken, or the label is neither true nor false.
    """
    prompt, completion = _sides(row)
    if row.get("system"):
        prompt.insert(0, {"role": "system", "content": row["system"]})
    check_prompt(prompt)
    check_turns(completion, "completion")
    return {
        "prompt": prompt,
        "completion": completion,
        "label": _label(row["label"]),
        "tools": tools(row.get("tools")),
    }


def _sides(row: dict[str, Any]) -> tuple[list[Message], list[Message]]:
    if "messages" in row:
        messages = conversation(row["messages"], "messages")
        check_turns(messages, "messages")
        return messages[:-1], messages[-1:]
    for column in ("prompt", "completion"):
        if column not in row:
            raise BadRow(
                "E0810",
                f"row has no `{column}`; it needs `prompt` and `completion`, or `messages`",
                f'name the column that holds it: columns = {{ {column} = "NAME" }}',
            )
    return read_prompt(row["prompt"], "prompt"), read_answer(row["completion"], "completion")


def _label(value: Any) -> bool:
    if isinstance(value, str):
        value = _TRUE.get(value.strip().lower(), value)
    if value in (0, 1) and not isinstance(value, float | str):
        return bool(value)
    raise BadRow(
        "E0811", f"`label` should be true or false; found {kind(value)}", "write true or false"
    )
