"""Format `openai`: OpenAI's chat format, which Transformers and TRL use too.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}

A message may hold `name`, `tool_calls`, `tool_call_id`, and `weight` (0 or 1) or `train`;
`content` may be a list of text parts. `tools` is a list of functions or the same as a string.
"""

from typing import Any

from ftbuild_rules.formats._messages import check_turns, conversation, tools

FORM = "messages"
COLUMNS = ("messages", "tools")
NEEDED = ("messages",)


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row's messages and tools in their normal form.

    Raises:
        BadRow: it cannot be trained on as it is.
    """
    messages = conversation(row["messages"], "messages")
    check_turns(messages, "messages")
    return {"messages": messages, "tools": tools(row.get("tools"))}
