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


def write_link(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        item = tarfile.TarInfo("rows.jsonl")
        item.type, item.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(item)


def tar_of(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        add(archive, name, content)
    return packed.getvalue()


def parquet_of(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    packed = io.BytesIO()
    parquet.write_table(pa.table(columns), packed)
    return packed.getvalue()


AGAIN = "  fix: was it copied whole? get it again"
PICKLE = (
    "  why: a pickle runs whatever code its author put in, as soon as it is opened\n"
    "  fix: if you trust it, open it yourself and write JSON Lines or Parquet"
)
BAD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "member that escapes": (
        "a.tar",
        lambda: tar_of("../rows.jsonl", LINES),
        "error[E0844]: the member `../rows.jsonl` of the archive lies outside of it\n  --> a.tar\n"
        "  fix: do you trust this archive? pack it again with paths below its top folder",
    ),
    "absolute member": (
        "a.tar",
        lambda: tar_of("/etc/rows.jsonl", LINES),
        "error[E0844]: the member `/etc/rows.jsonl` of the archive lies outside of it\n"
        "  --> a.tar\n"
        "  fix: do you trust this archive? pack it again with paths below its top folder",
    ),
    "archive in an archive": (
        "a.tar",
        lambda: tar_of("b.tar", tar_of("rows.jsonl", LINES)),
        "error[E0801]: the archive holds `b.tar`, from which no rows can be read\n  --> a.tar\n"
        '  fix: name the members to read: members = "*.jsonl"',
    ),
    "pickle in an archive": (
        "a.tar",
        lambda: tar_of("1.pkl", b"\x80"),
        "error[E0801]: the archive holds `1.pkl`, from which no rows can be read\n  --> a.tar\n"
        '  fix: name the members to read: members = "*.jsonl"',
    ),
    "pickle": (
        "rows.pkl",
        lambda: b"\x80\x04",
        f"error[E0801]: a dataset is not read from `rows.pkl`\n  --> rows.pkl\n{PICKLE}",
    ),
    "bad row of a member": (
        "a.tar",
        lambda: tar_of("x/rows.jsonl", b'{"text": "a"}\n{"text": ""}\n'),
        "error[E0813]: `text` is empty\n  --> a.tar/x/rows.jsonl:2\n"
        "  fix: write a text, or remove the row",
    ),
    "cut tar": (
        "a.tar",
        lambda: tar_of("rows.jsonl", LINES * 100)[:2000],
        "error[E0844]: the archive is not whole, or of another type\n  --> a.tar\n"
        f"  why: unexpected end of data\n{AGAIN}",
    ),
    "no zip": (
        "a.zip",
        lambda: b"hello",
        "error[E0844]: the archive is not whole, or of another type\n  --> a.zip\n"
        f"  why: File is not a zip file\n{AGAIN}",
    ),
    "cut gzip": (
        "rows.jsonl.gz",
        lambda: gzip.compress(LINES)[:-9],
        "error[E0841]: the file cannot be decompressed\n  --> rows.jsonl.gz\n"
        "  why: Compressed file ended before the end-of-stream marker was reached\n"
        "  fix: was it copied whole? get it again, or rename it if it is not compressed",
    ),
    "no gzip": (
        "rows.jsonl.gz",
        lambda: LINES,
        "error[E0841]: the file cannot be decompressed\n  --> rows.jsonl.gz\n"
        "  why: Not a gzipped file (b'{\"')\n"
        "  fix: was it copied whole? get it again, or rename it if it is not compressed",
    ),
    "no parquet": (
        "rows.parquet",
        lambda: b"hello, this is text",
        "error[E0843]: not a whole Parquet file\n  --> rows.parquet\n"
        "  why: Parquet magic bytes not found in footer. Either the file is corrupted or this is "
        "not a parquet file.\n"
        "  fix: was it copied whole? get the file again, or rename it if it is of another type",
    ),
    "NaN in parquet": (
        "rows.parquet",
        lambda: parquet_of({"text": ["a", "b"], "score": [1.0, float("nan")]}),
        "error[E0806]: `score` is nan, which is no number\n  --> rows.parquet in row 2\n"
        "  fix: write null where there is none",
    ),
    "bytes in parquet": (
        "rows.parquet",
        lambda: parquet_of({"text": ["a"], "image": [b"\xff"]}),
        "error[E0843]: `image` holds values of type bytes, which no format takes\n"
        "  --> rows.parquet in row 1\n"
        "  fix: leave the column out, or write it as text",
    ),
    "column twice": (
        "rows.csv",
        lambda: b"text,text\na,b\n",
        "error[E0805]: the column `text` stands twice in the first line\n  --> rows.csv:1\n"
        "  fix: rename one of the two",
    ),
    "column without a name": (
        "rows.csv",
        lambda: b"text,\na,b\n",
        "error[E0842]: column 2 has no name\n  --> rows.csv:1\n"
        "  fix: write a name for each column into the first line",
    ),
    "cells too many": (
        "rows.csv",
        lambda: b'text\n"a\nb"\nc,d\n',
        "error[E0842]: the row has 2 cells; the first line names 1 columns\n  --> rows.csv:4\n"
        "  fix: put cells that hold the delimiter or a line end into double quotes",
    ),
    "quote that stays open": (
        "rows.csv",
        lambda: b'text\na\n"b\nc\n',
        "error[E0804]: the file ends in the middle of a row\n  --> rows.csv:3\n"
        "  why: a cell's closing double quote is missing\n"
        "  fix: was it copied whole? delete the last line, or get the file again",
    ),
    "latin-1 in a cell": (
        "rows.csv",
        lambda: b"text\na\ncaf\xe9\n",
        "error[E0802]: byte 4 of the line, 0xe9, is not UTF-8\n  --> rows.csv:3\n"
        "  fix: convert the file: `iconv -f WINDOWS-1252 -t UTF-8 rows.csv`, or what it was "
        "written in",
    ),
    "latin-1 in a document": (
        "rows.txt",
        lambda: b"a\ncaf\xe9",
        "error[E0802]: byte 4 of the line, 0xe9, is not UTF-8\n  --> rows.txt:2\n"
        "  fix: convert the file: `iconv -f WINDOWS-1252 -t UTF-8 rows.txt`, or what it was "
        "written in",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_files_are_refused_with_place_and_remedy(case: str, tmp_path: Path) -> None:
    name, content, expected = BAD[case]
    (tmp_path / name).write_bytes(content())
    ctx = context(tmp_path)
    params = {"format": "text", "sample_by": "document"}
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": source(tmp_path / name)}, params, tmp_path, ctx=ctx)
    assert caught.value.render().replace(f"{tmp_path}/", "") == expected
    assert not (ctx.out / "dataset.json").exists()


def test_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    write_link(tmp_path / "a.tar")
    with pytest.raises(RuleError, match="is a link or a device"):
        build(tmp_path, tmp_path / "a.tar")


def test_member_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "rows.jsonl", b'{"text": "a"}\n')
        add(archive, "rows.jsonl", b'{"text": "b"}\n')
    with pytest.raises(RuleError, match=r"the archive holds two members named `rows.jsonl`"):
        build(tmp_path, tmp_path / "a.tar")


def test_text_that_is_not_of_its_declared_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,id\na,1\nb,two\n")
    with pytest.raises(RuleError, match='`id` is "two", which is not of type `integer`') as caught:
        build(tmp_path, tmp_path / "rows.csv", types={"id": "integer"})
    assert caught.value.problems[0].where is not None
    assert caught.value.problems[0].where.line == 3
