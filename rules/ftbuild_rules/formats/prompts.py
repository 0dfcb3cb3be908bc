"""Format `prompts`: prompts to which the model itself will answer, as GRPO does.

{"prompt": "How much is 2 + 2?", "answer": "4"}

A string is the user's message. All other columns (a reference answer, tests) are kept as they
are, in `metadata`, for the functions that reward an answer.
"""

from typing import Any

from ftbuild_rules.formats._messages import message, tools
from ftbuild_rules.formats.preference import check_prompt, read_prompt

FORM = "prompts"
PROMPT = "prompt"
COLUMNS = ("prompt", "system", "tools")
NEEDED = ("prompt",)
ALIASES = {"prompt": ("question", "messages", "conversations")}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt as messages.

    Raises:
        BadRow: it does not end where the model is to answer.
    """
    prompt = read_prompt(row["prompt"], "prompt")
    if row.get("system"):
        prompt.insert(0, message({"role": "system", "content": row["system"]}, "`system`"))
    check_prompt(prompt)
    return {"prompt": prompt, "tools": tools(row.get("tools"))}
