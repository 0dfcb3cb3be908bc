"""Preference pairs: ids by hand, and as TRL's own DPO trainer tokenizes them."""

import itertools
import json
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
    make_dataset,
    make_model,
    make_tokenizer,
    read_tokens,
)
from ftbuild.errors import RuleError
from ftbuild.kinds import Artifact
from ftbuild.testing import run_rule
from ftbuild_rules.tokens.tokens import tokens

_numbers = itertools.count()
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}
# The empty thought after the prompt is there only while nothing follows.
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")


def tokenize(directory: Path, rows: list[Any], template: str = CHATML, **params: Any) -> Artifact:
    here = directory / str(next(_numbers))
    inputs = {
        "dataset": make_dataset(here, rows, "preference"),
        "model": make_model(here / "model", template),
    }
    return run_rule(tokens, inputs, params, here)


def refusal(directory: Path, rows: list[Any], template: str = CHATML, **params: Any) -> str:
    with pytest.raises(RuleError) as caught:
        tokenize(directory, rows, template, **params)
    return caught.value.render()


def test_ids_of_a_pair(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [PAIR])
    prompt = [IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\n"]
    chosen, rejected = [*b"Hello", IM_END, *b"\n"], [*b"Go", IM_END, *b"\n"]
    assert read_tokens(made) == [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    ]
    index = json.loads((made.path / "tokens.json").read_bytes())
    assert (index["form"], index["rows"]) == ("preference", 1)
    assert index["tokens"] == len(prompt) + len(chosen) + len(rejected)
    assert index["trainable_tokens"] == len(chosen) + len(rejected)


def test_ids_without_a_generation_prompt(tmp_path: Path) -> None:
    assert read_tokens(tokenize(tmp_path, [PAIR], LLAMA2)) == [
        {
            "prompt_ids": [BOS, *b"[INST] Hi [/INST]"],
            "chosen_ids": [*b" Hello ", EOS],
            "rejected_ids": [*b" Go ", EOS],
        }
    ]


def test_ids_are_those_of_the_dpo_trainer(tmp_path: Path) -> None:
    def common(one: list[int], other: list[int]) -> int:
        pairs = zip(one, other, strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    rows = [
        {
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Who {n}?"},
                {"role": "assistant", "content": "Me."},
                {"role": "user", "content": "é"},
            ],
            "chosen": [{"role": "assistant", "content": f"<b>{n}</b>"}],
            "rejected": [{"role": "assistant", "content": f"no {n}"}],
        }
        for n in range(5)
    ]
    made = read_tokens(tokenize(tmp_path, rows, THINKING, allow=["prompt_prefix"]))
    tokenizer = make_tokenizer(tmp_path / "tokenizer", THINKING)
    for row, found in zip(rows, made, strict=True):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)
        chosen = tokenizer.apply_chat_template(row["prompt"] + row["chosen"])["input_ids"]
        rejected = tokenizer.apply_chat_template(row["prompt"] + row["rejected"])["input_ids"]
        ids = prompt["input_ids"]
        length = min(common(ids, chosen), common(ids, rejected))
        # With the chosen answer the prompt shares the "<" of "<think>" too, with the other not.
        assert length == len(ids) - len("<think>")
        assert found == {
            "prompt_ids": ids[:length],
            "chosen_ids": chosen[length:],
            "rejected_ids": rejected[length:],
        }


def test_prompt_that_is_no_prefix(tmp_path: Path) -> None:
    assert refusal(tmp_path, [PAIR], THINKING) == (
        "error[E0828]: 1 of 1 rows have a prompt that is no prefix of the conversation: the model "
        "would be trained on another context than it sees when it answers\n"
        "  --> dataset in rows 0\n"
        "  fix: take a chat template that renders the prompt alone as it does before an answer; "
        'or allow it: `allow = ["prompt_prefix"]`'
    )


def test_equal_answers(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "rejected": "Hello"}]
    assert refusal(tmp_path, rows) == (
        "error[E0827]: 1 of 2 rows have a chosen answer that equals the rejected one\n"
        "  --> dataset in rows 1\n"
        "  fix: remove the rows; where only `max_length` makes them equal, raise it; "
        'or allow it: `allow = ["equal_pairs"]`'
    )


def test_answers_that_truncation_makes_equal(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "abcd", "rejected": "abcx"}]
    message = refusal(tmp_path, rows, max_length=24, overflow="truncate")
    assert message.startswith("error[E0827]: 1 of 1 rows ")
    (kept,) = read_tokens(tokenize(tmp_path, rows, max_length=25, overflow="truncate"))
    assert (kept["chosen_ids"], kept["rejected_ids"]) == ([*b"abcd"], [*b"abcx"])


def test_prompt_that_fills_the_row_leaves_nothing_to_train(tmp_path: Path) -> None:
    message = refusal(tmp_path, [PAIR], max_length=21, overflow="truncate")
    assert message.startswith("error[E0823]: 1 of 1 rows have no trainable token\n")


def test_length_is_of_the_prompt_with_the_longer_answer(tmp_path: Path) -> None:
    assert len(read_tokens(tokenize(tmp_path, [PAIR], max_length=28))) == 1
    assert "why: row 0: it has 28 tokens" in refusal(tmp_path, [PAIR], max_length=27)


def test_pair_that_is_too_long_is_dropped(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "chosen": "Hello!"}]
    assert len(read_tokens(tokenize(tmp_path, rows, max_length=28, overflow="drop"))) == 1


def test_answers_without_an_end(tmp_path: Path) -> None:
    template = LLAMA2.replace("{{ eos_token }}", "")
    assert refusal(tmp_path, [PAIR], template).startswith(
        "error[E0825]: 1 of 1 rows never train the end of a turn"
    )
