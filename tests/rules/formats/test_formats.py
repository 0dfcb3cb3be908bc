"""Each format, on rows as they are published, against the normal form written by hand."""

import json
from typing import Any

import pytest

from ftbuild_rules.formats import alpaca, openai, preference, sharegpt, text

USER = {"role": "user", "content": "How warm is it in Oslo?"}
ANSWER = {"role": "assistant", "content": "3 degrees."}
CALL = '[{"function":{"arguments":{"city":"Oslo"},"name":"weather"},"id":"c1","type":"function"}]'
TOOL = {"name": "weather", "description": "Temperature", "parameters": {"type": "object"}}
TOOLS = (
    '[{"function":{"description":"Temperature","name":"weather","parameters":{"type":"object"}},'
    '"type":"function"}]'
)


def test_openai_row_with_tools_as_its_guide_shows_it() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            USER,
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": [{"type": "text", "text": "3 degrees."}]},
        ],
        "tools": [{"type": "function", "function": TOOL}],
    }
    assert openai.normalise(row) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "tool_calls": CALL},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            ANSWER,
        ],
        "tools": TOOLS,
    }


@pytest.mark.parametrize(
    ("flag", "train"),
    [({"weight": 0}, False), ({"weight": 1}, True), ({"train": False}, False), ({}, None)],
)
def test_openai_weight_is_the_message_own_flag(flag: dict[str, Any], train: bool | None) -> None:
    messages = openai.normalise({"messages": [USER, {**ANSWER, **flag}]})["messages"]
    assert messages[1].get("train") is train


def test_conversation_may_open_with_the_assistant() -> None:
    row = {"messages": [ANSWER, USER, ANSWER]}
    assert openai.normalise(row) == {"messages": [ANSWER, USER, ANSWER], "tools": None}


def test_sharegpt_row_with_tools_as_llama_factory_writes_it() -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    row = {
        "conversations": [
            {"from": "human", "value": USER["content"]},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": '{"temperature": 3}'},
            {"from": "gpt", "value": ANSWER["content"]},
        ],
        "system": "Be brief.",
        "tools": json.dumps([TOOL]),
    }
    assert sharegpt.normalise(row) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "tool_calls": CALL.replace('"id":"c1",', "")},
            {"role": "tool", "content": '{"temperature": 3}'},
            ANSWER,
        ],
        "tools": TOOLS,
    }


@pytest.mark.parametrize("tools", ["", "[]", None, []])
def test_no_tools_in_any_writing(tools: Any) -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert sharegpt.normalise({**row, "tools": tools})["tools"] is None


@pytest.mark.parametrize(
    ("given", "question"),
    [({"input": "Bonjour"}, "Translate.\nBonjour"), ({"input": ""}, "Translate.")],
)
def test_alpaca_input_follows_the_instruction_on_its_own_line(
    given: dict[str, str], question: str
) -> None:
    row = {"instruction": "Translate.", "output": "Hello", **given}
    assert alpaca.normalise(row)["messages"] == [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "Hello"},
    ]


def test_alpaca_history_comes_before_and_system_first() -> None:
    row = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    messages = alpaca.normalise(row)["messages"]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]


def test_text_is_kept_as_it_is() -> None:
    assert text.normalise({"text": "  a\n"}) == {"text": "  a\n"}


GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
ASKED = {"role": "user", "content": "q"}
PAIR = {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD], "tools": None}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": "q", "chosen": "good", "rejected": "bad"}, id="strings"),
        pytest.param({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, id="messages"),
        pytest.param({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, id="implicit prompt"),
        pytest.param(
            {"prompt": "q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, id="prompt repeated"
        ),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            id="llama-factory",
        ),
    ],
)
def test_preference_pairs_in_every_published_writing(row: dict[str, Any]) -> None:
    assert preference.normalise(row) == PAIR


def test_preference_answers_keep_their_own_further_turns() -> None:
    row = {"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, GOOD, ASKED, BAD]}
    assert preference.normalise(row) == {
        "prompt": [ASKED, GOOD, ASKED],
        "chosen": [GOOD],
        "rejected": [BAD],
        "tools": None,
    }


def test_equal_answers_are_a_pair_still_so_that_tokens_can_name_the_row() -> None:
    row = {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}
    assert preference.normalise(row) == {**PAIR, "rejected": [GOOD]}
