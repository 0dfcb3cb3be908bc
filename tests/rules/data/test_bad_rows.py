"""Rows that are refused: the whole message for each, from bad_rows.txt and for raw bytes here."""

import re
from pathlib import Path

import pytest

from ftbuild.errors import RuleError
from ftbuild.testing import context, run_rule, source
from ftbuild_rules.data import _rows
from ftbuild_rules.data.dataset import dataset

CORPUS = re.findall(
    r"^=== (.+?) \((\w+)\)\n(.*?)^---\n(.*?)\n(?=\n===|\Z)",
    (Path(__file__).parent / "bad_rows.txt").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)
CUT = "  fix: was it copied whole? delete the last line, or get the file again"
NOT_UTF8 = (
    "  fix: convert the file: `iconv -f WINDOWS-1252 -t UTF-8 rows.jsonl`, "
    "or what it was written in"
)
RAW = [
    pytest.param(
        b'{"text": "caf\xc3\xa9"}\n{"text": "caf\xe9"}\n',
        ["error[E0802]: byte 14 of the line, 0xe9, is not UTF-8", "  --> rows.jsonl:2", NOT_UTF8],
        id="latin-1",
    ),
    pytest.param(
        b'[\n{"text": "caf\xc3\xa9"},\n{"text": "caf\xe9"}]',
        ["error[E0802]: byte 14 of the line, 0xe9, is not UTF-8", "  --> rows.jsonl:3", NOT_UTF8],
        id="latin-1 in an array",
    ),
    pytest.param(
        b'{"text": "a"}\n{"text": "abc',
        [
            "error[E0804]: the file ends in the middle of a row",
            "  --> rows.jsonl:2:10",
            '  2 | {"text": "abc',
            "    |          ^",
            "  why: JSON: Unterminated string starting at",
            CUT,
        ],
        id="cut in a text",
    ),
    pytest.param(
        b'{"text": "a",',
        [
            "error[E0804]: the file ends in the middle of a row",
            "  --> rows.jsonl:1:14",
            '  1 | {"text": "a",',
            "    |              ^",
            "  why: JSON: Expecting property name enclosed in double quotes",
            CUT,
        ],
        id="cut between keys",
    ),
    pytest.param(
        b'[{"text": "a"},\n{"text": "b',
        [
            "error[E0804]: the file ends in the middle of a row",
            "  --> rows.jsonl:2:10",
            "  why: JSON: Unterminated string starting at",
            CUT,
        ],
        id="cut in an array",
    ),
    pytest.param(
        b'{"text": "a", "score": ' + b"1" * 5000 + b"}\n",
        [
            "error[E0806]: a number has more than 4,300 digits",
            "  --> rows.jsonl:1",
            "  fix: write it as a string",
        ],
        id="5,000 digits",
    ),
    pytest.param(
        b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        [
            "error[E0807]: a row is nested too deeply",
            "  --> rows.jsonl:1",
            "  fix: flatten its columns",
        ],
        id="100,000 brackets",
    ),
]


def message_of(directory: Path, content: bytes, format_name: str, name: str = "rows.jsonl") -> str:
    """Return the message with which a file of `content` is refused."""
    file = directory / name
    file.write_bytes(content)
    ctx = context(directory)
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": source(file)}, {"format": format_name}, directory, ctx=ctx)
    assert not (ctx.out / "dataset.json").exists()
    return caught.value.render().replace(f"{directory}/", "")


def test_corpus_is_whole() -> None:
    assert len(CORPUS) == len({name for name, *_ in CORPUS}) == 81


@pytest.mark.parametrize(
    ("format_name", "content", "expected"),
    [pytest.param(*case[1:], id=case[0]) for case in CORPUS],
)
def test_bad_rows_are_refused_with_place_and_remedy(
    format_name: str, content: str, expected: str, tmp_path: Path
) -> None:
    assert message_of(tmp_path, content.encode(), format_name) == expected


@pytest.mark.parametrize(("content", "expected"), RAW)
def test_bad_bytes_are_refused_with_place_and_remedy(
    content: bytes, expected: list[str], tmp_path: Path
) -> None:
    assert message_of(tmp_path, content, "text") == "\n".join(expected)


@pytest.mark.parametrize("opening", [b"", b"["])
def test_row_without_end_is_refused_before_it_fills_the_memory(
    opening: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "MAX_ROW_BYTES", 2 << 20)
    content = opening + b'{"text": "' + b"a" * (5 << 20) + b'"}'
    assert message_of(tmp_path, content, "text") == (
        "error[E0807]: a row is longer than 2 MiB\n"
        "  --> rows.jsonl:1\n"
        "  fix: write one row a line; is this a text file without line ends?"
    )


def test_file_of_another_type_is_refused(tmp_path: Path) -> None:
    assert message_of(tmp_path, b"text\na\n", "text", "rows.xls") == (
        "error[E0801]: a dataset cannot be read from `rows.xls`\n"
        "  --> rows.xls\n"
        "  why: its name ends in none of .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .feather, "
        ".ipc, .json, .txt, .text, .md, .tar, .zip (or these with .gz, .zst, .bz2, .xz)\n"
        '  fix: give it as JSON Lines; of a folder name the files: `source = "data/*.jsonl"`'
    )


def test_problems_of_all_files_come_in_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": ""}\n')
    (tmp_path / "b.jsonl").write_text('{"txt": "fine"}\n')
    files = source(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    with pytest.raises(RuleError) as caught:
        run_rule(dataset, {"source": files}, {"format": "text"}, tmp_path)
    found = [(problem.code, str(problem.where)) for problem in caught.value.problems]
    assert found == [("E0813", f"{tmp_path}/a.jsonl:2"), ("E0810", f"{tmp_path}/b.jsonl:1")]
