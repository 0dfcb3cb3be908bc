"""The attributes of `tokens` that choose a chat template, from the target to the ids."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from chat_kit import (
    CHATML,
    IM_END,
    IM_START,
    MARKED,
    PLAIN,
    chat,
    make_dataset,
    make_model,
    read_tokens,
)
from ftbuild.api import AttributeProblem, RuleError
from ftbuild.testing import run_rule, source
from ftbuild_rules.templates._named import templates
from ftbuild_rules.tokens.tokens import tokens

ROW = chat("Hi", "Hello")


def build(directory: Path, row: Any = ROW, template: Any = PLAIN, **params: Any) -> Any:
    file = params.pop("file", None)
    inputs: dict[str, Any] = {
        "dataset": make_dataset(directory / "data", [row]),
        "model": make_model(directory / "model", template),
    }
    if file is not None:
        (directory / "own.jinja").write_bytes(file)
        inputs["chat_template_file"] = source(directory / "own.jinja")
    return run_rule(tokens, inputs, params, directory)


def turn(role: str, text: str) -> list[int]:
    return [IM_START, *f"{role}\n{text}".encode(), IM_END, 10]


def ids(artifact: Any) -> list[int]:
    (row,) = read_tokens(artifact)
    return row["input_ids"]


def test_inline_template(tmp_path: Path) -> None:
    found = build(tmp_path, chat_template_jinja=CHATML)
    assert ids(found) == turn("user", "Hi") + turn("assistant", "Hello")
    assert (found.path / "chat_template.jinja").read_text() == CHATML
    digest = json.loads((found.path / "tokens.json").read_bytes())["chat_template"]
    assert digest == sha256(CHATML.encode()).hexdigest()


def test_template_of_a_file(tmp_path: Path) -> None:
    found = build(tmp_path, file=CHATML.encode())
    assert ids(found) == turn("user", "Hi") + turn("assistant", "Hello")
    assert (found.path / "chat_template.jinja").read_text() == CHATML


def test_default_system_message_is_part_of_the_template(tmp_path: Path) -> None:
    found = build(tmp_path, chat_template="chatml", default_system_message="Be kind.")
    assert ids(found) == turn("system", "Be kind.") + turn("user", "Hi") + turn(
        "assistant", "Hello"
    )
    text = (found.path / "chat_template.jinja").read_text()
    assert text == (
        '{%- if not messages or messages[0].role != "system" %}{%- set messages = '
        '[{"role": "system", "content": "Be kind."}] + messages %}{%- endif +%}'
        + templates()["chatml"]
    )


def test_system_message_of_a_row_comes_first(tmp_path: Path) -> None:
    row = chat("Hi", "Hello")
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    found = build(tmp_path, row, CHATML, default_system_message="Be kind.")
    assert ids(found)[: len(turn("system", "Be brief."))] == turn("system", "Be brief.")


def test_default_system_message_is_masked(tmp_path: Path) -> None:
    found = build(tmp_path, template=CHATML, default_system_message="Be kind.")
    (row,) = read_tokens(found)
    trained = [label for label in row["labels"] if label != -100]
    assert trained == [*b"Hello", IM_END]


def test_template_variable(tmp_path: Path) -> None:
    template = "{{ mood }}" + CHATML
    found = build(tmp_path, template=template, template_variables={"mood": "glad"})
    assert ids(found) == [*b"glad", *turn("user", "Hi"), *turn("assistant", "Hello")]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"chat_template": "chatml", "file": b"x"},
            "`chat_template` and `chat_template_file` are both given",
        ),
        ({"file": b"\xff"}, "the chat template is not UTF-8"),
    ],
)
def test_file_that_cannot_be_the_template(
    params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RuleError) as caught:
        build(tmp_path, **params)
    problem = caught.value.problems[0]
    assert (problem.code, problem.what) == ("E0820", message)


@pytest.mark.parametrize(
    ("params", "attribute", "what"),
    [
        (
            {"chat_template": "chatml", "chat_template_jinja": "x"},
            "chat_template_jinja",
            "`chat_template` and `chat_template_jinja` are both given",
        ),
        (
            {"template_variables": {"messages": []}},
            "template_variables",
            "`messages` is given with every conversation",
        ),
        (
            {"template_variables": {"a b": 1}},
            "template_variables",
            "`a b` is no name of a variable",
        ),
    ],
)
def test_contradiction(params: dict[str, Any], attribute: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(AttributeProblem) as caught:
        build(tmp_path, **params)
    assert (caught.value.attribute, caught.value.what) == (attribute, what)


def test_text_rows_take_no_template_file(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    data = make_dataset(tmp_path / "data", [{"text": "a"}], "text")
    (tmp_path / "own.jinja").write_text("x")
    own = source(tmp_path / "own.jinja")
    with pytest.raises(RuleError, match="`chat_template_file` has no meaning for a dataset of"):
        run_rule(tokens, {"dataset": data, "model": model, "chat_template_file": own}, {}, tmp_path)


THINKS = MARKED.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")


def test_prompt_that_a_marked_template_shows_otherwise(tmp_path: Path) -> None:
    with pytest.raises(RuleError) as caught:
        build(tmp_path / "refused", template=THINKS)
    text = caught.value.render()
    assert text.startswith(
        "error[E0828]: 1 of 1 rows have a prompt that is no prefix of the conversation"
    )
    assert text.endswith('or allow it: `allow = ["prompt_prefix"]`')
    made = build(tmp_path / "allowed", template=THINKS, allow=["prompt_prefix"])
    assert read_tokens(made) == read_tokens(build(tmp_path / "plain", template=MARKED))


def test_prompt_that_shows_otherwise_is_no_matter_where_nothing_precedes(tmp_path: Path) -> None:
    row = {"messages": [{"role": "assistant", "content": "Welcome"}]}
    assert ids(build(tmp_path, row, THINKS)) == turn("assistant", "Welcome")
