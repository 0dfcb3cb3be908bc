"""Columns, roles and prompts of one's own: how a row's columns become those of its format."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import read_dataset, write_rows
from ftbuild.errors import RuleError
from ftbuild.rule import AttributeProblem
from ftbuild.testing import run_rule, source
from ftbuild_rules.data.dataset import dataset


def rows_of(directory: Path, row: dict[str, Any], **params: Any) -> dict[str, Any]:
    """Return the normal form of one row, without what is not given."""
    file = write_rows(directory / "rows.jsonl", [row])
    made = run_rule(dataset, {"source": source(file)}, params, directory)
    (found,) = read_dataset(made)
    return found


def texts(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b"},
        {"question": "a", "answer": "b"},
        {"question": "a", "response": "b"},
        {"INSTRUCTION": "a", "RESPONSE": "b"},
    ],
)
def test_alpaca_variants_by_their_published_columns(row: dict[str, str], tmp_path: Path) -> None:
    found = rows_of(tmp_path, {**row, "id": 1}, format="alpaca")
    assert texts(found["messages"]) == [("user", "a"), ("assistant", "b")]
    assert found["metadata"] == '{"id":1}'


def test_own_name_of_a_column_goes_before_other_names(tmp_path: Path) -> None:
    row = {"instruction": "a", "question": "x", "output": "b"}
    found = rows_of(tmp_path, row, format="alpaca")
    assert texts(found["messages"]) == [("user", "a"), ("assistant", "b")]
    assert found["metadata"] == '{"question":"x"}'


def test_column_inside_an_object_is_named_with_a_point(tmp_path: Path) -> None:
    row = {"question": "2+2?", "truth": "4", "6b": {"solution": "5", "is_correct": False}}
    columns = {"prompt": "question", "chosen": "truth", "rejected": "6b.solution"}
    found = rows_of(tmp_path, row, format="preference", columns=columns)
    assert texts(found["rejected"]) == [("assistant", "5")]
    assert found["metadata"] == '{"6b":{"is_correct":false,"solution":"5"}}'
    columns = {"prompt": "question", "completion": "6b.solution", "label": "6b.is_correct"}
    assert rows_of(tmp_path, row, format="unpaired", columns=columns)["label"] is False


@pytest.mark.parametrize("as_text", [False, True])
def test_roles_are_renamed(as_text: bool, tmp_path: Path) -> None:
    messages: Any = [{"from": "customer", "value": "Hi"}, {"from": "agent", "value": "Hello"}]
    row = {"conversations": json.dumps(messages) if as_text else messages}
    roles = {"customer": "user", "agent": "assistant"}
    found = rows_of(tmp_path, row, format="sharegpt", roles=roles)
    assert texts(found["messages"]) == [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("format_name", ["openai", "sharegpt"])
def test_keys_of_messages_are_renamed(as_text: bool, format_name: str, tmp_path: Path) -> None:
    messages: Any = [{"who": "user", "says": "Hi"}, {"who": "bot", "says": "Hello", "train": False}]
    row = {"log": json.dumps(messages) if as_text else messages}
    main = {"openai": "messages", "sharegpt": "conversations"}[format_name]
    columns = {main: "log", "role": "who", "content": "says"}
    roles = {"bot": "assistant"}
    found = rows_of(tmp_path, row, format=format_name, columns=columns, roles=roles)
    assert texts(found["messages"]) == [("user", "Hi"), ("assistant", "Hello")]
    assert found["messages"][1]["train"] is False
    assert found["metadata"] == "{}"


def test_keys_of_the_messages_of_a_pair_are_renamed(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "text": "Hi"}],
        "chosen": {"role": "assistant", "text": "Hello"},
        "rejected": [{"role": "assistant", "text": "What?"}],
    }
    found = rows_of(tmp_path, row, format="preference", columns={"content": "text"})
    assert texts(found["prompt"]) == [("user", "Hi")]
    assert texts(found["chosen"]) == [("assistant", "Hello")]
    assert texts(found["rejected"]) == [("assistant", "What?")]


def test_message_with_both_keys_is_an_error(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "who": "Ann", "content": "Hi"}]}
    with pytest.raises(RuleError, match="a message has both `who`, `role`"):
        rows_of(tmp_path, row, format="openai", columns={"role": "who"})


PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
NO_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("Bonjour", "### Instruction:\nTranslate.\n\n### Input:\nBonjour\n\n### Response:\n"),
        ("", "### Instruction:\nTranslate.\n\n### Response:\n"),
        (None, "### Instruction:\nTranslate.\n\n### Response:\n"),
    ],
)
def test_prompt_of_ones_own_has_a_variant_for_empty_input(
    given: str | None, prompt: str, tmp_path: Path
) -> None:
    row = {"instruction": "Translate.", "input": given, "output": "Hello", "id": 1}
    params = {"prompt": PROMPT, "prompt_no_input": NO_INPUT}
    found = rows_of(tmp_path, row, format="alpaca", **params)
    assert texts(found["messages"]) == [("user", prompt), ("assistant", "Hello")]
    assert found["metadata"] == '{"id":1}'
    found = rows_of(
        tmp_path, row, format="prompt_completion", columns={"completion": "output"}, **params
    )
    assert found["segments"] == [
        {"text": prompt, "train": False},
        {"text": "Hello", "train": True},
    ]


def test_field_that_the_row_lacks_is_an_error(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b"}
    with pytest.raises(RuleError, match="row has no `topic`, which `prompt` reads"):
        rows_of(tmp_path, row, format="alpaca", prompt="{topic}: {instruction}")


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("Q: {question", "`prompt` is no format string: expected '}' before end of string"),
        ("{question.__class__}", "the field `{question.__class__}` is more than the name"),
        ("{question!r}", "the field `{question}` is more than the name of a column"),
        ("{}", "a field `{}` has no name"),
        ("Answer!", "it has no field, so all prompts would be the same"),
    ],
)
def test_prompt_that_is_no_format_string_is_refused(prompt: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(AttributeProblem) as caught:
        rows_of(tmp_path, {"instruction": "a", "output": "b"}, format="alpaca", prompt=prompt)
    assert what in caught.value.what


def test_format_without_a_prompt_takes_none(tmp_path: Path) -> None:
    with pytest.raises(AttributeProblem, match="format `openai` has no prompt to write"):
        rows_of(tmp_path, {"messages": []}, format="openai", prompt="{a}")


def test_texts_and_messages_do_not_mix(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": [user], "completion": [assistant]},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(RuleError, match="some prompts are texts and others are messages"):
        run_rule(dataset, {"source": source(file)}, {"format": "prompt_completion"}, tmp_path)


def test_prompts_keep_what_rewards_read(tmp_path: Path) -> None:
    row = {"question": "2+2?", "answer": "4", "tests": [1, None]}
    found = rows_of(tmp_path, row, format="prompts")
    assert texts(found["prompt"]) == [("user", "2+2?")]
    assert found["metadata"] == '{"answer":"4","tests":[1,null]}'
