"""Each format, on rows as they are published, against the normal form written by hand."""

import json
from typing import Any

import pytest

from ftbuild_rules.formats import (
    alpaca,
    openai,
    preference,
    prompt_completion,
    prompts,
    segments,
    sharegpt,
    stepwise,
    text,
    tokenized,
    unpaired,
)

USER = {"role": "user", "content": "How warm is it in Oslo?"}
ANSWER = {"role": "assistant", "content": "3 degrees."}
CALL = '[{"id":"c1","type":"function","function":{"name":"weather","arguments":{"city":"Oslo"}}}]'
TOOL = {"name": "weather", "description": "Temperature", "parameters": {"type": "object"}}
TOOLS = (
    '[{"type":"function","function":'
    '{"name":"weather","description":"Temperature","parameters":{"type":"object"}}}]'
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
        pytest.param(
            {
                "chosen": "\n\nHuman: q\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: bad",
            },
            id="hh-rlhf",
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


def test_transcripts_are_cut_at_their_speakers_and_nowhere_else() -> None:
    begin = "\n\nHuman: Human: or Assistant:?\n\nAssistant:  Neither.\n\nReally.\n\nHuman: Why?"
    row = {"chosen": begin + "\n\nAssistant: So it is. ", "rejected": begin + "\n\nAssistant: So?"}
    assert preference.normalise(row) == {
        "prompt": [
            {"role": "user", "content": "Human: or Assistant:?"},
            {"role": "assistant", "content": " Neither.\n\nReally."},
            {"role": "user", "content": "Why?"},
        ],
        "chosen": [{"role": "assistant", "content": "So it is. "}],
        "rejected": [{"role": "assistant", "content": "So?"}],
        "tools": None,
    }


def test_equal_answers_are_a_pair_still_so_that_tokens_can_name_the_row() -> None:
    row = {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}
    assert preference.normalise(row) == {**PAIR, "rejected": [GOOD]}


def test_preference_messages_as_texts_of_json() -> None:
    row = {"prompt": json.dumps([ASKED]), "chosen": json.dumps([GOOD]), "rejected": "bad"}
    assert preference.normalise(row) == PAIR


def test_text_that_looks_like_a_list_is_still_a_text() -> None:
    row = {"prompt": "q", "chosen": "[1, 2]", "rejected": "bad"}
    chosen = [{"role": "assistant", "content": "[1, 2]"}]
    assert preference.normalise(row) == {**PAIR, "chosen": chosen}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_by_three_names(key: str) -> None:
    messages = openai.normalise({"messages": [USER, {**ANSWER, key: "Cold."}]})["messages"]
    assert messages[1] == {**ANSWER, "reasoning_content": "Cold."}


def test_train_detail_as_axolotl_documents_it_ends_with_the_last_character_meant() -> None:
    detail = [
        {"begin_offset": 0, "end_offset": 8, "train": False},
        {"begin_offset": 9, "end_offset": 18, "train": True},
        {"begin_offset": 19, "end_offset": 23, "train": False},
    ]
    message = {"from": "gpt", "value": "Hello, nice to meet you!", "train_detail": detail}
    row = {"conversations": [{"from": "human", "value": "Hi"}, message]}
    assert sharegpt.normalise(row)["messages"][1] == {
        "role": "assistant",
        "content": "Hello, nice to meet you!",
        "train_detail": "[[0,9,false],[9,19,true],[19,24,false]]",
    }


def test_flags_of_parts_are_ranges_of_the_joined_text() -> None:
    parts = [
        {"type": "text", "text": "é🌍", "train": False},
        {"type": "text", "text": "ab"},
        {"type": "text", "text": "c", "train": True},
    ]
    message = {"role": "assistant", "content": parts}
    assert openai.normalise({"messages": [USER, message]})["messages"][1] == {
        "role": "assistant",
        "content": "é🌍abc",
        "train_detail": "[[0,2,false],[4,5,true]]",
    }


def test_prompt_and_completion_as_texts_are_segments() -> None:
    row = {"prompt": "The sky is", "completion": " blue."}
    assert prompt_completion.normalise(row) == {
        "segments": [{"text": "The sky is", "train": False}, {"text": " blue.", "train": True}]
    }


def test_prompt_and_completion_as_messages_are_a_conversation_with_a_masked_prompt() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert prompt_completion.normalise(row) == {
        "messages": [
            {**USER, "train": False},
            {**ANSWER, "train": False},
            {**USER, "train": False},
            ANSWER,
        ],
        "tools": None,
    }


@pytest.mark.parametrize("flag", ["train", "label"])
def test_segments_as_axolotl_writes_them(flag: str) -> None:
    row = {"segments": [{flag: True, "text": "<s>Hello\n"}, {flag: False, "text": "hi"}]}
    assert segments.normalise(row) == {
        "segments": [{"text": "<s>Hello\n", "train": True}, {"text": "hi", "train": False}]
    }


def test_tokenized_row_loses_its_padding() -> None:
    row = {
        "input_ids": [0, 1, 5, 2, 0],
        "labels": [-100, -100, 5, 2, -100],
        "attention_mask": [0, 1, 1, 1, 0],
    }
    assert tokenized.normalise(row) == {"input_ids": [1, 5, 2], "labels": [-100, 5, 2]}


def test_tokenized_row_without_labels_is_trained_on_wholly() -> None:
    assert tokenized.normalise({"input_ids": "[1, 5]"}) == {"input_ids": [1, 5], "labels": [1, 5]}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": "q", "completion": "good"}, id="trl"),
        pytest.param({"prompt": [ASKED], "completion": [GOOD]}, id="trl messages"),
        pytest.param({"messages": [ASKED, GOOD]}, id="llama-factory"),
    ],
)
@pytest.mark.parametrize(("label", "value"), [(True, True), ("false", False), (1, True)])
def test_unpaired_rows_in_every_published_writing(
    row: dict[str, Any], label: Any, value: bool
) -> None:
    expected = {"prompt": [ASKED], "completion": [GOOD], "label": value, "tools": None}
    assert unpaired.normalise({**row, "label": label}) == expected


def test_stepwise_row_as_trl_publishes_it() -> None:
    row = {
        "prompt": "Which number is larger, 9.8 or 9.11?",
        "completions": ["The fractional part of 9.8 is 0.8.", "So 9.11 is larger."],
        "labels": [True, False],
    }
    assert stepwise.normalise(row) == row


@pytest.mark.parametrize("prompt", ["q", [ASKED]])
def test_prompts_end_where_the_model_answers(prompt: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    assert prompts.normalise({"prompt": prompt, "system": "Be brief."}) == {
        "prompt": [system, ASKED],
        "tools": None,
    }


def test_keys_of_tools_and_arguments_stay_in_their_order() -> None:
    call = {"name": "f", "arguments": '{"z": 1, "a": {"y": 2, "b": 3}}'}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            ANSWER,
        ],
        "tools": '[{"function": {"parameters": {"z": 1, "a": 2}, "name": "f"}, "type": "x"}]',
    }
    made = openai.normalise(row)
    assert made["messages"][1]["tool_calls"] == (
        '[{"type":"function","function":{"name":"f","arguments":{"z":1,"a":{"y":2,"b":3}}}}]'
    )
    assert made["tools"] == ('[{"function":{"parameters":{"z":1,"a":2},"name":"f"},"type":"x"}]')
