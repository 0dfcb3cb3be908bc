"""A large CSV file is read in pieces where that is exact, and as a whole where it is not."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from ftbuild.errors import RuleError
from ftbuild.testing import context, run_rule, source
from ftbuild_rules.data import _chunks, _pieces, _records, _shards
from ftbuild_rules.data._pieces import pieces_of
from ftbuild_rules.data._problems import to_plain
from ftbuild_rules.data._read import Reading, read_rows
from ftbuild_rules.data._rows import Row
from ftbuild_rules.data._streams import COMPRESSED
from ftbuild_rules.data.dataset import dataset

GRAIN = _shards.Grain(rows=20, text_bytes=1 << 12)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pieces, "LEAST_BYTES", 1)
    monkeypatch.setattr(_pieces, "MIN_BYTES", 1 << 10)
    monkeypatch.setattr(_pieces, "_MEAN_LINES", 8)
    for module in (_chunks, _shards):
        monkeypatch.setattr(module, "COARSE", GRAIN)
    monkeypatch.setattr(_shards, "SMALL_ROWS", 50)


def table(count: int, delimiter: str = ",", end: str = "\r\n", head: str = "text") -> str:
    """Return rows whose cells hold all that CSV quotes, as Python's own module writes them."""
    rng = random.Random(count)
    words = ["one", "two\nlines", 'a "quote"', '"', "a,b", "a\tb", "", '""', "é", "x\r\ny"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerow([head, "id"])
    for number in range(count):
        writer.writerow([f"row {number} " + " ".join(rng.choices(words, k=9)), number])
    return out.getvalue()


def items(file: Any) -> list[Any]:
    """Return what reading a file in one go gives, and what is wrong with it."""
    found: list[Any] = []
    try:
        for item in read_rows(file, Reading()):
            found.append(item.value if isinstance(item, Row) else what(item))
    except RuleError as error:
        found.append(what(error))
    return found


def what(item: Any) -> str:
    return str(to_plain(item)["problem"]["what"])


@pytest.mark.parametrize(
    ("name", "delimiter", "end"),
    [("rows.csv", ",", "\r\n"), ("rows.v2.tsv", "\t", "\n"), ("rows.CSV", ",", "\n")],
)
def test_dataset_is_that_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, delimiter: str, end: str
) -> None:
    file = tmp_path / name
    file.write_text(table(700, delimiter, end), newline="")
    pieces = pieces_of(source(file), tmp_path / "scratch")
    assert pieces is not None
    assert len(pieces) > 5
    params = {"format": "text"}
    made = run_rule(dataset, {"source": source(file)}, params, tmp_path)
    monkeypatch.setattr(_pieces, "LEAST_BYTES", 1 << 40)
    whole = run_rule(dataset, {"source": source(file)}, params, tmp_path)
    assert made.digest == whole.digest
    assert json.loads((made.path / "dataset.json").read_bytes())["rows"] == 700


def test_edited_row_reads_one_piece_and_a_renamed_column_all(tmp_path: Path) -> None:
    memo: dict[str, Any] = {}
    counts = []
    text = table(700)
    for content, head in (
        (text, "text"),
        (text.replace("row 350 ", "row 350 new ", 1), "text"),
        (text.replace("text", "content", 1), "content"),
    ):
        file = tmp_path / "rows.csv"
        file.write_text(content, newline="")
        params = (
            {"format": "text", "columns": {"text": head}} if head != "text" else {"format": "text"}
        )
        before = len(memo)
        run_rule(
            dataset, {"source": source(file)}, params, tmp_path, ctx=context(tmp_path, memo=memo)
        )
        counts.append(len(memo) - before)
    assert counts[0] > 10
    assert counts[1] <= 4  # the piece, and what joins its ends with its neighbours
    assert counts[2] >= len(pieces_of(source(file), tmp_path / "scratch") or [])


@pytest.mark.parametrize("seed", range(60))
def test_pieces_of_any_text_say_what_one_pass_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(_pieces, "MIN_BYTES", 8)
    monkeypatch.setattr(_pieces, "_MEAN_LINES", 2)
    monkeypatch.setattr(_records, "_BLOCK_BYTES", 1 + seed % 11)
    rng = random.Random(seed)
    if seed % 2:  # anything
        letters = ['"', '"', ",", "\n", "\n", "a", "\r\n", "\r", '"\n', '",', ',"', "é", "\\"]
        if seed % 4 == 1:
            letters.remove("\r")
        body = "".join(rng.choices(letters, k=120))
    else:  # mostly as it should be
        cells = ["a", '"b\nc"', '""', '"d""e"', "", '"f,g"', '"\r\n"', '"""h"""']
        rows = [",".join(rng.choices(cells, k=2)) for _ in range(40)]
        if seed % 3 == 0:
            rows[rng.randrange(40)] += rng.choice(['"', ",", 'x"y', "\r", '"z'])
        body = rng.choice(["\n", "\r\n"]).join(rows)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"one,two\n" + body.encode())
    given = source(path)
    (file,) = given.files
    pieces = pieces_of(given, tmp_path / "scratch") or []
    if seed % 2 == 0 and seed % 3:
        assert len(pieces) > 3
    if pieces:
        found: list[Any] = []
        for piece in pieces:
            for item in piece.rows(Reading()):
                found.append(item.value if isinstance(item, Row) else what(item))
        assert found == items(file)


def test_bad_rows_are_named_by_their_line_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = table(700).encode().splitlines(keepends=True)
    rows = [n for n, line in enumerate(lines) if line.startswith((b"row", b'"row'))]
    lines[rows[650]] = b"row 650,1,2\r\n"
    lines[rows[200]] = (
        b"row \xff,1\r\n" if lines[rows[200] - 1].endswith(b"\r\n") else lines[rows[200]]
    )
    file = tmp_path / "rows.csv"
    file.write_bytes(b"".join(lines))
    told = []
    for least in (1, 1 << 40):
        monkeypatch.setattr(_pieces, "LEAST_BYTES", least)
        with pytest.raises(RuleError) as caught:
            run_rule(dataset, {"source": source(file)}, {"format": "text"}, tmp_path)
        told.append(caught.value.render())
    assert told[0] == told[1]
    assert f"{rows[650] + 1}" in told[0]


@pytest.mark.parametrize("cell", ['5" disk', '"a"b', "a\rb"])
def test_file_with_other_quotes_is_read_whole(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{table(200)}{cell},1\r\n", newline="")
    assert pieces_of(source(file), tmp_path / "scratch") is None


def test_header_over_several_lines_and_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\ufeff\n" + table(300, head="te\nxt"), "utf-8", newline="")
    assert len(pieces_of(source(file), tmp_path / "scratch") or []) > 3
    params = {"format": "text", "columns": {"text": "te\nxt"}}
    made = run_rule(dataset, {"source": source(file)}, params, tmp_path)
    monkeypatch.setattr(_pieces, "LEAST_BYTES", 1 << 40)
    assert run_rule(dataset, {"source": source(file)}, params, tmp_path).digest == made.digest


def compressed(ending: str, data: bytes) -> bytes:
    import bz2
    import gzip
    import lzma

    import pyarrow as pa

    if ending == ".zst":
        return bytes(pa.compress(data, "zstd", asbytes=True))
    how: Any = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    return bytes(how(data))


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_compressed_file_is_read_in_pieces_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: str
) -> None:
    text = table(700)
    if name.endswith("jsonl"):
        rows = csv.DictReader(io.StringIO(text, newline=""))
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text, newline="")
    file = tmp_path / (name + ending)
    file.write_bytes(compressed(ending, text.encode()))
    pieces = pieces_of(source(file), tmp_path / "scratch")
    plain = pieces_of(source(tmp_path / name), tmp_path / "scratch")
    assert pieces is not None
    assert plain is not None
    assert [piece.identity() for piece in pieces] == [piece.identity() for piece in plain]
    ctx = context(tmp_path)
    made = run_rule(dataset, {"source": source(file)}, {"format": "text"}, tmp_path, ctx=ctx)
    assert list(ctx.scratch.iterdir()) == []
    monkeypatch.setattr(_pieces, "LEAST_BYTES", 1 << 40)
    whole = run_rule(dataset, {"source": source(file)}, {"format": "text"}, tmp_path)
    assert made.digest == whole.digest


def test_compressed_file_that_is_cut_short_or_grows_too_much_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl.gz"
    data = compressed(".gz", b'{"text": "abc"}\n' * 100_000)
    file.write_bytes(data)
    assert pieces_of(source(file), tmp_path / "scratch") is None
    assert list((tmp_path / "scratch").iterdir()) == []
    file.write_bytes(compressed(".gz", table(700).encode())[:-9])
    assert pieces_of(source(file), tmp_path / "scratch") is None
    with pytest.raises(RuleError, match="cannot be decompressed"):
        run_rule(
            dataset,
            {"source": source(file)},
            {"format": "text", "on_error": "drop", "max_dropped": 9},
            tmp_path,
        )


def test_row_of_a_compressed_file_is_named_by_its_place_in_it(tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": f"{n}" if n != 555 else ""}) + "\n" for n in range(700))
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(compressed(".gz", text.encode()))
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": source(file)}, {"format": "text"}, tmp_path)
    assert f"{file}:556" in caught.value.render()
