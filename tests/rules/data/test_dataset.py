"""`dataset`: files -> rows in their normal form, the same bytes whatever file they come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat, make_dataset, write_rows
from ftbuild.digest import hash_file
from ftbuild.rule import AttributeProblem
from ftbuild.testing import context, run_rule, source
from ftbuild_rules.data.dataset import dataset

ROWS = [
    chat("Hi", "Hello!", id=7),
    chat("Grüß dich, 世界 🌍", "Wie geht's?", score=0.5, tags=["a", None]),
    chat("1\n2", "3", id=None),
]


def read(path: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def test_rows_are_kept_in_their_order_with_their_metadata(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, ROWS)
    absent = ("name", "tool_calls", "tool_call_id", "train", "reasoning_content", "train_detail")
    message = dict.fromkeys(absent)
    rows = read(made.path / "data" / "train-00000.arrow").to_pylist()
    assert rows == [
        {
            "messages": [
                {"role": "user", "content": row["messages"][0]["content"], **message},
                {"role": "assistant", "content": row["messages"][1]["content"], **message},
            ],
            "tools": None,
            "metadata": metadata,
        }
        for row, metadata in zip(
            ROWS, ['{"id":7}', '{"score":0.5,"tags":["a",null]}', "{}"], strict=True
        )
    ]
    assert (made.path / "dataset.json").read_bytes() == (
        b'{"form":"messages","rows":3,"shards":[["data/train-00000.arrow",3]]}\n'
    )


def test_bytes_of_a_dataset_are_fixed(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, ROWS)
    file = made.path / "data" / "train-00000.arrow"
    assert hash_file(file) == "45bf46144d0d28a510cd208cf03e4fd55b747b35a8041dc9e93cba55a98a39b4"


def test_array_and_lines_give_the_same_dataset(tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "rows.jsonl", ROWS)
    array, indented = tmp_path / "rows.json", tmp_path / "indented.json"
    array.write_text(json.dumps(ROWS))
    indented.write_text(json.dumps(ROWS, indent=4, ensure_ascii=False), "utf-8")
    windows = tmp_path / "windows.jsonl"
    windows.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n\r\n"))
    shuffled = write_rows(
        tmp_path / "shuffled.jsonl", [dict(sorted(row.items(), reverse=True)) for row in ROWS]
    )
    digests = {
        run_rule(dataset, {"source": source(file)}, {"format": "openai"}, tmp_path).digest
        for file in (lines, array, indented, windows, shuffled)
    }
    assert len(digests) == 1


def test_array_longer_than_a_block_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [{"text": f"é{number}" + "x" * 4000, "id": number} for number in range(1000)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    made = run_rule(
        dataset, {"source": source(tmp_path / "rows.json")}, {"format": "text"}, tmp_path
    )
    assert made.digest == make_dataset(tmp_path / "lines", rows, "text").digest


def test_files_are_read_in_their_order(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "z.jsonl", ROWS[:1])
    second = write_rows(tmp_path / "a.jsonl", ROWS[1:])
    made = run_rule(dataset, {"source": source(first, second)}, {"format": "openai"}, tmp_path)
    assert made.digest == make_dataset(tmp_path / "one", ROWS).digest


def test_columns_are_renamed_and_the_renamed_one_is_no_metadata(tmp_path: Path) -> None:
    rows = [{"question": "2+2?", "answer": "4", "output": "unused"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"instruction": "question", "output": "answer"}
    params = {"format": "alpaca", "columns": columns}
    made = run_rule(dataset, {"source": source(file)}, params, tmp_path)
    (row,) = read(made.path / "data" / "train-00000.arrow").to_pylist()
    assert [message["content"] for message in row["messages"]] == ["2+2?", "4"]
    assert row["metadata"] == '{"output":"unused"}'


def test_column_that_the_format_lacks_cannot_be_renamed(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    params = {"format": "text", "columns": {"message": "text"}}
    with pytest.raises(AttributeProblem, match="format `text` has no column `message`") as caught:
        run_rule(dataset, {"source": source(file)}, params, tmp_path)
    assert caught.value.attribute == "columns"
    assert caught.value.fix == "use `text`, each with the name it has in your rows"


def test_figures_of_the_rows_are_recorded(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    make_dataset(tmp_path / "d", ROWS, ctx=ctx)
    assert ctx.known == {"rows": 3, "shards": 1}


def test_datasets_library_opens_it_in_row_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    texts = [f"text number {number}" for number in range(3000)]
    made = make_dataset(tmp_path / "d", [{"text": text} for text in texts], "text")
    assert len(list((made.path / "data").iterdir())) > 1
    loaded = datasets.load_dataset(str(made.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"][:] == texts
    assert loaded.column_names == ["text", "metadata"]
