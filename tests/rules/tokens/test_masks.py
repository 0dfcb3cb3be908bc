"""Exact ids and labels, computed by hand: byte `b` is id `b`, special tokens from 256 on."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from chat_kit import (
    BOS,
    CHATML,
    EOS,
    IM_END,
    IM_START,
    LLAMA2,
    MARKED,
    PLAIN,
    chat,
    make_dataset,
    make_model,
    read_tokens,
)
from ftbuild.testing import run_rule
from ftbuild_rules.tokens.tokens import tokens

Part = tuple[list[int], bool]
_numbers = itertools.count()


def tokenize(
    directory: Path, rows: list[Any], template: str | None = CHATML, **params: Any
) -> list[dict[str, list[int]]]:
    here = directory / str(next(_numbers))
    format_name = "text" if "text" in rows[0] else "openai"
    inputs = {
        "dataset": make_dataset(here, rows, format_name),
        "model": make_model(here / "model", template),
    }
    return read_tokens(run_rule(tokens, inputs, params, here))


def expected(*parts: Part) -> dict[str, list[int]]:
    """Return a row of parts, each of ids and whether they are trained on."""
    return {
        "input_ids": [token for ids, _ in parts for token in ids],
        "labels": [token if is_trained else -100 for ids, is_trained in parts for token in ids],
    }


def head(role: str) -> Part:
    return [IM_START, *f"{role}\n".encode()], False


def said(text: str, trained: bool = True) -> Part:
    return list(text.encode()), trained


def end(trained: bool = True) -> list[Part]:
    return [([IM_END], trained), ([*b"\n"], False)]


TWO_TURNS = chat("Hi", "Hello", "Bye", "Ciao")


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(
    ("params", "texts", "ends"),
    [
        pytest.param({}, "0101", "0101", id="default"),
        pytest.param({"train_on_eot": "turn"}, "0101", "0101", id="eot of turns"),
        pytest.param({"train_on_eot": "all"}, "0101", "1111", id="eot of all"),
        pytest.param({"train_on_eot": "last"}, "0101", "0001", id="eot of the last"),
        pytest.param({"train_on_eot": "none"}, "0101", "0000", id="no eot"),
        pytest.param({"last_turn_only": True}, "0001", "0001", id="last turn"),
        pytest.param(
            {"last_turn_only": True, "train_on_eot": "all"}, "0001", "1111", id="last turn, all eot"
        ),
        pytest.param({"train_on": ["user"]}, "1010", "1010", id="user"),
        pytest.param({"train_on": ["user", "assistant"]}, "1111", "1111", id="both"),
        pytest.param(
            {"train_on": ["user"], "last_turn_only": True, "train_on_eot": "last"},
            "0010",
            "0010",
            id="last of the user",
        ),
    ],
)
def test_mask_attributes(
    params: dict[str, Any], texts: str, ends: str, template: str, tmp_path: Path
) -> None:
    parts: list[Part] = []
    for number, message in enumerate(TWO_TURNS["messages"]):
        parts += [head(message["role"]), said(message["content"], texts[number] == "1")]
        parts += end(ends[number] == "1")
    assert tokenize(tmp_path, [TWO_TURNS], template, **params) == [expected(*parts)]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_flag_of_a_message_overrides_its_role(template: str, tmp_path: Path) -> None:
    row = chat("Hi", "Hello", "Bye", "Ciao")
    row["messages"][1]["train"] = False
    row["messages"][2]["train"] = True
    assert tokenize(tmp_path, [row], template) == [
        expected(
            head("user"), said("Hi", False), *end(False),
            head("assistant"), said("Hello", False), *end(False),
            head("user"), said("Bye"), *end(),
            head("assistant"), said("Ciao"), *end(),
        )
    ]  # fmt: skip


def test_train_on_inputs_trains_every_token(tmp_path: Path) -> None:
    (row,) = tokenize(tmp_path, [chat("Hi", "Hello")], train_on_inputs=True)
    assert row["labels"] == row["input_ids"]
    assert row["input_ids"] == [
        IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\nHello", IM_END, *b"\n",
    ]  # fmt: skip


def test_system_message_and_letters_of_many_bytes(tmp_path: Path) -> None:
    row = chat("Grüß 世界", "🌍 ok")
    row["messages"].insert(0, {"role": "system", "content": "é"})
    assert tokenize(tmp_path, [row]) == [
        expected(
            head("system"), said("é", False), *end(False),
            head("user"), said("Grüß 世界", False), *end(False),
            head("assistant"), said("🌍 ok"), *end(),
        )
    ]  # fmt: skip


def test_llama_2_says_its_spaces_and_eos(tmp_path: Path) -> None:
    assert tokenize(tmp_path, [chat(" Hi ", "Hello\n", "Bye", "Ciao")], LLAMA2) == [
        expected(
            ([BOS], False), said("[INST] Hi [/INST]", False), said(" Hello "), ([EOS], True),
            ([BOS], False), said("[INST] Bye [/INST]", False), said(" Ciao "), ([EOS], True),
        )
    ]  # fmt: skip


def test_plain_template_trains_text_and_eos(tmp_path: Path) -> None:
    assert tokenize(tmp_path, [chat("Hi\n", "Hello")], PLAIN) == [
        expected(
            said("### user: Hi\n\n### assistant: ", False),
            said("Hello"),
            ([EOS], True),
            said("\n\n", False),
        )
    ]


def test_named_template_takes_the_place_of_the_tokenizer_own(tmp_path: Path) -> None:
    rows = [TWO_TURNS]
    assert tokenize(tmp_path, rows, PLAIN, chat_template="chatml") == tokenize(tmp_path, rows)


def test_named_template_of_the_tokenizer(tmp_path: Path) -> None:
    own: Any = {"default": PLAIN, "short": CHATML}
    found = tokenize(tmp_path, [TWO_TURNS], own, chat_template="short")
    assert found == tokenize(tmp_path, [TWO_TURNS], CHATML)


@pytest.mark.parametrize(
    ("train_on_eot", "eos"), [("turn", EOS), ("all", EOS), ("last", EOS), ("none", -100)]
)
def test_text_is_trained_whole_between_bos_and_one_eos(
    train_on_eot: str, eos: int, tmp_path: Path
) -> None:
    rows = [{"text": "abc"}, {"text": "abc</s>"}]
    found = tokenize(tmp_path, rows, None, train_on_eot=train_on_eot)
    assert found == [
        {"input_ids": [BOS, *b"abc", EOS], "labels": [BOS, *b"abc", eos]} for _ in rows
    ]


def test_truncated_row_keeps_its_head(tmp_path: Path) -> None:
    found = tokenize(tmp_path, [chat("Hi", "Hello")], max_length=25, overflow="truncate")
    whole = expected(head("user"), said("Hi", False), *end(False), head("assistant"), said("Hello"))
    assert found == [{name: ids[:25] for name, ids in whole.items()}]
    assert found[0]["labels"][-4:] == [*b"Hell"]


def test_row_of_just_the_largest_length_is_kept(tmp_path: Path) -> None:
    (row,) = tokenize(tmp_path, [chat("Hi", "Hello")], max_length=28)
    assert len(row["input_ids"]) == 28


def test_longer_rows_are_dropped(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello"), chat("Hi", "Hello!"), chat("Ho", "Hallo")]
    found = tokenize(tmp_path, rows, max_length=28, overflow="drop")
    assert found == tokenize(tmp_path, [rows[0], rows[2]])
