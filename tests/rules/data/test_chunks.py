"""A large file is read in pieces, in any order, and gives what one pass over it gives."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ftbuild.errors import RuleError
from ftbuild.testing import RecordingContext, context, run_rule, source, tree_digest
from ftbuild_rules.data import _chunks, _pieces, _shards
from ftbuild_rules.data._pieces import pieces_of
from ftbuild_rules.data.dataset import dataset

GRAIN = _shards.Grain(rows=20, text_bytes=1 << 12)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pieces of some twenty rows, and shards of about as many."""
    monkeypatch.setattr(_pieces, "LEAST_BYTES", 1)
    monkeypatch.setattr(_pieces, "MIN_BYTES", 1 << 10)
    monkeypatch.setattr(_pieces, "_MEAN_LINES", 8)
    for module in (_chunks, _shards):
        monkeypatch.setattr(module, "COARSE", GRAIN)
    monkeypatch.setattr(_shards, "SMALL_ROWS", 50)


def lines_of(count: int, seed: int = 1) -> list[str]:
    chosen = random.Random(seed)
    return [
        json.dumps(
            {"text": " ".join(chosen.choices(["one", "two", "three", "four"], k=9)), "id": n}
        )
        for n in range(count)
    ]


def build(
    directory: Path, lines: list[str], ctx: RecordingContext | None = None, **params: Any
) -> Any:
    directory.mkdir(exist_ok=True)
    file = directory / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return run_rule(
        dataset, {"source": source(file)}, {"format": "text", **params}, directory, ctx=ctx
    )


def in_one_pass(directory: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(_pieces, "LEAST_BYTES", 1 << 40)
        return build(directory, lines)


@pytest.mark.parametrize("count", [60, 700])
@pytest.mark.parametrize("seed", range(4))
def test_dataset_is_that_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, seed: int
) -> None:
    lines = lines_of(count, seed)
    made = build(tmp_path / "a", lines)
    assert tree_digest(made.path) == tree_digest(
        in_one_pass(tmp_path / "b", lines, monkeypatch).path
    )


@pytest.mark.parametrize("end", ["", "\n\n  \n"])
def test_last_line_and_blank_lines_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    lines = lines_of(200)
    lines.insert(100, "  ")
    found = []
    for number, least in enumerate((1, 1 << 40)):
        monkeypatch.setattr(_pieces, "LEAST_BYTES", least)
        file = tmp_path / f"{number}.jsonl"
        file.write_text("\n".join(lines) + end)
        made = run_rule(dataset, {"source": source(file)}, {"format": "text"}, tmp_path)
        found.append(tree_digest(made.path))
    assert found[0] == found[1]


def test_shards_that_grow_too_large_are_cut_as_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_chunks, _shards):
        monkeypatch.setattr(module, "MAX_ROWS", 30)
    lines = lines_of(700)
    made = build(tmp_path / "a", lines)
    assert tree_digest(made.path) == tree_digest(
        in_one_pass(tmp_path / "b", lines, monkeypatch).path
    )


def test_few_rows_are_cut_finely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(40)
    made = build(tmp_path / "a", lines)
    assert tree_digest(made.path) == tree_digest(
        in_one_pass(tmp_path / "b", lines, monkeypatch).path
    )


def test_chunks_are_all_of_the_file_in_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines_of(300)))
    chunks = pieces_of(source(file), tmp_path / "scratch")
    assert chunks is not None
    assert len(chunks) > 5
    assert [c.offset for c in chunks[1:]] == [c.offset + c.size for c in chunks[:-1]]
    assert chunks[-1].offset + chunks[-1].size == file.stat().st_size
    data = file.read_bytes()
    assert all(data[chunk.offset - 1] == ord("\n") for chunk in chunks[1:])


@pytest.mark.parametrize("edit", ["insert", "edit", "delete"])
def test_edit_of_one_row_reads_one_piece_again(tmp_path: Path, edit: str) -> None:
    memo: dict[str, Any] = {}
    lines = lines_of(700)
    build(tmp_path / "a", lines, context(tmp_path, memo=memo))
    before = len(memo)
    new = json.dumps({"text": "edited", "id": 0})
    lines[350:350] = [new] if edit == "insert" else []
    if edit == "edit":
        lines[350] = new
    elif edit == "delete":
        del lines[350]
    build(tmp_path / "b", lines, context(tmp_path, memo=memo))
    # Its piece, and what reaches from that into its neighbours.
    assert 1 <= len(memo) - before <= 3


@pytest.mark.parametrize("start", ["[", "\ufeff{", "\n\n ["])
def test_what_is_not_lines_from_the_start_is_read_in_one_pass(tmp_path: Path, start: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(start)
    assert pieces_of(source(file), tmp_path / "scratch") is None


def test_bad_rows_are_named_by_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lines_of(700)
    lines[333] = '{"text": '
    lines[600] = "[1]"
    with pytest.raises(RuleError) as caught:
        build(tmp_path / "a", lines)
    with pytest.raises(RuleError) as expected:
        in_one_pass(tmp_path / "a", lines, monkeypatch)
    assert caught.value.render() == expected.value.render()
    assert "rows.jsonl:334" in caught.value.render()


def test_dropped_rows_are_counted_as_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lines_of(700)
    lines[333] = '{"text": '
    lines[600] = "[1]"
    ctx = context(tmp_path)
    made = build(tmp_path / "a", lines, ctx, on_error="drop", max_dropped=2)
    assert ctx.known["dropped"] == 2
    assert "rows.jsonl:334" in ctx.warnings[0]
    del lines[600], lines[333]
    assert tree_digest(made.path) == tree_digest(
        in_one_pass(tmp_path / "b", lines, monkeypatch).path
    )
    lines[10:10] = ["{"] * 3
    with pytest.raises(RuleError) as caught:
        build(tmp_path / "c", lines, on_error="drop", max_dropped=2)
    assert caught.value.problems[0].code == "E0846"


def test_line_beyond_the_longest_is_told_of_and_ends_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbuild_rules.data._rows.MAX_ROW_BYTES", 500)
    lines = lines_of(300)
    lines[150] = json.dumps({"text": "x" * 600})
    lines[250] = "{"
    with pytest.raises(RuleError) as caught:
        build(tmp_path / "a", lines)
    with pytest.raises(RuleError) as expected:
        in_one_pass(tmp_path / "a", lines, monkeypatch)
    assert caught.value.render() == expected.value.render()


# What is no file of lines.


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


def write_several(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write files of all sorts in a folder, and one that holds no rows."""
    folder.mkdir()
    texts = [json.dumps(row) + "\n" for row in rows]
    (folder / "a.json").write_text(f"[{','.join(texts[:100])}]")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(texts[100:300]).encode()))
    write_parquet(folder / "c.parquet", rows[300:500])
    (folder / "d.jsonl").write_text("".join(texts[500:600]))
    with tarfile.open(folder / "e.tar", "w") as archive:
        item = tarfile.TarInfo("x/rows.jsonl")
        content = "".join(texts[600:]).encode()
        item.size = len(content)
        archive.addfile(item, io.BytesIO(content))
    (folder / "README").write_text("no rows")


WRITERS = {"rows.parquet": write_parquet, "rows.arrow": write_arrow, "folder": write_several}


@pytest.mark.parametrize("name", WRITERS)
def test_pieces_of_other_sources_give_the_dataset_of_one_pass(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pieces, "_GROUP_BYTES", 1)
    monkeypatch.setattr(_pieces, "_MEAN_FILES_BYTES", 1)
    lines = lines_of(700)
    WRITERS[name](tmp_path / name, [json.loads(line) for line in lines])
    given = source(tmp_path / name)
    pieces = pieces_of(given, tmp_path / "scratch")
    assert pieces is not None
    assert len(pieces) >= 5
    ctx = context(tmp_path)
    made = run_rule(dataset, {"source": given}, {"format": "text"}, tmp_path, ctx=ctx)
    assert len(ctx.memo) > len(pieces)
    assert tree_digest(made.path) == tree_digest(
        in_one_pass(tmp_path / "b", lines, monkeypatch).path
    )
    assert ctx.logs == (
        [f"{tmp_path}/folder/README holds no rows and is not read"] if name == "folder" else []
    )


@pytest.mark.parametrize("name", WRITERS)
def test_bad_rows_of_pieces_are_named_as_in_one_pass(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pieces, "_GROUP_BYTES", 1)
    rows = [json.loads(line) for line in lines_of(700)]
    for number in (77, 222, 345, 690):
        rows[number]["text"] = ""
    WRITERS[name](tmp_path / name, rows)
    if name == "folder":
        (tmp_path / name / "f.pkl.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    given, found = source(tmp_path / name), []
    for least in (1, 1 << 40):
        monkeypatch.setattr(_pieces, "LEAST_BYTES", least)
        with pytest.raises(RuleError) as caught:
            run_rule(dataset, {"source": given}, {"format": "text"}, tmp_path)
        found.append(caught.value.render())
    assert found[0] == found[1]
    assert str(tmp_path) in found[0]
    assert "\0" not in found[0]


def test_edit_of_one_of_many_files_reads_its_piece_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pieces, "_MEAN_FILES_BYTES", 1 << 12)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.json").write_text(f"[{','.join(lines_of(30, number))}]")
    memo: dict[str, Any] = {}
    for text in ("", "edited"):
        if text:
            (folder / "20.json").write_text(json.dumps([{"text": text}]))
            before = len(memo)
        ctx = context(tmp_path, memo=memo)
        run_rule(dataset, {"source": source(folder)}, {"format": "text"}, tmp_path, ctx=ctx)
    assert 1 <= len(memo) - before <= 3
