"""How datasets and tokens look: the JSON in full, the lines by their text and style."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from chat_kit import CHATML, IM_END, IM_START, chat, make_dataset, make_model
from ftbuild.digest import hash_bytes
from ftbuild.errors import RuleError
from ftbuild.kinds import Artifact
from ftbuild.testing import run_rule
from ftbuild.view import View
from ftbuild_rules.tokens.tokens import tokens
from ftbuild_rules.viewers import dataset as dataset_viewer
from ftbuild_rules.viewers import tokens as tokens_viewer

_numbers = itertools.count()
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "id": 1}
SIXTY = [chat(f"What is {n} plus {n}?", f"It is {2 * n}.", id=n) for n in range(60)]


def dataset_of(directory: Path, rows: list[Any]) -> Artifact:
    name = "preference" if "chosen" in rows[0] else "openai"
    return make_dataset(directory / str(next(_numbers)), rows, name)


def tokens_of(directory: Path, rows: list[Any], **params: Any) -> Artifact:
    here = directory / str(next(_numbers))
    inputs = {"dataset": dataset_of(here, rows), "model": make_model(here / "model")}
    return run_rule(tokens, inputs, params, here)


def marked(view: View) -> list[str]:
    """Return the lines with the style before each span: `[dim]user[green]Hello`."""
    return ["".join(f"[{span.style}]{span.text}" for span in line) for line in view.lines]


def test_figures_of_a_dataset(tmp_path: Path) -> None:
    made = dataset_of(tmp_path, [chat("Hi", "Hello")])
    size_bytes = (made.path / "data" / "train-00000.arrow").stat().st_size
    view = dataset_viewer.inspect(made)
    assert view.data == {
        "form": "messages",
        "rows": 1,
        "bytes": size_bytes,
        "shards": [{"name": "data/train-00000.arrow", "rows": 1}],
    }
    assert marked(view)[:3] == [
        "[dim]form    []messages",
        "[dim]rows    []1",
        "[dim]shards  []1 of 1 to 1 rows",
    ]


def test_row_of_a_dataset(tmp_path: Path) -> None:
    row = chat("Hi", "Hello\nyou", id=7)
    row["messages"][1]["weight"] = 1
    view = dataset_viewer.inspect(dataset_of(tmp_path, [chat("a", "b"), row]), 1)
    assert view.data == {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello\nyou", "train": True},
        ],
        "tools": None,
        "metadata": {"id": 7},
    }
    assert marked(view) == [
        "[cyan]user",
        "[]  []Hi",
        "[green]assistant (trained)",
        "[]  []Hello",
        "[]  []you",
        '[dim]metadata: [dim]{"id": 7}',
    ]


def test_row_of_a_preference_dataset(tmp_path: Path) -> None:
    view = dataset_viewer.inspect(dataset_of(tmp_path, [PAIR]), 0)
    assert view.data == {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "assistant", "content": "Go"}],
        "tools": None,
        "metadata": {"id": 1},
    }


@pytest.mark.parametrize("row", [60, -1])
def test_row_that_is_not_there(row: int, tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=rf"^there is no row {row}: the rows are 0 to 59$"):
        dataset_viewer.inspect(dataset_of(tmp_path, SIXTY), row)


def test_every_row_is_found_in_its_shard(tmp_path: Path) -> None:
    made = dataset_of(tmp_path, SIXTY)
    found = [dataset_viewer.inspect(made, n).data["metadata"]["id"] for n in range(60)]
    assert found == list(range(60))


def test_difference_of_two_datasets(tmp_path: Path) -> None:
    edited = [*SIXTY[:10], chat("What is 10 plus 10?", "Twenty.", id=10), *SIXTY[12:], PAIR_ROW]
    view = dataset_viewer.diff(dataset_of(tmp_path, SIXTY), dataset_of(tmp_path, edited))
    assert {name: view.data[name] for name in ("added", "removed", "changed")} == {
        "added": 1,
        "removed": 1,
        "changed": 1,
    }
    first = view.data["examples"][0]
    assert first["a"]["messages"][1]["content"] == "It is 20."
    assert first["b"]["messages"][1]["content"] == "Twenty."
    assert marked(view)[:3] == [
        "[green]+ 1 row added",
        "[red]- 1 row removed",
        "[yellow]~ 1 row changed",
    ]


PAIR_ROW = chat("New?", "Yes.", id=99)


def test_equal_datasets(tmp_path: Path) -> None:
    made = dataset_of(tmp_path, SIXTY)
    view = dataset_viewer.diff(made, made)
    assert view.data == {"added": 0, "removed": 0, "changed": 0, "examples": []}
    assert marked(view) == ["[dim]the rows are equal"]


def test_row_of_tokens_in_the_form_that_tools_rely_on(tmp_path: Path) -> None:
    view = tokens_viewer.inspect(tokens_of(tmp_path, [chat("Hi", "é")]), 0)
    masked = [IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\n"]
    assert view.data == {
        "input_ids": [*masked, 0xC3, 0xA9, IM_END, *b"\n"],
        "labels": [-100] * len(masked) + [0xC3, 0xA9, IM_END, -100],
        "tokens": [
            "<|im_start|>", *"userĊHi", "<|im_end|>", "Ċ", "<|im_start|>", *"assistantĊ",
            "Ã", "©", "<|im_end|>", "Ċ",
        ],
    }  # fmt: skip
    assert marked(view) == [
        "[dim]<|im_start|>user",
        "[dim]Hi<|im_end|>",
        "[dim]<|im_start|>assistant",
        "[green]é<|im_end|>",
        "",
    ]


def test_row_of_preference_tokens_is_two_sequences(tmp_path: Path) -> None:
    view = tokens_viewer.inspect(tokens_of(tmp_path, [PAIR]), 0)
    prompt = [IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\n"]
    for name, text in (("chosen", b"Hello"), ("rejected", b"Go")):
        assert view.data[name]["input_ids"] == [*prompt, *text, IM_END, *b"\n"]
        assert view.data[name]["labels"] == [-100] * len(prompt) + [*text, IM_END, *b"\n"]
        assert len(view.data[name]["tokens"]) == len(view.data[name]["labels"])
    assert set(view.data) == {"chosen", "rejected"}
    assert "[bold]chosen" in marked(view)


def test_figures_of_tokens(tmp_path: Path) -> None:
    view = tokens_viewer.inspect(tokens_of(tmp_path, [chat("Hi", "Hello"), chat("Hi", "Hello!")]))
    assert view.data == {
        "form": "sft",
        "rows": 2,
        "tokens": 57,
        "trainable_tokens": 13,
        "max_length": 1024,
        "dropped": 0,
        "truncated": 0,
        "chat_template": hash_bytes(CHATML.encode()),
        "shards": 1,
        "lengths": [[3 * n, 3 * n + 2, 0] for n in range(9)] + [[27, 29, 2]],
    }
    assert "[dim]trained on        [green]22.8%" in marked(view)


def test_difference_of_two_tokens(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello"), chat("Hi", "Hello!")]
    before, after = tokens_of(tmp_path, rows), tokens_of(tmp_path, rows, train_on_eot="none")
    view = tokens_viewer.diff(before, after)
    assert (view.data["added"], view.data["removed"], view.data["changed"]) == (0, 0, 2)
    assert [example["what"] for example in view.data["examples"]] == ["labels alone changed"] * 2
    assert marked(view)[:2] == [
        "[yellow]~ 2 rows changed",
        "[bold]row 0: labels alone changed, first at 26",
    ]
    assert "[red]- [green]Hello<|im_end|>" in marked(view)
    assert "[green]+ [green]Hello[dim]<|im_end|>" in marked(view)


def tokens_in(directory: Path, form: str, rows: list[Any], **params: Any) -> Artifact:
    here = directory / str(next(_numbers))
    inputs = {"dataset": make_dataset(here, rows, form), "model": make_model(here / "model")}
    return run_rule(tokens, inputs, params, here)


PROMPT = [IM_START, *b"user\nHi", IM_END, *b"\n", IM_START, *b"assistant\n"]
PROMPT_LINES = [
    "[dim]<|im_start|>user",
    "[dim]Hi<|im_end|>",
    "[dim]<|im_start|>assistant",
]


def test_row_of_unpaired_tokens_says_its_label(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": "Yo", "label": label} for label in (True, False)]
    made = tokens_in(tmp_path, "unpaired", rows)
    for number, name in enumerate(("good", "bad")):
        view = tokens_viewer.inspect(made, number)
        answer = [*b"Yo", IM_END, *b"\n"]
        assert {k: v for k, v in view.data.items() if k != "tokens"} == {
            "input_ids": PROMPT + answer,
            "labels": [-100] * len(PROMPT) + answer,
            "label": name == "good",
        }
        assert marked(view) == [f"[bold]{name} answer", *PROMPT_LINES, "[green]Yo<|im_end|>", ""]
    figures = tokens_viewer.inspect(made).data
    assert (figures["form"], figures["trainable_tokens"]) == ("unpaired", 8)
    assert figures["lengths"][-1] == [24, 26, 2]


def test_row_of_stepwise_tokens_says_which_step_is_right(tmp_path: Path) -> None:
    row = {"prompt": "1+1+1?", "completions": ["2", "2+1=4"], "labels": [True, False]}
    view = tokens_viewer.inspect(tokens_in(tmp_path, "stepwise", [row]), 0)
    assert view.data["labels"] == [-100] * 8 + [1] + [-100] * 5 + [0]
    assert set(view.data) == {"input_ids", "labels", "tokens"}
    assert marked(view) == ["[]<s>1+1+1?2[green] ✓", "[]2+1=4[red] ✗"]


def test_row_of_prompts_shows_what_rewards_read(tmp_path: Path) -> None:
    made = tokens_in(tmp_path, "prompts", [{"prompt": "Hi", "answer": "é", "id": 7}])
    view = tokens_viewer.inspect(made, 0)
    assert {k: v for k, v in view.data.items() if k != "tokens"} == {
        "input_ids": PROMPT,
        "labels": [-100] * len(PROMPT),
        "metadata": {"answer": "é", "id": 7},
    }
    assert marked(view) == [*PROMPT_LINES, "", '[dim]answer: [dim]"é"', "[dim]id: [dim]7"]
    assert tokens_viewer.inspect(made).data["form"] == "prompts"


def test_row_of_segments_and_of_given_ids(tmp_path: Path) -> None:
    items = [{"text": "Q ", "train": False}, {"text": "A", "train": True}]
    view = tokens_viewer.inspect(tokens_in(tmp_path, "segments", [{"segments": items}]), 0)
    assert marked(view) == ["[dim]<s>Q [green]A</s>"]
    given = {"input_ids": [97, 98, 259], "labels": [-100, 98, 259]}
    view = tokens_viewer.inspect(tokens_in(tmp_path, "tokenized", [given]), 0)
    assert view.data == {**given, "tokens": ["a", "b", "</s>"]}
    assert marked(view) == ["[dim]a[green]b</s>"]


def test_packed_row_shows_its_documents(tmp_path: Path) -> None:
    items = [[{"text": text, "train": True}] for text in ("A", "B")]
    rows = [{"segments": item} for item in items]
    view = tokens_viewer.inspect(tokens_in(tmp_path, "segments", rows, packing="ffd"), 0)
    assert view.data["seq_lengths"] == [3, 3]
    assert len(view.data["input_ids"]) == len(view.data["labels"]) == 6
    assert marked(view) == [
        "[bold]document 1 of 2",
        "[dim]<s>[green]A</s>",
        "[bold]document 2 of 2",
        "[dim]<s>[green]B</s>",
    ]


@pytest.mark.parametrize(
    ("form", "row", "expected"),
    [
        (
            "unpaired",
            {"prompt": "Hi", "completion": "Yo", "label": False},
            ["[bold]prompt", "[cyan]user", "[]  []Hi", "[bold]completion", "[green]assistant",
             "[]  []Yo", "[dim]label: [dim]false"],
        ),
        (
            "stepwise",
            {"prompt": "1+1?", "completions": ["2", "3"], "labels": [True, False]},
            ["[]1+1?", "[]2[green] ✓", "[]3[red] ✗"],
        ),
        (
            "prompts",
            {"prompt": "Hi", "answer": 4},
            ["[bold]prompt", "[cyan]user", "[]  []Hi", '[dim]metadata: [dim]{"answer": 4}'],
        ),
        (
            "segments",
            {"segments": [{"text": "a\nb", "train": False}, {"text": "c", "train": True}]},
            ["[dim]a", "[dim]b[green]c"],
        ),
        (
            "tokenized",
            {"input_ids": [1, 2], "labels": [-100, 2]},
            ["[dim]input_ids: [dim][1, 2]", "[dim]labels: [dim][-100, 2]"],
        ),
    ],
)  # fmt: skip
def test_row_of_a_dataset_of_each_form(
    form: str, row: Any, expected: list[str], tmp_path: Path
) -> None:
    made = make_dataset(tmp_path, [row], form)
    assert marked(dataset_viewer.inspect(made, 0)) == expected


def test_parts_of_a_message_with_flags_of_their_own(tmp_path: Path) -> None:
    flags = [
        {"begin_offset": 0, "end_offset": 1, "train": False},
        {"begin_offset": 3, "end_offset": 4, "train": True},
    ]
    row = chat("Hi", "Hello\nyou")
    row["messages"][1]["train_detail"] = flags
    view = dataset_viewer.inspect(make_dataset(tmp_path, [row]), 0)
    assert marked(view)[2:] == [
        "[green]assistant",
        "[]  [dim]He[]l[green]lo",
        "[]  []you",
    ]


def test_difference_of_tokens_of_other_forms(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "Yo", "label": True}
    before, after = (
        tokens_in(tmp_path, "unpaired", [{**row, "label": label}]) for label in (True, False)
    )
    view = tokens_viewer.diff(before, after)
    assert view.data["examples"][0]["what"] == "label changed"
    assert "[red]- good answer" in marked(view)
    assert "[green]+ bad answer" in marked(view)
