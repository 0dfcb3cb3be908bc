"""`transform`: a user's function over rows, its code in the key."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat, make_dataset, read_dataset
from engine.space import Space
from ftbuild.api import Function
from ftbuild.errors import FtbuildError, RuleError
from ftbuild.kinds import Artifact
from ftbuild.testing import run_rule
from ftbuild_rules.data.transform import transform


def transformed(made: Artifact, code: str, directory: Path, **params: Any) -> Artifact:
    file = directory / "rows.py"
    file.write_text(code)
    inputs = {"dataset": made, "function": Function(file, "change", "rows.py:change")}
    return run_rule(transform, inputs, params, directory)


def test_rows_are_changed_dropped_and_multiplied(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, [{"text": text, "n": 1} for text in "abc"], "text")
    code = (
        "def change(row):\n"
        "    if row['text'] == 'a':\n        return None\n"
        "    if row['text'] == 'b':\n        return [row, {'text': 'B', 'metadata': {'n': 2}}]\n"
        "    row['text'] += '!'\n    return row\n"
    )
    found = read_dataset(transformed(made, code, tmp_path))
    assert [(row["text"], row["metadata"]) for row in found] == [
        ("b", '{"n":1}'),
        ("B", '{"n":2}'),
        ("c!", '{"n":1}'),
    ]


def test_function_that_changes_nothing_gives_the_same_dataset(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "1"}
    row = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [call], "reasoning_content": "Hm."},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {
                "role": "assistant",
                "content": "Two",
                "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}],
            },
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "id": 7,
    }
    made = make_dataset(tmp_path, [row, chat("a", "b")])
    code = "def change(row):\n    assert isinstance(row['metadata'], dict)\n    return row\n"
    assert transformed(made, code, tmp_path).digest == made.digest


def test_form_may_change(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, [{"text": "Q: 2+2? A: 4"}], "text")
    code = (
        "def change(row):\n"
        "    question, answer = row['text'].removeprefix('Q: ').split(' A: ')\n"
        "    return {'messages': [{'role': 'user', 'content': question},"
        " {'role': 'assistant', 'content': answer}]}\n"
    )
    (row,) = read_dataset(transformed(made, code, tmp_path, form="messages"))
    assert [message["content"] for message in row["messages"]] == ["2+2?", "4"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return row['x']", "`rows.py:change` fails: KeyError: 'x' (row 0)"),
        ("return 3", "`rows.py:change` returns no row for row 0: it is a number"),
        ("return {'txt': 'a'}", "returns no row for row 0: it has `txt`; the form has `text`"),
        ("return {'text': ''}", "returns no row for row 0: `text` is empty"),
        (
            "return {'text': 'a', 'metadata': {'x': float('nan')}}",
            "returns no row for row 0: Out of range float values are not JSON compliant",
        ),
        ("return None", "`rows.py:change` leaves no row"),
    ],
)
def test_what_a_function_does_wrong_is_said(body: str, message: str, tmp_path: Path) -> None:
    made = make_dataset(tmp_path, [{"text": "a"}], "text")
    with pytest.raises(RuleError) as caught:
        transformed(made, f"def change(row):\n    {body}\n", tmp_path)
    assert message in str(caught.value)


def test_place_of_a_failure_is_the_line_of_the_users_file(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, [{"text": "a"}], "text")
    with pytest.raises(RuleError) as caught:
        transformed(made, "import json\n\ndef change(row):\n    return row['x']\n", tmp_path)
    assert str(caught.value.problems[0].where) == "rows.py:4"


MANIFEST = """[dataset.rows]
source = "rows.jsonl"
format = "text"

[transform.changed]
dataset = "rows"
function = "code/change.py:change"
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    root = tmp_path / "space"
    root.mkdir()
    made = Space(root, tmp_path / "store")
    made.write("rows.jsonl", '{"text": "a"}\n')
    made.write("code/change.py", CODE)
    made.write("code/words.py", "MARK = '!'\n")
    made.manifest(MANIFEST)
    return made


CODE = """from words import MARK

def change(row):
    return {**row, "text": row["text"] + MARK}
"""


def test_code_of_the_function_and_of_what_it_imports_is_in_the_key(space: Space) -> None:
    assert space.make() == ["rows", "changed"]
    assert space.make() == []
    space.edit("code/change.py", "def change(row):", 'def change(row):  # better\n    """Mark."""')
    assert space.make() == []  # a comment and a docstring
    space.edit("code/words.py", "'!'", "'?'")
    assert space.make() == ["changed"]
    shards = (space.root / "ftbuild-out" / "changed").resolve()
    index = json.loads((shards / "dataset.json").read_text())
    assert index["rows"] == 1
    assert b"a?" in (shards / index["shards"][0][0]).read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("code/change.py:chang", "error[E0405]: `code/change.py` has no function `chang`"),
        ("code/chang.py:change", "error[E0401]: there is no file or folder `code/chang.py`"),
        ("code/change.py", "error[E0202]: `function` should be a file and a function in it"),
        ("../space/../other.py:f", "error[E0401]: there is no file or folder"),
    ],
)
def test_function_that_is_not_there_is_an_error_of_the_manifest(
    space: Space, value: str, message: str
) -> None:
    space.edit("FTBUILD.toml", "code/change.py:change", value)
    with pytest.raises(FtbuildError) as caught:
        space.build()
    assert caught.value.render().startswith(message)
