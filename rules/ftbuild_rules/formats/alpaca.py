"""Format `alpaca`: one instruction, an optional input, one output.

{"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}

The columns go by other names too: `question` and `answer` or `response`, `INSTRUCTION` and
`RESPONSE`. It becomes a conversation: the user's message is the instruction, and on a line of its
own the input, where it is not empty; the assistant's is the output. `system` is optional, and so
is `history`, earlier turns as pairs of instruction and output.
"""

from typing import Any

from ftbuild_rules.formats._messages import Message, check_turns, message
from ftbuild_rules.formats._words import BadRow, text

FORM = "messages"
COLUMNS = ("instruction", "input", "output", "system", "history")
NEEDED = ("instruction", "output")
PROMPT = "instruction"
ALIASES = {
    "instruction": ("question", "query", "INSTRUCTION"),
    "input": ("context", "INPUT"),
    "output": ("response", "answer", "completion", "RESPONSE"),
    "system": ("system_prompt",),
}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as a conversation.

    Raises:
        BadRow: a column is empty or of the wrong type.
    """
    messages = []
    if row.get("system"):
        messages.append(message({"role": "system", "content": row["system"]}, "`system`"))
    messages += _history(row.get("history"))
    question = text(row["instruction"], "`instruction`")
    if row.get("input"):
        question = f"{question}\n{text(row['input'], '`input`')}"
    messages.append(message({"role": "user", "content": question}, "`instruction`"))
    messages.append(message({"role": "assistant", "content": row["output"]}, "`output`"))
    check_turns(messages, "instruction")
    return {"messages": messages, "tools": None}


def _history(value: Any) -> list[Message]:
    if value is None:
        return []
    is_pairs = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in value
    )
    if not is_pairs:
        raise BadRow(
            "E0811",
            "`history` should be a list of pairs of texts",
            'write "history": [["question", "answer"], …]',
        )
    roles = ("user", "assistant")
    return [
        message({"role": role, "content": content}, f"turn {number} of `history`")
        for number, pair in enumerate(value, 1)
        for role, content in zip(roles, pair, strict=True)
    ]
