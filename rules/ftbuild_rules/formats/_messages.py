"""Messages in their normal form, and what makes a conversation broken.

A message has `role` (system, user, assistant, tool) and `content`, and where they are given
`name`, `tool_calls` (JSON: a list in OpenAI's form whose `arguments` are objects, which is what
chat templates expect, in the order in which they were written), `tool_call_id`,
`reasoning_content` (what the assistant thought), `train`, which overrides `train_on` for this
message, and `train_detail`, which overrides that for ranges of its characters (JSON: a list of
begin, end, flag).

Two messages of one role in a row are refused, though some templates would take them: nearly
always a turn was lost, and each answer needs the question it answers. A conversation may open
with the assistant (a greeting) and must end with it, or there is nothing to learn at its end.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftbuild_rules.data._json import RefusedError, decoder
from ftbuild_rules.formats._detail import part_flags, train_detail
from ftbuild_rules.formats._words import BadRow, kind, names, text

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for the same
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TRAIN = ("train", "weight", "train_detail")
_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", *_REASONING, *_TRAIN)
_SHAREGPT_KEYS = ("from", "value", *_REASONING, *_TRAIN)

Message = dict[str, Any]


def conversation(value: Any, column: str) -> list[Message]:
    """Return the messages of a column in their normal form, each written in either style.

    Raises:
        BadRow: the column is no list of messages.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, f"`{column}`")
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise BadRow(
            "E0811",
            f"`{column}` should be a list of messages; found {found}",
            f'write "{column}": [{{"role": "user", "content": "…"}}, …]',
        )
    return [
        message(item, f"message {number} of `{column}`") for number, item in enumerate(value, 1)
    ]


def message(value: Any, where: str) -> Message:
    """Return one message, written in OpenAI's or in ShareGPT's style, in its normal form.

    Raises:
        BadRow: a key is missing, unknown, or of the wrong type; the role is unknown.
    """
    if not isinstance(value, dict):
        raise BadRow(
            "E0811",
            f"{where} should be an object; found {kind(value)}",
            'write {"role": "user", "content": "…"}',
        )
    given = {key: item for key, item in value.items() if item is not None}
    if "from" in given and "role" not in given:
        return _sharegpt_message(given, where)
    _check_keys(given, ("role",), _KEYS, where)
    out: Message = {"role": _role(given["role"], ROLES, where)}
    for key in ("name", "tool_call_id"):
        if key in given:
            out[key] = text(given[key], f"`{key}` of {where}")
    if "tool_calls" in given:
        out["tool_calls"] = tool_calls(given["tool_calls"], where)
    if "content" in given:
        out["content"] = _content(given["content"], where)
        out.update(part_flags(given["content"], where))
    return _finished(out, given, where)


def _finished(out: Message, given: dict[str, Any], where: str) -> Message:
    """Return the message with what both styles write alike."""
    thoughts = [key for key in _REASONING if key in given]
    if len(thoughts) > 1:
        raise BadRow("E0811", f"{where} has both {names(thoughts)}", "keep one of them")
    if thoughts:
        out["reasoning_content"] = text(given[thoughts[0]], f"`{thoughts[0]}` of {where}")
    out.update(_train(given, where))
    if "train_detail" in given:
        if "train_detail" in out:
            raise BadRow("E0811", f"{where} has flags twice", "keep `train_detail`")
        out["train_detail"] = train_detail(given["train_detail"], out.get("content", ""), where)
    _check_content(out, where)
    return out


def _sharegpt_message(given: dict[str, Any], where: str) -> Message:
    _check_keys(given, ("from", "value"), _SHAREGPT_KEYS, where)
    out: Message = {"role": _role(given["from"], SHAREGPT_ROLES, where)}
    content = text(given["value"], f"`value` of {where}")
    if given["from"] == "function_call":
        calls = parse_json(content, f"`value` of {where}")
        out["tool_calls"] = tool_calls(calls if isinstance(calls, list) else [calls], where)
    else:
        out["content"] = content
    return _finished(out, given, where)


def _check_keys(
    given: dict[str, Any], needed: Sequence[str], known: Sequence[str], where: str
) -> None:
    for key in needed:
        if key not in given:
            raise BadRow(
                "E0811", f"{where} has no `{key}`; it has {names(given)}", f'add "{key}": "…"'
            )
    if unknown := sorted(set(given) - set(known)):
        raise BadRow(
            "E0811",
            f"{where} has {names(unknown)}, which would be lost: a message has {names(known)}",
            "remove it from the row, or set it to null",
        )


def _role(value: Any, roles: Mapping[str, str], where: str) -> str:
    role = roles.get(value) if isinstance(value, str) else None
    if role is None:
        shown = f"`{value}`" if isinstance(value, str) else kind(value)
        raise BadRow("E0812", f"{where} is from {shown}", f"use one of {names(roles)}")
    return role


def _content(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return text(value, f"`content` of {where}")
    parts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            found = part.get("type") if isinstance(part, dict) else kind(part)
            raise BadRow(
                "E0811",
                f"`content` of {where} has a part that is not text: {found}",
                'only {"type": "text", "text": "…"} is read',
            )
        parts.append(text(part.get("text"), f"a part of {where}"))
    return "".join(parts)


def _check_content(out: Message, where: str) -> None:
    may_be_empty = out["role"] == "tool" or "tool_calls" in out
    if not may_be_empty and not out.get("content", "").strip():
        raise BadRow("E0813", f"{where} is empty", "write its text, or remove the row")
    if "tool_calls" in out and out["role"] != "assistant":
        raise BadRow(
            "E0812", f"{where} has tool calls, but is from `{out['role']}`", 'use "assistant"'
        )


def _train(given: dict[str, Any], where: str) -> dict[str, bool]:
    """Return the message's own flag: `train`, or OpenAI's `weight`, which is 0 or 1."""
    if "train" in given and "weight" in given:
        raise BadRow("E0811", f"{where} has both `train` and `weight`", "keep one of them")
    if "train" in given:
        if not isinstance(given["train"], bool):
            raise BadRow(
                "E0811", f"`train` of {where} should be true or false", "write true or false"
            )
        return {"train": given["train"]}
    if "weight" in given:
        if given["weight"] not in (0, 1) or isinstance(given["weight"], bool):
            raise BadRow("E0811", f"`weight` of {where} should be 0 or 1", "write 0 or 1")
        return {"train": given["weight"] == 1}
    return {}


def check_turns(messages: Sequence[Message], column: str) -> None:
    """Check the order of a conversation's messages.

    Raises:
        BadRow: a turn is lost, a tool answers nobody, or the end teaches nothing.
    """
    check_order(messages, column)
    if messages[-1]["role"] != "assistant":
        raise BadRow(
            "E0815",
            f"`{column}` ends with a message from `{messages[-1]['role']}`: no answer to learn",
            "add the assistant's answer, or remove the last message",
        )


def check_order(messages: Sequence[Message], column: str) -> None:
    """Check which message follows which.

    Raises:
        BadRow: two of one role in a row, or a tool that nobody called.
    """
    before: Message = {"role": None}
    for number, item in enumerate(messages, 1):
        role = item["role"]
        is_after_call = before["role"] == "tool" or "tool_calls" in before
        if role == "tool" and not is_after_call:
            raise BadRow(
                "E0814",
                f"message {number} of `{column}` is from `tool`, but no tool was called",
                'put the assistant\'s message with its "tool_calls" before it',
            )
        if "tool_calls" in before and role != "tool":
            raise BadRow(
                "E0814",
                f"message {number} of `{column}` should be the tool's answer; it is from `{role}`",
                'add a message with "role": "tool"',
            )
        if role == before["role"] and role != "tool":
            raise BadRow(
                "E0814",
                f"messages {number - 1} and {number} of `{column}` are both from `{role}`",
                "join them into one, or add the turn that is missing between them",
            )
        before = item


def tool_calls(value: Any, where: str) -> str:
    """Return tool calls as JSON in OpenAI's form, their arguments as objects.

    Raises:
        BadRow: a call has no name, or its arguments are no object.
    """
    if isinstance(value, str):
        value = parse_json(value, f"`tool_calls` of {where}")
    if not isinstance(value, list) or not value:
        raise BadRow("E0811", f"`tool_calls` of {where} should be a list", "write a list of calls")
    calls = []
    for call in value:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(
                "E0811",
                f"a tool call of {where} has no function name",
                'write {"type": "function", "function": {"name": "…", "arguments": {}}}',
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = parse_json(arguments, f"`arguments` of {where}")
        if not isinstance(arguments, dict):
            raise BadRow(
                "E0811",
                f"`arguments` of {where} should be an object; found {kind(arguments)}",
                'write "arguments": {"name": value}',
            )
        has_id = function is not call and isinstance(call.get("id"), str)
        known = {"id": call["id"]} if has_id else {}
        said = {"name": function["name"], "arguments": arguments}
        calls.append({**known, "type": "function", "function": said})
    return given_json(calls)


def tools(value: Any) -> str | None:
    """Return the tools that a conversation may use as JSON in OpenAI's form.

    Raises:
        BadRow: it is no list of functions.
    """
    if isinstance(value, str):
        value = parse_json(value, "`tools`") if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(
            "E0811", f"`tools` should be a list of functions; found {kind(value)}", "write a list"
        )
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in value
    ]
    return given_json(wrapped)


def given_json(value: Any) -> str:
    """Return a value as JSON whose keys stand as they were written.

    A chat template prints tools and arguments in that order, and so does whoever asks the trained
    model.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def messages_in(value: str, role: str = "role") -> list[Any] | None:
    """Return the messages that a text holds as JSON; None where it is a text like any other.

    `role` is the key that tells who says a message.
    """
    if not value.lstrip().startswith("[") or not value.rstrip().endswith("]"):
        return None
    try:
        found = decoder.decode(value.strip())
    except (RefusedError, ValueError, RecursionError):
        return None
    is_messages = found and all(
        isinstance(item, dict) and (role in item or "from" in item) for item in found
    )
    return found if is_messages else None


def parse_json(value: str, where: str) -> Any:
    """Return the JSON value that a column holds as a string.

    Raises:
        BadRow: the string is no JSON.
    """
    try:
        return decoder.decode(value)
    except (RefusedError, ValueError, RecursionError) as error:
        raise BadRow("E0811", f"{where} is no JSON: {error}", "write a JSON value") from None
