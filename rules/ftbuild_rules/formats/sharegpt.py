"""Format `sharegpt`: conversations as ShareGPT, Vicuna and LLaMA-Factory write them.

{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}

`from` is human, gpt, system, function_call (its value is a JSON object with `name` and
`arguments`), observation (what the tool answered), or an OpenAI role. `system` is a column of
its own as well; `tools` a list of functions or the same as a string.
"""

from typing import Any

from ftbuild_rules.formats._messages import check_turns, conversation, message, tools

FORM = "messages"
COLUMNS = ("conversations", "system", "tools")
NEEDED = ("conversations",)


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row's messages and tools in their normal form.

    Raises:
        BadRow: it cannot be trained on as it is.
    """
    messages = conversation(row["conversations"], "conversations")
    check_turns(messages, "conversations")
    if row.get("system"):
        system = message({"role": "system", "content": row["system"]}, "`system`")
        messages = [system, *messages]
        check_turns(messages, "system, conversations")
    return {"messages": messages, "tools": tools(row.get("tools"))}
