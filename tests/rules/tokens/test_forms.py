"""Rows of each form that is no conversation of its own: ids and labels by hand."""

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
PROMPT = [IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\n"]


def tokenize(
    directory: Path, rows: list[Any], form: str, template: str | None = CHATML, **params: Any
) -> Artifact:
    here = directory / str(next(_numbers))
    settings = params.pop("tokenizer", {})
    inputs = {
        "dataset": make_dataset(here, rows, form),
        "model": make_model(here / "model", template, **settings),
    }
    return run_rule(tokens, inputs, params, here)


def refusal(
    directory: Path, rows: list[Any], form: str, template: str | None = CHATML, **params: Any
) -> str:
    with pytest.raises(RuleError) as caught:
        tokenize(directory, rows, form, template, **params)
    return caught.value.render()


def about(tokens: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tokens.path / "tokens.json").read_bytes())
    return found


def masked(ids: list[int], *trained: range) -> list[int]:
    """Return the ids with -100 outside of the places that are trained."""
    return [token if any(n in r for r in trained) else -100 for n, token in enumerate(ids)]


# Unpaired.

UNPAIRED = {"prompt": "Hi", "completion": "Hello", "label": True}


def test_ids_of_an_answer_with_its_label(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [UNPAIRED, {**UNPAIRED, "label": False}], "unpaired")
    answer = [*b"Hello", IM_END, *b"\n"]
    assert read_tokens(made) == [
        {"prompt_ids": PROMPT, "completion_ids": answer, "label": label} for label in (True, False)
    ]
    found = about(made)
    assert (found["form"], found["rows"]) == ("unpaired", 2)
    assert (found["tokens"], found["trainable_tokens"]) == (2 * 28, 2 * 7)


def test_answer_of_a_pair_and_alone_have_the_same_ids(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}
    (both,) = read_tokens(tokenize(tmp_path, [pair], "preference", LLAMA2))
    alone = [
        {"prompt": "Hi", "completion": pair[name], "label": name == "chosen"}
        for name in ("chosen", "rejected")
    ]
    assert read_tokens(tokenize(tmp_path, alone, "unpaired", LLAMA2)) == [
        {
            "prompt_ids": both["prompt_ids"],
            "completion_ids": both[f"{name}_ids"],
            "label": name == "chosen",
        }
        for name in ("chosen", "rejected")
    ]


def test_unpaired_answers_that_are_too_long(tmp_path: Path) -> None:
    rows = [UNPAIRED, {**UNPAIRED, "completion": "Hello!"}]
    assert "1 of 2 rows are longer" in refusal(tmp_path, rows, "unpaired", max_length=28)
    dropped = tokenize(tmp_path, rows, "unpaired", max_length=28, overflow="drop")
    assert [len(row["completion_ids"]) for row in read_tokens(dropped)] == [7]
    cut = tokenize(tmp_path, rows, "unpaired", max_length=27, overflow="truncate")
    assert [row["completion_ids"] for row in read_tokens(cut)] == [
        [*b"Hello", IM_END],
        [*b"Hello!"],
    ]
    message = refusal(tmp_path, rows, "unpaired", max_length=21, overflow="truncate")
    assert message.startswith("error[E0823]: 2 of 2 rows have no trainable token\n")


# Steps.

STEPS = {"prompt": "2+3*4?", "completions": ["3*4=12", "2+12=15"], "labels": [True, False]}


def test_ids_and_labels_of_steps(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [STEPS], "stepwise", None)
    ids = [BOS, *b"2+3*4?", *b"3*4=12\n", *b"2+12=15\n"]
    labels = [-100] * 13 + [1] + [-100] * 7 + [0]
    assert read_tokens(made) == [{"input_ids": ids, "labels": labels}]
    found = about(made)
    assert (found["form"], found["tokens"], found["trainable_tokens"]) == ("stepwise", 22, 2)
    assert found["chat_template"] is None


def trl_row(tokenizer: Any, row: dict[str, Any], separator: str) -> dict[str, list[int]]:
    """Return ids and labels as TRL 1.13's `PRMTrainer.tokenize_row` makes them."""
    prompt = [tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False).input_ids]
    end = tokenizer.encode(separator, add_special_tokens=False)
    ids, labels = prompt, [-100] * len(prompt)
    for step, label in zip(row["completions"], row["labels"], strict=True):
        whole = tokenizer(step, add_special_tokens=False).input_ids + end
        ids = ids + whole
        labels = labels + [-100] * (len(whole) - 1) + [int(label)]
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("separator", ["\n", " §§\n", "<|im_end|>"])
def test_steps_are_those_of_trl(separator: str, tmp_path: Path) -> None:
    merges = [("2", "+"), ("1", "2"), ("=", "1")]
    tokenizer = make_tokenizer(tmp_path / "tokenizer", merges=merges)
    rows = [STEPS, {"prompt": "é", "completions": ["one"], "labels": [1]}, STEPS]
    made = tokenize(
        tmp_path, rows, "stepwise", step_separator=separator, tokenizer={"merges": merges}
    )
    assert read_tokens(made) == [trl_row(tokenizer, row, separator) for row in rows]


def test_only_the_last_step_is_told(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [STEPS], "stepwise", None, train_on_last_step_only=True)
    (row,) = read_tokens(made)
    assert row["labels"] == [-100] * 21 + [0]


def test_steps_that_are_too_long(tmp_path: Path) -> None:
    message = refusal(tmp_path, [STEPS], "stepwise", None, max_length=21)
    assert "why: row 0: it has 22 tokens" in message
    cut = tokenize(tmp_path, [STEPS], "stepwise", None, max_length=21, overflow="truncate")
    assert read_tokens(cut)[0]["labels"] == [-100] * 13 + [1] + [-100] * 7
    message = refusal(tmp_path, [STEPS], "stepwise", None, max_length=13, overflow="truncate")
    assert message.startswith("error[E0823]: 1 of 1 rows have no trainable token\n")


# Prompts.

ASKED = {"prompt": "Hi", "answer": 4, "tests": ["a", "b"]}


def test_ids_of_a_prompt_with_what_rewards_read(tmp_path: Path) -> None:
    made = tokenize(tmp_path, [ASKED], "prompts")
    assert read_tokens(made) == [
        {"prompt_ids": PROMPT, "metadata": '{"answer":4,"tests":["a","b"]}'}
    ]
    found = about(made)
    assert (found["form"], found["tokens"], found["trainable_tokens"]) == ("prompts", 21, 0)


def test_prompt_is_as_transformers_renders_it(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be é."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"},
    ]
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    (row,) = read_tokens(tokenize(tmp_path, [{"prompt": talk}], "prompts"))
    theirs = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert row["prompt_ids"] == theirs


def test_edit_of_a_reference_answer_changes_the_artifact(tmp_path: Path) -> None:
    before = tokenize(tmp_path, [ASKED], "prompts")
    assert tokenize(tmp_path, [{**ASKED, "answer": 5}], "prompts").digest != before.digest


def test_prompts_that_are_too_long(tmp_path: Path) -> None:
    rows = [ASKED, {**ASKED, "prompt": "Hi!"}]
    message = refusal(tmp_path, rows, "prompts", max_length=21)
    assert "why: row 1: it has 22 tokens" in message
    dropped = tokenize(tmp_path, rows, "prompts", max_length=21, overflow="drop")
    assert len(read_tokens(dropped)) == 1


# Segments.


def segments(*items: tuple[str, bool]) -> dict[str, Any]:
    return {"segments": [{"text": text, "train": train} for text, train in items]}


def test_ids_and_labels_of_segments(tmp_path: Path) -> None:
    row = segments(("Q: é\n", False), ("A", True), (": ", False), ("4", True))
    made = tokenize(tmp_path, [row], "segments", None)
    ids = [BOS, *"Q: é\n".encode(), *b"A", *b": ", *b"4", EOS]
    assert read_tokens(made) == [
        {"input_ids": ids, "labels": masked(ids, range(7, 8), range(10, 12))}
    ]
    assert about(made)["form"] == "sft"


@pytest.mark.parametrize(
    ("items", "ids", "trained"),
    [
        # BOS and an end token that are written out are not written again.
        ([("<s>a", False), ("b</s>", True)], [BOS, *b"ab", EOS], range(2, 4)),
        ([("a", False), ("b<|im_end|>", True)], [BOS, *b"ab", IM_END], range(2, 4)),
        # After a segment that is given nothing is to be said.
        (
            [("a", False), ("b</s>", True), ("c", False)],
            [BOS, *b"ab", EOS, *b"c"],
            range(2, 4),
        ),
        # Neighbours that are both trained have no edge between them.
        ([("a", False), ("b", True), ("c", True)], [BOS, *b"abc", EOS], range(2, 5)),
    ],
)
def test_ends_of_segments(
    items: list[tuple[str, bool]], ids: list[int], trained: range, tmp_path: Path
) -> None:
    (row,) = read_tokens(tokenize(tmp_path, [segments(*items)], "segments", None))
    assert row == {"input_ids": ids, "labels": masked(ids, trained)}


def test_end_of_segments_that_is_not_trained(tmp_path: Path) -> None:
    row = segments(("a", False), ("b", True))
    (found,) = read_tokens(tokenize(tmp_path, [row], "segments", None, train_on_eot="none"))
    assert found == {"input_ids": [BOS, *b"ab", EOS], "labels": [-100, -100, *b"b", -100]}
    unended = segments(("a", True), ("b", False))
    message = refusal(tmp_path, [unended], "segments", None)
    assert message.startswith("error[E0825]: 1 of 1 rows never train the end of a turn")


def test_all_of_segments(tmp_path: Path) -> None:
    row = segments(("a", False), ("b", True))
    (found,) = read_tokens(tokenize(tmp_path, [row], "segments", None, train_on_inputs=True))
    assert found == {"input_ids": [BOS, *b"ab", EOS], "labels": [BOS, *b"ab", EOS]}


def test_token_over_the_edge_of_a_segment(tmp_path: Path) -> None:
    row = segments(("a", False), ("b", True))
    merges = {"merges": [("a", "b")]}
    message = refusal(tmp_path, [row], "segments", None, tokenizer=merges)
    assert message.startswith("error[E0829]: 1 of 1 rows have a token that reaches over the edge")
    allowed = tokenize(tmp_path, [row], "segments", None, tokenizer=merges, allow=["split_tokens"])
    assert read_tokens(allowed) == [{"input_ids": [BOS, 260, EOS], "labels": [-100, 260, EOS]}]


def test_prompt_and_completion_are_two_segments(tmp_path: Path) -> None:
    row = {"prompt": "The sky is", "completion": " blue."}
    ids = [BOS, *b"The sky is blue.", EOS]
    assert read_tokens(tokenize(tmp_path, [row], "prompt_completion", None)) == [
        {"input_ids": ids, "labels": masked(ids, range(11, 18))}
    ]


def test_prompt_and_completion_as_messages(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    }
    ids = [*PROMPT, *b"Hello", IM_END, *b"\n"]
    assert read_tokens(tokenize(tmp_path, [row], "prompt_completion")) == [
        {"input_ids": ids, "labels": masked(ids, range(21, 27))}
    ]


def test_prompt_of_messages_stays_masked_whatever_roles_are_trained(tmp_path: Path) -> None:
    row = {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "You?"},
            {"role": "user", "content": "Me"},
        ],
        "completion": [{"role": "assistant", "content": "Hello"}],
    }
    (found,) = read_tokens(tokenize(tmp_path, [row], "prompt_completion"))
    assert [label for label in found["labels"] if label != -100] == [*b"Hello", IM_END]


def test_segments_are_packed_and_split(tmp_path: Path) -> None:
    rows = [segments(("a", False), ("b", True)), segments(("cd", False), ("e", True))]
    (packed,) = read_tokens(tokenize(tmp_path, rows, "segments", None, packing="ffd"))
    assert packed == {
        "input_ids": [BOS, *b"ab", EOS, BOS, *b"cde", EOS],
        "labels": [-100, -100, *b"b", EOS, -100, -100, -100, *b"e", EOS],
        "seq_lengths": [4, 5],
    }
    halves = tokenize(tmp_path, rows[1:], "segments", None, max_length=4, overflow="split")
    assert read_tokens(halves) == [
        {"input_ids": [BOS, *b"cde"], "labels": [-100, -100, -100, *b"e"]}
    ]


# Tokenized.


def test_given_ids_and_labels_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [BOS, 97, 98, EOS], "labels": [-100, -100, 98, EOS]},
        {"input_ids": [BOS, 97, EOS, EOS, EOS], "attention_mask": [1, 1, 1, 0, 0]},
    ]
    made = tokenize(tmp_path, rows, "tokenized", None)
    assert read_tokens(made) == [
        {"input_ids": [BOS, 97, 98, EOS], "labels": [-100, -100, 98, EOS]},
        {"input_ids": [BOS, 97, EOS], "labels": [BOS, 97, EOS]},
    ]
    assert about(made)["trainable_tokens"] == 5


def test_given_ids_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2, EOS]}, {"input_ids": [1, 260, EOS]}, {"input_ids": [900, EOS]}]
    assert refusal(tmp_path, rows, "tokenized", None) == (
        "error[E0837]: 2 of 3 rows have ids that the tokenizer does not know\n"
        "  --> dataset in rows 1, 2\n"
        "  why: row 1: it has the id 260; the tokenizer's are 0 to 259\n"
        "  fix: make the rows with this model's tokenizer, or name the model they were made for"
    )


def test_given_rows_are_checked_like_others(tmp_path: Path) -> None:
    rows = [{"input_ids": [BOS, BOS, 97, EOS], "labels": [-100, -100, 97, -100]}]
    message = refusal(tmp_path, rows, "tokenized", None)
    assert "error[E0825]: 1 of 1 rows never train the end of a turn" in message
    assert "error[E0826]: 1 of 1 rows begin with two BOS tokens" in message


# What has no meaning.


@pytest.mark.parametrize(
    ("form", "row", "params", "expected"),
    [
        (
            "prompts",
            ASKED,
            {"overflow": "truncate"},
            '`overflow = "truncate"` has no meaning for a dataset of form `prompts`\n'
            "  --> dataset\n"
            "  why: half of a prompt is another prompt\n"
            '  fix: use "drop"',
        ),
        (
            "stepwise",
            STEPS,
            {"overflow": "split"},
            '`overflow = "split"` has no meaning for a dataset of form `stepwise`\n'
            "  --> dataset\n"
            "  why: the second half of a solution lacks its problem\n"
            '  fix: use "drop" or "truncate"',
        ),
        (
            "stepwise",
            STEPS,
            {"chat_template": "chatml"},
            "`chat_template` has no meaning for a dataset of form `stepwise`\n"
            "  --> dataset\n"
            "  why: the texts are plain, and a label stands where each step ends\n"
            "  fix: remove `chat_template`",
        ),
        (
            "unpaired",
            UNPAIRED,
            {"packing": "bfd"},
            "`packing` has no meaning for a dataset of form `unpaired`\n"
            "  --> dataset\n"
            "  why: the answer to each prompt is trained on\n"
            "  fix: remove `packing`",
        ),
        (
            "segments",
            segments(("a", True)),
            {"train_on": ["user"]},
            "`train_on` has no meaning for a dataset of form `segments`\n"
            "  --> dataset\n"
            "  why: segments are one plain text, and each says whether it is trained on\n"
            "  fix: remove `train_on`",
        ),
        (
            "tokenized",
            {"input_ids": [1, EOS]},
            {"train_on_inputs": True},
            "`train_on_inputs` has no meaning for a dataset of form `tokenized`\n"
            "  --> dataset\n"
            "  why: ids and labels are taken as they are\n"
            "  fix: remove `train_on_inputs`",
        ),
        (
            "unpaired",
            UNPAIRED,
            {"step_separator": "\t"},
            "`step_separator` has no meaning for a dataset of form `unpaired`\n"
            "  --> dataset\n"
            "  why: rows of form `stepwise` alone have steps\n"
            "  fix: remove `step_separator`",
        ),
    ],
)
def test_attribute_without_meaning(
    form: str, row: Any, params: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, [row], form, **params) == f"error[E0830]: {expected}"
