r"""Format `preference`: two answers to one prompt, of which the first is the better one.

{"prompt": "How are you?", "chosen": "Very well, thank you!", "rejected": "Why do you ask?"}

The prompt is a string (the user's message) or a list of messages; it may stand in `messages`
or `conversations` instead, or be what `chosen` and `rejected`, given as whole conversations,
have in common. An answer is a string (the assistant's message), one message, or a list.
Messages are written in OpenAI's or in ShareGPT's style. All goes through the chat template.

Without a prompt, texts may be transcripts as in Anthropic's HH-RLHF, whose turns begin with
`Human:` and `Assistant:` after an empty line. What two other texts begin with alike is no prompt:
nobody can say where it ends, for answers may begin alike too.

{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}
"""

import re
from typing import Any

from ftbuild_rules.formats._messages import (
    Message,
    check_order,
    check_turns,
    conversation,
    message,
    messages_in,
    tools,
)
from ftbuild_rules.formats._words import BadRow, names

FORM = "preference"
PROMPT = "prompt"
COLUMNS = ("prompt", "messages", "conversations", "system", "chosen", "rejected", "tools")
NEEDED = ("chosen", "rejected")
_PROMPTS = ("prompt", "messages", "conversations")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):[ ]?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return prompt, chosen and rejected as lists of messages.

    Raises:
        BadRow: a turn is broken, or the two answers do not share their prompt.
    """
    given = [column for column in _PROMPTS if row.get(column) is not None]
    if len(given) > 1:
        raise BadRow("E0817", f"the row has more than one prompt: {names(given)}", "keep one")
    read = read_answer if given else _read_whole
    chosen, rejected = read(row["chosen"], "chosen"), read(row["rejected"], "rejected")
    if given:
        prompt = read_prompt(row[given[0]], given[0])
        chosen, rejected = _without(prompt, chosen), _without(prompt, rejected)
    else:
        prompt, chosen, rejected = _split(chosen, rejected)
    if row.get("system"):
        prompt.insert(0, message({"role": "system", "content": row["system"]}, "`system`"))
    _check(prompt, chosen, rejected)
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "tools": tools(row.get("tools")),
    }


def read_prompt(value: Any, column: str) -> list[Message]:
    """Return a prompt as messages; a string is what the user says.

    Raises:
        BadRow: it is neither text nor messages.
    """
    if isinstance(value, str) and messages_in(value) is None:
        return [message({"role": "user", "content": value}, f"`{column}`")]
    return conversation(value, column)


def read_answer(value: Any, column: str) -> list[Message]:
    """Return an answer as messages; a string is what the assistant says.

    Raises:
        BadRow: it is neither text nor messages.
    """
    if isinstance(value, str) and messages_in(value) is None:
        return [message({"role": "assistant", "content": value}, f"`{column}`")]
    if isinstance(value, dict):
        return [message(value, f"`{column}`")]
    return conversation(value, column)


def _read_whole(value: Any, column: str) -> list[Message]:
    """Return an answer with its prompt as messages; a text is a transcript.

    Raises:
        BadRow: it is neither messages nor a transcript.
    """
    if not isinstance(value, str) or messages_in(value) is not None:
        return read_answer(value, column)
    before, *parts = _SPEAKER.split(value)
    if before.strip() or not parts:
        raise BadRow(
            "E0817",
            f"there is no `prompt`, and `{column}` is no transcript",
            'add "prompt": "…" and leave that out of both answers, '
            'or write both as "\\n\\nHuman: …\\n\\nAssistant: …"',
        )
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [
        message({"role": _SPEAKERS[speaker], "content": text}, f"turn {number} of `{column}`")
        for number, (speaker, text) in enumerate(pairs, 1)
    ]


def _without(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """Return `answer` without the prompt, which some datasets repeat at its head."""
    if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
        return answer[len(prompt) :]
    return answer


def _split(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return what both begin with, and what follows in each."""
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    # Answers that are wholly equal keep their last turn, so that `tokens` can name the row.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if shared == 0:
        raise BadRow(
            "E0817",
            "`chosen` and `rejected` have no prompt in common",
            'add "prompt": "…", or begin both with the same messages',
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def check_prompt(prompt: list[Message]) -> None:
    """Check that a prompt ends where it is answered.

    Raises:
        BadRow: a turn is broken, or the last one is not the user's.
    """
    if prompt[-1]["role"] not in ("user", "tool"):
        raise BadRow(
            "E0817",
            f"the prompt ends with a message from `{prompt[-1]['role']}`",
            "end it with the user's message that is answered",
        )
    check_order(prompt, "prompt")


def _check(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    check_prompt(prompt)
    for column, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[0]["role"] != "assistant":
            raise BadRow(
                "E0817",
                f"`{column}` begins with a message from `{answer[0]['role']}`",
                "begin it with the assistant's answer, or with the whole prompt",
            )
        check_turns(answer, column)
