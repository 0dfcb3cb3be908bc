"""Masks that the rows themselves ask for: from a line of JSON through `dataset` to the labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import CHATML, LLAMA2, MARKED, SPECIAL, make_dataset, make_model, read_tokens
from ftbuild.errors import RuleError
from ftbuild.testing import run_rule
from ftbuild_rules.templates._named import templates
from ftbuild_rules.tokens.tokens import tokens

QWEN3 = templates()["qwen3"]
END = "<|im_end|>"


def labels_of(
    directory: Path, row: Any, format_name: str, template: str, params: dict[str, Any], **more: Any
) -> list[int]:
    inputs = {
        "dataset": make_dataset(directory / "data", [row], format_name),
        "model": make_model(directory / "model", template, **more),
    }
    (found,) = read_tokens(run_rule(tokens, inputs, params, directory))
    return found["labels"]


def text_of(labels: list[int]) -> str:
    """Return the text of labels of the byte tokenizer, masked ones as one dot for each run."""
    out = b""
    for i in labels:
        if i == -100:
            out += b"" if out.endswith(b"\0") else b"\0"
        else:
            out += bytes([i]) if i < 256 else SPECIAL[i - 256].encode()
    return out.decode().replace("\0", "·")


def talk(*messages: tuple[str, Any, dict[str, Any]], **columns: Any) -> dict[str, Any]:
    found = [{"role": role, "content": text, **more} for role, text, more in messages]
    return {"messages": found, **columns}


TOOLS = [{"name": "weather", "description": "d", "parameters": {"type": "object"}}]
ARGUMENTS = '{"city": "Oslo"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
OPENAI_CALLS = talk(
    ("user", "How warm?", {}),
    (
        "assistant",
        "I look.",
        {
            "reasoning_content": "Oslo?",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ARGUMENTS},
                }
            ],
        },
    ),
    ("tool", "3", {"tool_call_id": "c1"}),
    ("assistant", "3 degrees.", {}),
    tools=TOOLS,
)
SHAREGPT_CALLS = {
    "conversations": [
        {"from": "human", "value": "How warm?"},
        {
            "from": "function_call",
            "value": json.dumps({"name": "weather", "arguments": {"city": "Oslo"}}),
        },
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3 degrees.", "thinking": "Cold."},
    ],
    "tools": json.dumps(TOOLS),
}
NO_THOUGHT = "<think>\n\n</think>\n\n"
LAST = f"{NO_THOUGHT}3 degrees.{END}"
COLD = f"<think>\nCold.\n</think>\n\n3 degrees.{END}"

PARTS = {
    "reasoning and calls": (
        OPENAI_CALLS,
        "openai",
        QWEN3,
        {},
        f"·<think>\nOslo?\n</think>\n\nI look.\n{CALL}{END}·{LAST}·",
    ),
    "calls without reasoning": (
        OPENAI_CALLS,
        "openai",
        QWEN3,
        {"train_on_reasoning": False},
        f"·I look.\n{CALL}{END}·{LAST}·",
    ),
    "reasoning without calls": (
        OPENAI_CALLS,
        "openai",
        QWEN3,
        {"train_on_tool_calls": False},
        f"·<think>\nOslo?\n</think>\n\nI look.·{END}·{LAST}·",
    ),
    "what the tool says": (
        OPENAI_CALLS,
        "openai",
        QWEN3,
        {"train_on": ["tool"], "allow": ["end_of_turn"]},
        "·3·",
    ),
    "sharegpt calls": (SHAREGPT_CALLS, "sharegpt", QWEN3, {}, f"·{CALL}{END}·{COLD}·"),
    "sharegpt without calls": (
        SHAREGPT_CALLS,
        "sharegpt",
        QWEN3,
        {"train_on_tool_calls": False, "train_on_reasoning": False},
        f"·{END}·3 degrees.{END}·",
    ),
}

DETAIL = [
    {"begin_offset": 0, "end_offset": 8, "train": False},
    {"begin_offset": 9, "end_offset": 18, "train": True},
    {"begin_offset": 19, "end_offset": 23, "train": False},
]
TEXT = "Hello, nice to meet you!"
PIECES = [
    {"type": "text", "text": "The answer "},
    {"type": "text", "text": "é is ", "train": False},
    {"type": "text", "text": "4", "train": True},
]
FLAGS = {
    # Axolotl's published form: `end_offset` is the last character that is meant.
    "train_detail": (talk(("user", "Hi", {}), ("assistant", TEXT, {"train_detail": DETAIL})), {},
                     f"·ce to meet·{END}·"),
    "train_detail of a user": (
        talk(("user", TEXT, {"train_detail": DETAIL}), ("assistant", "Yes", {})), {},
        f"·ce to meet·Yes{END}·"),
    "train_detail as a string": (
        talk(("user", "Hi", {}), ("assistant", TEXT, {"train_detail": json.dumps(DETAIL)})), {},
        f"·ce to meet·{END}·"),
    "flags of parts": (talk(("user", "Hi", {}), ("assistant", PIECES, {})), {},
                       f"·The answer ·4{END}·"),
    "flags of parts of a masked message": (
        talk(("user", "Hi", {}), ("assistant", PIECES, {"train": False})), {}, "·4·"),
    "weight 0": (
        talk(("user", "a", {}), ("assistant", "b", {"weight": 0}), ("user", "c", {}),
             ("assistant", "d", {"weight": 1})), {}, f"·d{END}·"),
    "train of a user": (
        talk(("user", "a", {"train": True}), ("assistant", "b", {"train": False}),
             ("user", "c", {}), ("assistant", "d", {})), {}, f"·a{END}·d{END}·"),
    "last turn of those that want it": (
        talk(("user", "a", {}), ("assistant", "b", {}), ("user", "c", {}),
             ("assistant", "d", {"train": False})), {"last_turn_only": True}, f"·b{END}·"),
}  # fmt: skip

FOUR = talk(("user", "a", {}), ("assistant", "b", {}), ("user", "c", {}), ("assistant", "d", {}))
EOT = {
    "turn": ({}, f"·b{END}·d{END}·"),
    "all": ({"train_on_eot": "all"}, f"·{END}·b{END}·{END}·d{END}·"),
    "last": ({"train_on_eot": "last"}, f"·b·d{END}·"),
    "none": ({"train_on_eot": "none"}, "·b·d·"),
    "all of the users": (
        {"train_on": ["user"], "train_on_eot": "all"},
        f"·a{END}·{END}·c{END}·{END}·",
    ),
    "last of the last turn": ({"last_turn_only": True, "train_on_eot": "last"}, f"·d{END}·"),
    "everything": (
        {"train_on_inputs": True},
        "".join(
            f"<|im_start|>{role}\n{text}{END}\n"
            for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)
        ),
    ),
    "all roles": (
        {"train_on": ["user", "assistant"]},
        f"·a{END}·b{END}·c{END}·d{END}·",
    ),
}


@pytest.mark.parametrize(
    ("row", "format_name", "template", "params", "expected"), PARTS.values(), ids=PARTS
)
def test_thoughts_and_calls(
    row: Any, format_name: str, template: str, params: Any, expected: str, tmp_path: Path
) -> None:
    assert text_of(labels_of(tmp_path, row, format_name, template, params)) == expected


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["skeleton", "marks"])
@pytest.mark.parametrize(("row", "params", "expected"), FLAGS.values(), ids=FLAGS)
def test_flags_of_messages_and_of_their_parts(
    row: Any, params: Any, expected: str, template: str, tmp_path: Path
) -> None:
    assert text_of(labels_of(tmp_path, row, "openai", template, params)) == expected


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["skeleton", "marks"])
@pytest.mark.parametrize(("params", "expected"), EOT.values(), ids=EOT)
def test_end_of_turn(params: Any, expected: str, template: str, tmp_path: Path) -> None:
    assert text_of(labels_of(tmp_path, FOUR, "openai", template, params)) == expected


def test_token_that_is_named_ends_a_turn(tmp_path: Path) -> None:
    hashes = CHATML.replace("<|im_end|>", "##")
    merges = [("#", "#")]
    with pytest.raises(RuleError) as caught:
        labels_of(tmp_path / "a", FOUR, "openai", hashes, {}, merges=merges)
    assert caught.value.problems[0].code == "E0825"
    labels = labels_of(
        tmp_path / "b", FOUR, "openai", hashes, {"eot_tokens": ["##"]}, merges=merges
    )
    assert [label for label in labels if label != -100] == [*b"b", 260, *b"d", 260]


def test_flags_survive_where_the_template_trims(tmp_path: Path) -> None:
    ranges = [{"begin_offset": 0, "end_offset": 3, "train": False}]
    row = talk(("user", "Hi", {}), ("assistant", "  Hello  ", {"train_detail": ranges}))
    assert text_of(labels_of(tmp_path, row, "openai", LLAMA2, {})) == "· ·llo </s>"


def test_whole_equals_what_transformers_renders(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    labels = labels_of(tmp_path, OPENAI_CALLS, "openai", QWEN3, {"train_on_inputs": True})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    messages = json.loads(json.dumps(OPENAI_CALLS["messages"]))
    call = messages[1]["tool_calls"][0]["function"]
    call["arguments"] = json.loads(call["arguments"])
    tools = [{"type": "function", "function": tool} for tool in TOOLS]
    theirs = tokenizer.apply_chat_template(messages, tools=tools)["input_ids"]
    assert labels == theirs
