"""Whatever the rows are written in: the same rows give the same dataset, broken files an error."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat, make_dataset, read_dataset
from ftbuild.digest import Digest
from ftbuild.errors import RuleError
from ftbuild.testing import context, run_rule, source
from ftbuild_rules.data.dataset import dataset

TEXTS = [
    {"text": "Grüß dich, 世界 🌍", "id": 7, "tags": ["a", "b"]},
    {"text": 'a "quoted", word', "id": 8, "note": "x"},
    {"text": "two\nlines", "id": 9},
]
CSV = (
    'text,id,tags,note\n"Grüß dich, 世界 🌍",7,"[""a"",""b""]",\n'
    '"a ""quoted"", word",8,,x\n"two\nlines",9,,\n'
)
TSV = (
    'text\tid\ttags\tnote\nGrüß dich, 世界 🌍\t7\t"[""a"",""b""]"\t\n'
    '"a ""quoted"", word"\t8\t\tx\n"two\nlines"\t9\t\t\n'
)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TEXTS).encode()


def build(directory: Path, file: Path, **params: Any) -> Digest:
    given = {"format": "text", **params}
    return run_rule(dataset, {"source": source(file)}, given, directory).digest


def table() -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(
        TEXTS,
        schema=pa.schema(
            {"text": pa.string(), "id": pa.int64(), "tags": pa.list_(pa.string()), "note": "str"}
        ),
    )


def write_parquet(path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table(), path)


def write_arrow(path: Path) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(path, table().schema) as writer:
        writer.write_table(table())


def write_stream(path: Path) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table())


def write_feather(path: Path) -> None:
    from pyarrow import feather

    feather.write_feather(table(), path)


def write_zst(path: Path) -> None:
    import pyarrow as pa

    path.write_bytes(pa.compress(LINES, codec="zstd", asbytes=True))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    item = tarfile.TarInfo(name)
    item.size = len(content)
    archive.addfile(item, io.BytesIO(content))


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        add(archive, "data/rows.jsonl", LINES)


def write_shard(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(TEXTS):
            add(archive, f"{number:04d}.json", json.dumps(row, indent=2).encode())


def write_parquet_in_zip(path: Path) -> None:
    write_parquet(path.with_suffix(".part"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path.with_suffix(".part"), "part.parquet")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_bytes(LINES),
    "rows.json": lambda path: path.write_text(json.dumps(TEXTS)),
    "indented.json": lambda path: path.write_text(
        "\n".join(json.dumps(row, indent=2) for row in TEXTS)
    ),
    "rows.csv": lambda path: path.write_text(CSV),
    "windows.csv": lambda path: path.write_bytes(
        b"\xef\xbb\xbf" + CSV.encode().replace(b"9,,\n", b"9,,\r\n")
    ),
    "rows.tsv": lambda path: path.write_text(TSV),
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
    "stream.arrow": write_stream,
    "rows.feather": write_feather,
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "rows.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "rows.jsonl.zst": write_zst,
    "rows.tar": write_tar,
    "rows.tgz": write_tar,
    "shard.tar": write_shard,
    "rows.zip": write_parquet_in_zip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_same_rows_give_the_same_dataset_from_every_type_of_file(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    types = {"id": "integer", "tags": "json"}
    expected = make_dataset(tmp_path / "lines", TEXTS, "text").digest
    assert build(tmp_path, tmp_path / name, types=types) == expected


def test_chats_in_columns_that_hold_json_texts(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello, you"), chat("1", "2", "3", "4")]
    cells = [json.dumps(row["messages"]).replace('"', '""') for row in rows]
    (tmp_path / "rows.csv").write_text("messages\n" + "".join(f'"{cell}"\n' for cell in cells))
    expected = make_dataset(tmp_path / "lines", rows).digest
    assert build(tmp_path, tmp_path / "rows.csv", format="openai") == expected


def test_folder_of_save_to_disk_is_read_in_the_order_of_its_shards(tmp_path: Path) -> None:
    import datasets

    rows = [{"text": f"text {number}", "id": number} for number in range(50)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    expected = make_dataset(tmp_path / "lines", rows, "text").digest
    assert build(tmp_path, tmp_path / "saved") == expected


def test_several_splits_of_save_to_disk_are_to_be_named(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list(TEXTS[2:])
    both = datasets.DatasetDict({"train": split, "test": split})
    both.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RuleError, match="the folder holds several splits: `test`, `train`"):
        build(tmp_path, tmp_path / "saved")


def test_folder_gives_its_files_with_rows_by_path(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "b").mkdir(parents=True)
    (folder / "LICENSE").write_text("free")
    (folder / "a.jsonl").write_text('{"text": "1"}\n')
    (folder / "b" / "c.csv").write_text("text\n2\n")
    ctx = context(tmp_path)
    made = run_rule(dataset, {"source": source(folder)}, {"format": "text"}, tmp_path, ctx=ctx)
    assert [row["text"] for row in read_dataset(made)] == ["1", "2"]
    assert ctx.logs == [f"{folder}/LICENSE holds no rows and is not read"]


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [("line", ["To be,", "  or not"]), ("document", ["To be,\n\n  or not\n"])],
)
def test_plain_text_by_line_or_by_document(
    sample_by: str, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "play.txt").write_text("To be,\n\n  or not\n")
    params = {"format": "text", "sample_by": sample_by}
    made = run_rule(dataset, {"source": source(tmp_path / "play.txt")}, params, tmp_path)
    assert [row["text"] for row in read_dataset(made)] == texts


def test_webdataset_samples_have_a_column_for_each_ending(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        add(archive, "a/1.txt", b"Hallo")
        add(archive, "a/1.json", b'{"lang": "de"}')
        add(archive, "a/1.cls", b"3")
        add(archive, "a/2.txt", b"Hello")
        add(archive, "a/2.cls", b"4")
    params = {"format": "text", "columns": {"text": "txt"}}
    made = run_rule(dataset, {"source": source(tmp_path / "shard.tar")}, params, tmp_path)
    assert [(row["text"], row["metadata"]) for row in read_dataset(made)] == [
        ("Hallo", '{"__key__":"a/1","cls":"3","json":{"lang":"de"}}'),
        ("Hello", '{"__key__":"a/2","cls":"4"}'),
    ]


def test_members_are_chosen_by_a_pattern(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("test/a.jsonl", '{"text": "no"}\n')
        archive.writestr("train/a.jsonl", '{"text": "yes"}\n')
        archive.writestr("model.bin", b"\0")
    params = {"format": "text", "members": "train/*.jsonl"}
    made = run_rule(dataset, {"source": source(tmp_path / "rows.zip")}, params, tmp_path)
    assert [row["text"] for row in read_dataset(made)] == ["yes"]


def test_bad_rows_are_dropped_and_counted_up_to_the_bound(tmp_path: Path) -> None:
    rows = ['{"text": "a"}', "oops", '{"text": ""}', '{"text": "b"}', '{"txt": "c"}']
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows) + "\n")
    params = {"format": "text", "on_error": "drop", "max_dropped": 3}
    ctx = context(tmp_path)
    made = run_rule(dataset, {"source": source(file)}, params, tmp_path, ctx=ctx)
    assert [row["text"] for row in read_dataset(made)] == ["a", "b"]
    assert ctx.known == {"dropped": 3, "rows": 2, "shards": 1}
    assert ctx.warnings == [
        f"3 rows were dropped; the first: {file}:2:1: not JSON: Expecting value"
    ]
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": source(file)}, {**params, "max_dropped": 2}, tmp_path)
    assert [problem.what for problem in caught.value.problems] == [
        "more than 2 rows are bad; the first of them:",
        "not JSON: Expecting value",
        "`text` is empty",
        "row has no `text`; it has `txt`",
    ]


def test_rest_of_a_file_that_cannot_be_read_is_never_dropped(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a"}, oops, {"text": "b"}]')
    with pytest.raises(RuleError, match="not JSON: Expecting value"):
        build(tmp_path, tmp_path / "rows.json", on_error="drop")


@pytest.mark.fault("54", "a line of a gigabyte")
def test_line_of_a_gigabyte_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv", "rows.txt"):
        with open(tmp_path / name, "wb") as file:
            file.write(b"text\n" if name == "rows.csv" else b" " if name == "rows.txt" else b"{")
            file.seek((1 << 30) - 1)
            file.write(b"\0")  # a hole on the disk, a gigabyte to who reads it
        tracemalloc.start()
        with pytest.raises(RuleError, match="a row is longer than 64 MiB"):
            build(tmp_path, tmp_path / name)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 400 << 20, name
        os.remove(tmp_path / name)


def test_text_that_is_not_of_its_declared_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,id\na,1\nb,two\n")
    with pytest.raises(RuleError, match='`id` is "two", which is not of type `integer`') as caught:
        build(tmp_path, tmp_path / "rows.csv", types={"id": "integer"})
    assert caught.value.problems[0].where is not None
    assert caught.value.problems[0].where.line == 3
