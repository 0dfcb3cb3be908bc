"""Formats x templates x masks: the ids and labels of each, put together without Jinja."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from chat_kit import make_dataset, make_tokenizer, read_tokens
from ftbuild.kinds import Artifact, Model
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.templates._named import templates
from ftbuild_rules.tokens.tokens import tokens
from template_forms import FORMS, MORE_SPECIAL, conversation, ids_of, pieces

PAIRS = [("How are you?", "Fine é🌍."), ("And now?", "Better."), ("Bye\nthen", "Ciao\n\nBella")]
ONE = [("Add.\n2 and 2", "4")]
ALPACA = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
SHAREGPT = {
    "conversations": [
        {"from": speaker, "value": text}
        for pair in PAIRS
        for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
}
# format -> its row, and what is said in it
FORMATS: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "openai": ({"messages": conversation(None, PAIRS)}, PAIRS),
    "sharegpt": (SHAREGPT, PAIRS),
    "alpaca": (ALPACA, ONE),
}
# attributes -> of an answer and its end token, which are trained: "all", "last" or "none"
MASKS: dict[str, tuple[dict[str, Any], str, str]] = {
    "default": ({}, "all", "all"),
    "eot last": ({"train_on_eot": "last"}, "all", "last"),
    "eot none": ({"train_on_eot": "none"}, "all", "none"),
    "last turn": ({"last_turn_only": True}, "last", "last"),
    "last turn, no eot": ({"last_turn_only": True, "train_on_eot": "none"}, "last", "none"),
    "packed": ({"packing": "bfd"}, "all", "all"),
    "inputs": ({"train_on_inputs": True}, "inputs", "inputs"),
}


@cache
def folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


@cache
def dataset_of(format_name: str) -> Artifact:
    directory = Path(folder().name) / format_name
    row, _ = FORMATS[format_name]
    return make_dataset(directory, [row], format_name)


@cache
def model() -> Artifact:
    directory = Path(folder().name) / "model"
    make_tokenizer(directory, more_special=MORE_SPECIAL)
    return artifact(Model, directory)


def expected(name: str, pairs: list[tuple[str, str]], said: str, ends: str) -> dict[str, list[int]]:
    """Return ids and labels; `said` and `ends` name the answers that are trained."""
    ids: list[int] = []
    labels: list[int] = []

    def add(text: str, is_trained: bool) -> None:
        found = ids_of(text)
        ids.extend(found)
        labels.extend(found if is_trained else [-100] * len(found))

    def wants(choice: str, number: int) -> bool:
        return choice in ("all", "inputs") or (choice == "last" and number == len(pairs) - 1)

    for number, (before, answer, end) in enumerate(pieces(name, pairs)):
        add(before, said == "inputs")
        add(answer, wants(said, number))
        add(end, wants(ends, number))
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("format_name", list(FORMATS))
def test_ids_and_labels(format_name: str, name: str, tmp_path: Path) -> None:
    _, pairs = FORMATS[format_name]
    for number, (params, said, ends) in enumerate(MASKS.values()):
        inputs = {"dataset": dataset_of(format_name), "model": model()}
        allow = ["template_tokens"]  # this tokenizer knows a part of all families' tokens
        params = {**params, "chat_template": name, "allow": allow}
        made = run_rule(tokens, inputs, params, tmp_path / str(number))
        wanted = expected(name, pairs, said, ends)
        if "packing" in params:
            wanted["seq_lengths"] = [len(wanted["input_ids"])]
            wanted["labels"][0] = -100
        assert read_tokens(made) == [wanted]


def test_every_template_is_in_the_table() -> None:
    assert set(FORMS) <= set(templates())


# Forms of which an answer, or none, is tokenized beside its prompt.
ASKED = ("How are you?", "Fine é🌍.")
WRONG = "No."
ANSWERED: dict[str, Any] = {
    "preference": {"prompt": ASKED[0], "chosen": ASKED[1], "rejected": WRONG},
    "unpaired": {"prompt": ASKED[0], "completion": ASKED[1], "label": False},
    "prompts": {"prompt": ASKED[0], "answer": 4},
    "prompt_completion": {
        "prompt": conversation(None, PAIRS)[:-1],
        "completion": conversation(None, PAIRS)[-1:],
    },
}


@cache
def answered(format_name: str) -> Artifact:
    directory = Path(folder().name) / f"{format_name} rows"
    return make_dataset(directory, [ANSWERED[format_name]], format_name)


def expected_answer(name: str, format_name: str) -> dict[str, Any]:
    """Return prompt and answers, cut where the text of the prompt ends."""

    def after_prompt(answer: str) -> list[int]:
        ((_, said, end), (tail, _, _)) = pieces(name, [(ASKED[0], answer)])
        return ids_of(said + end + tail)

    prompt = ids_of(pieces(name, [ASKED])[0][0])
    if format_name == "prompts":
        return {"prompt_ids": prompt, "metadata": '{"answer":4}'}
    if format_name == "unpaired":
        return {"prompt_ids": prompt, "completion_ids": after_prompt(ASKED[1]), "label": False}
    if format_name == "preference":
        return {
            "prompt_ids": prompt,
            "chosen_ids": after_prompt(ASKED[1]),
            "rejected_ids": after_prompt(WRONG),
        }
    return expected(name, PAIRS, "last", "last")


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("format_name", list(ANSWERED))
def test_ids_of_prompts_and_answers(format_name: str, name: str, tmp_path: Path) -> None:
    inputs = {"dataset": answered(format_name), "model": model()}
    params = {"chat_template": name, "allow": ["template_tokens"]}
    made = run_rule(tokens, inputs, params, tmp_path)
    assert read_tokens(made) == [expected_answer(name, format_name)]
