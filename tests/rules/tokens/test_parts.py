"""Masks within a message: thoughts, tool calls and ranges of characters."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import CHATML, IM_END, LLAMA2, MARKED, SPECIAL, make_model, read_tokens
from ftbuild.api import RuleError
from ftbuild.kinds import Artifact, Dataset
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.data._arrow import dataset_schema, write_batch, write_index
from ftbuild_rules.templates._named import templates
from ftbuild_rules.tokens.tokens import tokens

CALLS = '[{"function":{"arguments":{"city":"Oslo"},"name":"weather"},"type":"function"}]'
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
QWEN3 = templates()["qwen3"]


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def detail(*ranges: tuple[int, int, bool]) -> str:
    return json.dumps(ranges)


def dataset_of(directory: Path, messages: list[dict[str, Any]]) -> Artifact:
    """Return a dataset of one row, whose messages have the columns for their parts."""
    import pyarrow as pa

    message = dataset_schema("messages").field(0).type.value_type
    fields = {field.name: field.type for field in message}
    fields |= {"reasoning_content": pa.string(), "train_detail": pa.string()}
    columns = {"messages": pa.list_(pa.struct(list(fields.items())))}
    schema = pa.schema({**columns, "tools": pa.string(), "metadata": pa.string()})
    row = {"messages": messages, "tools": None, "metadata": "{}"}
    (directory / "data").mkdir(parents=True)
    batch = pa.RecordBatch.from_pylist([row], schema=schema)
    write_batch(directory / "data" / "train-00000.arrow", batch)
    shards = [["data/train-00000.arrow", 1]]
    write_index(directory / "dataset.json", {"form": "messages", "rows": 1, "shards": shards})
    return artifact(Dataset, directory)


def row_of(
    directory: Path, messages: list[dict[str, Any]], template: str, **params: Any
) -> dict[str, list[int]]:
    inputs = {
        "dataset": dataset_of(directory / "data", messages),
        "model": make_model(directory / "model", template),
    }
    (row,) = read_tokens(run_rule(tokens, inputs, params, directory))
    return row


def text_of(ids: list[int]) -> str:
    """Return the text of ids of the byte tokenizer, masked ones as one dot for each run."""
    out = b""
    for i in ids:
        if i == -100:
            out += b"" if out.endswith(b"\0") else b"\0"
        else:
            out += bytes([i]) if i < 256 else SPECIAL[i - 256].encode()
    return out.decode().replace("\0", "·")


def trained(
    directory: Path, messages: list[dict[str, Any]], template: str = CHATML, **params: Any
) -> str:
    return text_of(row_of(directory, messages, template, **params)["labels"])


THOUGHT = [user("2+2?"), assistant("4", reasoning_content="Two and two.")]
INLINE = [user("2+2?"), assistant("<think>\nTwo and two.\n</think>\n\n4")]


@pytest.mark.parametrize("messages", [THOUGHT, INLINE], ids=["field", "inline"])
def test_thought_is_said_as_the_template_writes_it(
    messages: list[dict[str, Any]], tmp_path: Path
) -> None:
    said = "<think>\nTwo and two.\n</think>\n\n4<|im_end|>"
    assert trained(tmp_path / "a", messages, QWEN3) == f"·{said}·"
    assert trained(tmp_path / "b", messages, QWEN3, train_on_reasoning=False) == "·4<|im_end|>·"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_inline_thought_in_a_template_that_knows_none(template: str, tmp_path: Path) -> None:
    said = "<think>\nTwo and two.\n</think>\n\n4<|im_end|>"
    assert trained(tmp_path / "a", INLINE, template) == f"·{said}·"
    assert trained(tmp_path / "b", INLINE, template, train_on_reasoning=False) == "·4<|im_end|>·"


LATER = [user("3+3?"), assistant("6", reasoning_content="Easy.")]
REFUSED = "it leaves out what is thought in message 2"


@pytest.mark.parametrize("first", [THOUGHT, INLINE], ids=["field", "inline"])
def test_thought_that_the_template_drops_is_refused(
    first: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(RuleError) as caught:
        trained(tmp_path, [*first, *LATER], QWEN3)
    problem = caught.value.problems[0]
    assert (problem.code, problem.why) == ("E0822", f"row 0: {REFUSED}")


def test_thought_that_the_template_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleError) as caught:
        trained(tmp_path, THOUGHT, CHATML)
    assert caught.value.problems[0].why == f"row 0: {REFUSED}"


@pytest.mark.parametrize("first", [THOUGHT, INLINE], ids=["field", "inline"])
def test_dropped_thought_of_a_turn_that_is_not_trained(
    first: list[dict[str, Any]], tmp_path: Path
) -> None:
    row = row_of(tmp_path, [*first, *LATER], QWEN3, last_turn_only=True)
    assert text_of(row["labels"]) == "·<think>\nEasy.\n</think>\n\n6<|im_end|>·"
    assert text_of(row["input_ids"]) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nEasy.\n</think>\n\n6<|im_end|>\n"
    )


TOOL_TALK = [
    user("How warm?"),
    assistant("I look.", reasoning_content="Oslo?", tool_calls=CALLS),
    {"role": "tool", "content": "3"},
    assistant("3 degrees."),
]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, f"<think>\nOslo?\n</think>\n\nI look.\n{CALL}<|im_end|>"),
        ({"train_on_reasoning": False}, f"I look.\n{CALL}<|im_end|>"),
        ({"train_on_tool_calls": False}, "<think>\nOslo?\n</think>\n\nI look.·<|im_end|>"),
        ({"train_on_tool_calls": False, "train_on_reasoning": False}, "I look.·<|im_end|>"),
    ],
)
def test_parts_of_a_tool_call(params: dict[str, bool], said: str, tmp_path: Path) -> None:
    last = "<think>\n\n</think>\n\n3 degrees.<|im_end|>"
    assert trained(tmp_path, TOOL_TALK, QWEN3, **params) == f"·{said}·{last}·"


def test_tool_result_can_be_trained_on(tmp_path: Path) -> None:
    found = trained(tmp_path, TOOL_TALK, QWEN3, train_on=["tool"], allow=["end_of_turn"])
    assert found == "·3·"


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(0, 5, False)], "· world<|im_end|>·"),
        ([(5, 11, False)], "·Hello·<|im_end|>·"),
        ([(0, 11, False)], "·<|im_end|>·"),
        ([(2, 4, False), (6, 7, False)], "·He·o ·orld<|im_end|>·"),
        ([(0, 11, False), (3, 5, True), (5, 7, True)], "·lo w·<|im_end|>·"),
        ([(0, 99, True)], "·Hello world<|im_end|>·"),
    ],
)
def test_ranges_of_characters(
    ranges: list[tuple[int, int, bool]], expected: str, template: str, tmp_path: Path
) -> None:
    messages = [user("Hi"), assistant("Hello world", train_detail=detail(*ranges))]
    assert trained(tmp_path, messages, template) == expected


def test_range_in_a_message_that_is_not_trained(tmp_path: Path) -> None:
    messages = [user("Hi you", train_detail=detail((3, 6, True))), assistant("Yes", train=False)]
    assert trained(tmp_path, messages) == "·you·"


def test_ranges_count_characters_and_not_bytes(tmp_path: Path) -> None:
    messages = [user("Hi"), assistant("é🌍世ok", train_detail=detail((0, 2, False)))]
    assert trained(tmp_path, messages) == "·世ok<|im_end|>·"


def test_ranges_where_the_template_trims(tmp_path: Path) -> None:
    messages = [user("Hi"), assistant("  Hello  ", train_detail=detail((0, 4, False)))]
    assert trained(tmp_path, messages, LLAMA2) == "· ·llo </s>"


def test_token_over_the_edge_of_a_range_is_found(tmp_path: Path) -> None:
    messages = [user("Hi"), assistant("ab", train_detail=detail((0, 1, False)))]
    inputs = {
        "dataset": dataset_of(tmp_path / "data", messages),
        "model": make_model(tmp_path / "model", CHATML, merges=[("a", "b")]),
    }
    with pytest.raises(RuleError) as caught:
        run_rule(tokens, inputs, {}, tmp_path)
    assert caught.value.problems[0].code == "E0829"


def test_end_token_follows_the_message_and_not_its_ranges(tmp_path: Path) -> None:
    messages = [user("Hi"), assistant("ab", train_detail=detail((0, 2, False)))]
    row = row_of(tmp_path, messages, CHATML)
    assert [label for label in row["labels"] if label != -100] == [IM_END]
