"""Format `prompt_completion`: what is given, and what is to be said; only the latter is trained on.

{"prompt": "The sky is", "completion": " blue."}
{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", …}]}

Strings are plain text, and become two segments, of which the second is trained on. Messages are
a conversation, whose prompt is masked.
"""

from typing import Any

from ftbuild_rules.formats._messages import check_turns, conversation, messages_in, tools
from ftbuild_rules.formats._words import BadRow, text

FORM = "segments"
PROMPT = "prompt"
COLUMNS = ("prompt", "completion", "tools")
NEEDED = ("prompt", "completion")
ALIASES = {"completion": ("response", "answer", "output")}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as two segments, or as a conversation.

    Raises:
        BadRow: a side is empty, or one is text and the other messages.
    """
    if isinstance(row["prompt"], str) and messages_in(row["prompt"]) is None:
        prompt, completion = (
            text(row["prompt"], "`prompt`"),
            text(row["completion"], "`completion`"),
        )
        if not completion.strip():
            raise BadRow("E0813", "`completion` is empty", "write it, or remove the row")
        return {"segments": [_segment(prompt, False), _segment(completion, True)]}
    prompt_messages = [
        {"train": False, **message} for message in conversation(row["prompt"], "prompt")
    ]
    messages = [*prompt_messages, *conversation(row["completion"], "completion")]
    check_turns(messages, "completion")
    return {"messages": messages, "tools": tools(row.get("tools"))}


def _segment(value: str, train: bool) -> dict[str, Any]:
    return {"text": value, "train": train}
