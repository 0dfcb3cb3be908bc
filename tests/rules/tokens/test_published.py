"""Rows as those who named the formats publish them, and whole files of real rows where they are."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chat_kit import CHATML, SPECIAL, make_model, read_tokens
from ftbuild.testing import run_rule, source
from ftbuild_rules.data.dataset import dataset
from ftbuild_rules.templates._named import templates
from ftbuild_rules.tokens.tokens import tokens

SHARED = Path(os.environ.get("FTBUILD_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))


def text_of(ids: list[int]) -> str:
    """Return the text of ids of the byte tokenizer, masked ones as one dot for each run."""
    out = b""
    for i in ids:
        if i == -100:
            out += b"" if out.endswith(b"\0") else b"\0"
        else:
            out += bytes([i]) if i < 256 else SPECIAL[i - 256].encode()
    return out.decode().replace("\0", "·")


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}, "format": {"type": "string"}},
            "required": ["location", "format"],
        },
    },
}
FUNCTION = {"name": "get_current_weather", "arguments": '{"location": "San Francisco, USA"}'}
SKY = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
END = "<|im_end|>"
# What is published: format, columns, the row, and of each column of labels or ids its text.
EXAMPLES: dict[str, tuple[str, dict[str, str], Any, dict[str, Any]]] = {
    # https://platform.openai.com/docs/guides/supervised-fine-tuning
    "openai": (
        "openai",
        {},
        {
            "messages": [
                {"role": "system", "content": "Marv is a factual chatbot."},
                {"role": "user", "content": "What's the capital of France?"},
                {"role": "assistant", "content": "Paris"},
            ]
        },
        {"labels": f"·Paris{END}·"},
    ),
    "openai, weights": (
        "openai",
        {},
        {
            "messages": [
                {"role": "user", "content": "What's the capital of France?"},
                {"role": "assistant", "content": "Paris", "weight": 0},
                {"role": "user", "content": "Can you be more sarcastic?"},
                {"role": "assistant", "content": "Paris, as if", "weight": 1},
            ]
        },
        {"labels": f"·Paris, as if{END}·"},
    ),
    "openai, tools": (
        "openai",
        {},
        {
            "messages": [
                {"role": "user", "content": "How warm is San Francisco?"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "call_id", "type": "function", "function": FUNCTION}],
                },
                {"role": "tool", "tool_call_id": "call_id", "content": "21"},
                {"role": "assistant", "content": "21."},
            ],
            "parallel_tool_calls": False,
            "tools": [WEATHER],
        },
        {
            "labels": '·<tool_call>\n{"name": "get_current_weather", "arguments": '
            f'{{"location": "San Francisco, USA"}}}}\n</tool_call>{END}·21.{END}·'
        },
    ),
    # https://platform.openai.com/docs/guides/direct-preference-optimization
    "openai, preference": (
        "preference",
        {
            "prompt": "input.messages",
            "tools": "input.tools",
            "chosen": "preferred_output",
            "rejected": "non_preferred_output",
        },
        {
            "input": {"messages": [SKY], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [BLUE],
            "non_preferred_output": [GREEN],
        },
        {"chosen_ids": f"It is blue.{END}\n", "rejected_ids": f"It is green.{END}\n"},
    ),
    "sharegpt": (
        "sharegpt",
        {},
        {
            "id": "identity_0",
            "conversations": [
                {"from": "human", "value": "Who are you?"},
                {"from": "gpt", "value": "I am Vicuna."},
            ],
        },
        {"labels": f"·I am Vicuna.{END}·"},
    ),
    # https://github.com/tatsu-lab/stanford_alpaca
    "alpaca": (
        "alpaca",
        {},
        {"instruction": "Add.", "input": "2, 2", "output": "4", "text": "Below is …"},
        {"labels": f"·4{END}·"},
    ),
    "alpaca, question and response": (
        "alpaca",
        {},
        {"question": "2+2?", "response": "4"},
        {"labels": f"·4{END}·"},
    ),
    # https://huggingface.co/docs/trl/dataset_formats
    "trl, preference": (
        "preference",
        {},
        {"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]},
        {"chosen_ids": f"It is blue.{END}\n", "rejected_ids": f"It is green.{END}\n"},
    ),
    "trl, preference with implicit prompt": (
        "preference",
        {},
        {"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]},
        {"chosen_ids": f"It is blue.{END}\n", "rejected_ids": f"It is green.{END}\n"},
    ),
    "trl, unpaired": (
        "unpaired",
        {},
        {"prompt": [SKY], "completion": [GREEN], "label": False},
        {"completion_ids": f"It is green.{END}\n", "label": False},
    ),
    "trl, stepwise": (
        "stepwise",
        {},
        {
            "prompt": "Which is larger, 9.8 or 9.11?",
            "completions": ["0.11 is greater than 0.8.", "Hence, 9.11 > 9.8."],
            "labels": [True, False],
        },
        {
            "input_ids": "<s>Which is larger, 9.8 or 9.11?0.11 is greater than 0.8.\n"
            "Hence, 9.11 > 9.8.\n"
        },
    ),
    "trl, prompt only": (
        "prompts",
        {},
        {"prompt": [SKY], "solution": "blue"},
        {
            "prompt_ids": f"<|im_start|>user\nWhat color is the sky?{END}\n<|im_start|>assistant\n",
            "metadata": '{"solution":"blue"}',
        },
    ),
    "trl, prompt and completion": (
        "prompt_completion",
        {},
        {"prompt": "The sky is", "completion": " blue."},
        {"labels": "· blue.</s>"},
    ),
    "trl, prompt and completion as messages": (
        "prompt_completion",
        {},
        {"prompt": [SKY], "completion": [BLUE]},
        {"labels": f"·It is blue.{END}·"},
    ),
    "trl, language modelling": (
        "text",
        {},
        {"text": "The sky is blue."},
        {"labels": "<s>The sky is blue.</s>"},
    ),
    # https://docs.axolotl.ai/docs/dataset-formats/template_free.html
    "axolotl, segments": (
        "segments",
        {},
        {
            "segments": [
                {"label": True, "text": "<s>Hello\n"},
                {"label": True, "text": "hi there!. "},
                {"label": False, "text": "goodbye "},
                {"label": True, "text": "farewell</s>"},
            ]
        },
        {
            "input_ids": "<s>Hello\nhi there!. goodbye farewell</s>",
            "labels": "<s>Hello\nhi there!. ·farewell</s>",
        },
    ),
    # https://docs.axolotl.ai/docs/dataset-formats/tokenized.html
    "axolotl, tokenized": (
        "tokenized",
        {},
        {"input_ids": [71, 259], "attention_mask": [1, 1], "labels": [-100, 259]},
        {"input_ids": "G</s>", "labels": "·</s>"},
    ),
    # https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html
    "llama-factory, preference": (
        "preference",
        {},
        {
            "conversations": [{"from": "human", "value": "What color is the sky?"}],
            "chosen": {"from": "gpt", "value": "It is blue."},
            "rejected": {"from": "gpt", "value": "It is green."},
        },
        {"chosen_ids": f"It is blue.{END}\n", "rejected_ids": f"It is green.{END}\n"},
    ),
    "llama-factory, kto": (
        "unpaired",
        {},
        {
            "conversations": [
                {"from": "human", "value": "What color is the sky?"},
                {"from": "gpt", "value": "It is blue."},
            ],
            "kto_tag": True,
        },
        {"completion_ids": f"It is blue.{END}\n", "label": True},
    ),
}


def tokenize(
    directory: Path, file: Path, params: dict[str, Any], template: str, **more: Any
) -> tuple[dict[str, Any], Any]:
    """Return what `dataset.json` says, and the tokens."""
    made = run_rule(dataset, {"source": source(file)}, params, directory / "rows")
    model = make_model(directory / "model", template)
    found = run_rule(
        tokens, {"dataset": made, "model": model}, {"max_length": 1 << 17, **more}, directory
    )
    return json.loads((made.path / "dataset.json").read_bytes()), found


@pytest.mark.parametrize(
    ("format_name", "columns", "row", "expected"), EXAMPLES.values(), ids=EXAMPLES
)
def test_published_row_loads_as_it_is(
    format_name: str, columns: dict[str, str], row: Any, expected: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    template = templates()["qwen2.5"] if "tools" in row else CHATML
    _, made = tokenize(tmp_path, file, {"format": format_name, "columns": columns}, template)
    (found,) = read_tokens(made)
    texts = {
        name: text_of(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in expected
    }
    assert texts == expected


SOLUTIONS = "175b_verification"
# file -> how it is read, with which template, and how many rows of which form it has.
FILES: list[Any] = [
    ("alpaca_en_demo.json", {"format": "alpaca"}, {}, (999, "messages")),
    ("dpo_en_demo.json", {"format": "preference"}, {}, (300, "preference")),
    ("kto_en_demo.json", {"format": "unpaired"}, {}, (300, "unpaired")),
    (
        "glaive_toolcall_en_demo.json",
        {"format": "sharegpt"},
        {"chat_template": "qwen2.5", "allow": ["template_tokens"]},
        (300, "messages"),
    ),
    ("gsm8k_test.jsonl", {"format": "alpaca"}, {}, (1319, "messages")),
    ("gsm8k_test.jsonl", {"format": "prompts"}, {}, (1319, "prompts")),
    (
        "gsm8k_model_solutions.jsonl",
        {
            "format": "unpaired",
            "columns": {
                "prompt": "question",
                "completion": f"{SOLUTIONS}.solution",
                "label": f"{SOLUTIONS}.is_correct",
            },
        },
        {},
        (1319, "unpaired"),
    ),
    (
        "gsm8k_model_solutions.jsonl",
        {
            "format": "preference",
            "columns": {
                "prompt": "question",
                "chosen": "ground_truth",
                "rejected": f"{SOLUTIONS}.solution",
            },
        },
        {"allow": ["equal_pairs"]},
        (1319, "preference"),
    ),
    pytest.param(
        "gsm8k_train.jsonl",
        {
            "format": "prompt_completion",
            "prompt": "Question: {question}\nAnswer: ",
            "columns": {"completion": "answer"},
        },
        {},
        (7473, "segments"),
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "shakespeare.txt",
        {"format": "text"},
        {"packing": "wrapped"},
        (32777, "text"),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "params", "more", "expected"), FILES)
def test_real_file_loads_as_it_is(
    name: str, params: Any, more: Any, expected: tuple[int, str], tmp_path: Path
) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not here")
    index, made = tokenize(tmp_path, SHARED / name, params, CHATML, **more)
    assert (index["rows"], index["form"]) == expected
    assert len(read_tokens(made)) > 0
