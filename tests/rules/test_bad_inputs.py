"""Bad inputs, each a target of its own in one build: the message, the exit code, and nothing kept.

Rows of JSON Lines stand in data/bad_rows.txt; raw bytes, archives, templates and models are made
here. All is built at once, with `--keep-going`: one input's failure touches no other target.
"""

import gzip
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat
from ftbuild.errors import FtbuildError
from ftbuild.events import Finished
from ftbuild.project import Project
from tiny_models import make_model

CORPUS = re.findall(
    r"^=== (.+?) \((\w+)\)\n(.*?)^---\n(.*?)\n(?=\n===|\Z)",
    (Path(__file__).parent / "data" / "bad_rows.txt").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)
LINES = b'{"text": "a"}\n{"text": "b"}\n'


@dataclass(frozen=True)
class Case:
    """One bad input."""

    message: str
    """In which `HERE` is the case's folder, named as its target."""
    files: Mapping[str, Callable[[Path], Any] | bytes] = field(default_factory=dict)
    """Content by name, or what writes it."""
    rule: str = "dataset"
    table: str = 'source = "HERE/rows.jsonl"\nformat = "text"'


def of_rows(format_name: str, content: str, message: str) -> Case:
    table = f'source = "HERE/rows.jsonl"\nformat = "{format_name}"'
    return Case(
        message.replace("rows.jsonl", "HERE/rows.jsonl"),
        {"rows.jsonl": content.encode()},
        table=table,
    )


CUT = "  fix: was it copied whole? delete the last line, or get the file again"
NOT_UTF8 = (
    "  fix: convert the file: `iconv -f WINDOWS-1252 -t UTF-8 HERE/NAME`, or what it was written in"
)


def raw(content: bytes, *message: str) -> Case:
    return Case("\n".join(message), {"rows.jsonl": content})


def file(name: str, content: Callable[[Path], Any] | bytes, *message: str) -> Case:
    table = f'source = "HERE/{name}"\nformat = "text"\nsample_by = "document"'
    return Case("\n".join(message), {name: content}, table=table)


def hole(first: bytes) -> Callable[[Path], Any]:
    """Write a file of a gigabyte that takes no room on the disk."""

    def write(path: Path) -> None:
        with path.open("wb") as target:
            target.write(first)
            target.seek((1 << 30) - 1)
            target.write(b"\0")

    return write


def tar_of(*members: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return packed.getvalue()


def tar_with(kind: bytes, name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        item = tarfile.TarInfo(name)
        item.type, item.linkname = kind, "/etc/passwd"
        archive.addfile(item)
    return packed.getvalue()


def zip_of(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def parquet_of(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    packed = io.BytesIO()
    parquet.write_table(pa.table(columns), packed)
    return packed.getvalue()


AGAIN = "  fix: was it copied whole? get it again"
DECOMPRESS = "  fix: was it copied whole? get it again, or rename it if it is not compressed"
PACK = "  fix: do you trust this archive? pack it again with paths below its top folder"
MEMBERS = '  fix: name the members to read: members = "*.jsonl"'
LONG = "  fix: write one row a line; is this a text file without line ends?"

FILES: dict[str, Case] = {
    "latin-1": raw(
        b'{"text": "caf\xc3\xa9"}\n{"text": "caf\xe9"}\n',
        "error[E0802]: byte 14 of the line, 0xe9, is not UTF-8",
        "  --> HERE/rows.jsonl:2",
        NOT_UTF8.replace("NAME", "rows.jsonl"),
    ),
    "latin-1 in an array": raw(
        b'[\n{"text": "caf\xc3\xa9"},\n{"text": "caf\xe9"}]',
        "error[E0802]: byte 14 of the line, 0xe9, is not UTF-8",
        "  --> HERE/rows.jsonl:3",
        NOT_UTF8.replace("NAME", "rows.jsonl"),
    ),
    "cut in a text": raw(
        b'{"text": "a"}\n{"text": "abc',
        "error[E0804]: the file ends in the middle of a row",
        "  --> HERE/rows.jsonl:2:10",
        '  2 | {"text": "abc',
        "    |          ^",
        "  why: JSON: Unterminated string starting at",
        CUT,
    ),
    "cut between keys": raw(
        b'{"text": "a",',
        "error[E0804]: the file ends in the middle of a row",
        "  --> HERE/rows.jsonl:1:14",
        '  1 | {"text": "a",',
        "    |              ^",
        "  why: JSON: Expecting property name enclosed in double quotes",
        CUT,
    ),
    "cut in an array": raw(
        b'[{"text": "a"},\n{"text": "b',
        "error[E0804]: the file ends in the middle of a row",
        "  --> HERE/rows.jsonl:2:10",
        "  why: JSON: Unterminated string starting at",
        CUT,
    ),
    "5,000 digits": raw(
        b'{"text": "a", "score": ' + b"1" * 5000 + b"}\n",
        "error[E0806]: a number has more than 4,300 digits",
        "  --> HERE/rows.jsonl:1",
        "  fix: write it as a string",
    ),
    "100,000 brackets": raw(
        b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "error[E0807]: a row is nested too deeply",
        "  --> HERE/rows.jsonl:1",
        "  fix: flatten its columns",
    ),
    "a line of a gigabyte": file(
        "rows.jsonl",
        hole(b"{"),
        "error[E0807]: a row is longer than 64 MiB",
        "  --> HERE/rows.jsonl:1",
        LONG,
    ),
    "nothing at all": file(
        "rows.jsonl",
        b"",
        "error[E0809]: the source has no rows",
        "  --> HERE/rows.jsonl",
        "  fix: write one JSON object a line",
    ),
    "another type": file(
        "rows.xls",
        b"text\na\n",
        "error[E0801]: a dataset cannot be read from `HERE/rows.xls`",
        "  --> HERE/rows.xls",
        "  why: its name ends in none of .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .feather, "
        ".ipc, .json, .txt, .text, .md, .tar, .zip (or these with .gz, .zst, .bz2, .xz)",
        '  fix: give it as JSON Lines; of a folder name the files: `source = "data/*.jsonl"`',
    ),
    "pickle": file(
        "rows.pkl",
        b"\x80\x04",
        "error[E0801]: a dataset is not read from `HERE/rows.pkl`",
        "  --> HERE/rows.pkl",
        "  why: a pickle runs whatever code its author put in, as soon as it is opened",
        "  fix: if you trust it, open it yourself and write JSON Lines or Parquet",
    ),
    "member that escapes": file(
        "a.tar",
        tar_of(("../rows.jsonl", LINES)),
        "error[E0844]: the member `../rows.jsonl` of the archive lies outside of it",
        "  --> HERE/a.tar",
        PACK,
    ),
    "absolute member": file(
        "a.tar",
        tar_of(("/etc/rows.jsonl", LINES)),
        "error[E0844]: the member `/etc/rows.jsonl` of the archive lies outside of it",
        "  --> HERE/a.tar",
        PACK,
    ),
    "member of a zip that escapes": file(
        "a.zip",
        zip_of("../../rows.jsonl", LINES),
        "error[E0844]: the member `../../rows.jsonl` of the archive lies outside of it",
        "  --> HERE/a.zip",
        PACK,
    ),
    "link in an archive": file(
        "a.tar",
        tar_with(tarfile.SYMTYPE, "rows.jsonl"),
        "error[E0844]: the member `rows.jsonl` of the archive is a link or a device",
        "  --> HERE/a.tar",
        "  fix: pack the files themselves: tar --dereference --hard-dereference",
    ),
    "hard link in an archive": file(
        "a.tar",
        tar_with(tarfile.LNKTYPE, "rows.jsonl"),
        "error[E0844]: the member `rows.jsonl` of the archive is a link or a device",
        "  --> HERE/a.tar",
        "  fix: pack the files themselves: tar --dereference --hard-dereference",
    ),
    "device in an archive": file(
        "a.tar",
        tar_with(tarfile.CHRTYPE, "rows.jsonl"),
        "error[E0844]: the member `rows.jsonl` of the archive is a link or a device",
        "  --> HERE/a.tar",
        "  fix: pack the files themselves: tar --dereference --hard-dereference",
    ),
    "member that stands twice": file(
        "a.tar",
        tar_of(("rows.jsonl", LINES), ("rows.jsonl", LINES)),
        "error[E0844]: the archive holds two members named `rows.jsonl`",
        "  --> HERE/a.tar",
        "  fix: pack it again from a folder",
    ),
    "archive in an archive": file(
        "a.tar",
        tar_of(("b.tar", tar_of(("rows.jsonl", LINES)))),
        "error[E0801]: the archive holds `b.tar`, from which no rows can be read",
        "  --> HERE/a.tar",
        MEMBERS,
    ),
    "pickle in an archive": file(
        "a.tar",
        tar_of(("1.pkl", b"\x80")),
        "error[E0801]: the archive holds `1.pkl`, from which no rows can be read",
        "  --> HERE/a.tar",
        MEMBERS,
    ),
    "bad row of a member": file(
        "a.tar",
        tar_of(("x/rows.jsonl", b'{"text": "a"}\n{"text": ""}\n')),
        "error[E0813]: `text` is empty",
        "  --> HERE/a.tar/x/rows.jsonl:2",
        "  fix: write a text, or remove the row",
    ),
    "cut tar": file(
        "a.tar",
        tar_of(("rows.jsonl", LINES * 200))[:2000],
        "error[E0844]: the archive is not whole, or of another type",
        "  --> HERE/a.tar",
        "  why: unexpected end of data",
        AGAIN,
    ),
    "no zip": file(
        "a.zip",
        b"hello",
        "error[E0844]: the archive is not whole, or of another type",
        "  --> HERE/a.zip",
        "  why: File is not a zip file",
        AGAIN,
    ),
    "cut gzip": file(
        "rows.jsonl.gz",
        gzip.compress(LINES)[:-9],
        "error[E0841]: the file cannot be decompressed",
        "  --> HERE/rows.jsonl.gz",
        "  why: Compressed file ended before the end-of-stream marker was reached",
        DECOMPRESS,
    ),
    "no gzip": file(
        "rows.jsonl.gz",
        LINES,
        "error[E0841]: the file cannot be decompressed",
        "  --> HERE/rows.jsonl.gz",
        "  why: Not a gzipped file (b'{\"')",
        DECOMPRESS,
    ),
    "no parquet": file(
        "rows.parquet",
        b"hello, this is text",
        "error[E0843]: not a whole Parquet file",
        "  --> HERE/rows.parquet",
        "  why: Parquet magic bytes not found in footer. Either the file is corrupted or this is "
        "not a parquet file.",
        "  fix: was it copied whole? get the file again, or rename it if it is of another type",
    ),
    "NaN in parquet": file(
        "rows.parquet",
        parquet_of({"text": ["a", "b"], "score": [1.0, float("nan")]}),
        "error[E0806]: `score` is nan, which is no number",
        "  --> HERE/rows.parquet in row 2",
        "  fix: write null where there is none",
    ),
    "bytes in parquet": file(
        "rows.parquet",
        parquet_of({"text": ["a"], "image": [b"\xff"]}),
        "error[E0843]: `image` holds values of type bytes, which no format takes",
        "  --> HERE/rows.parquet in row 1",
        "  fix: leave the column out, or write it as text",
    ),
    "column twice": file(
        "rows.csv",
        b"text,text\na,b\n",
        "error[E0805]: the column `text` stands twice in the first line",
        "  --> HERE/rows.csv:1",
        "  fix: rename one of the two",
    ),
    "column without a name": file(
        "rows.csv",
        b"text,\na,b\n",
        "error[E0842]: column 2 has no name",
        "  --> HERE/rows.csv:1",
        "  fix: write a name for each column into the first line",
    ),
    "cells too many": file(
        "rows.csv",
        b'text\n"a\nb"\nc,d\n',
        "error[E0842]: the row has 2 cells; the first line names 1 columns",
        "  --> HERE/rows.csv:4",
        "  fix: put cells that hold the delimiter or a line end into double quotes",
    ),
    "quote that stays open": file(
        "rows.csv",
        b'text\na\n"b\nc\n',
        "error[E0804]: the file ends in the middle of a row",
        "  --> HERE/rows.csv:3",
        "  why: a cell's closing double quote is missing",
        CUT,
    ),
    "latin-1 in a cell": file(
        "rows.csv",
        b"text\na\ncaf\xe9\n",
        "error[E0802]: byte 4 of the line, 0xe9, is not UTF-8",
        "  --> HERE/rows.csv:3",
        NOT_UTF8.replace("NAME", "rows.csv"),
    ),
    "latin-1 in a document": file(
        "rows.txt",
        b"a\ncaf\xe9",
        "error[E0802]: byte 4 of the line, 0xe9, is not UTF-8",
        "  --> HERE/rows.txt:2",
        NOT_UTF8.replace("NAME", "rows.txt"),
    ),
}


TAKE = "  fix: mend the template, or take another"
ROWS = '  fix: mend the rows, or take another template: `chat_template = "…"`'
NO_JINJA = "error[E0834]: the chat template is no Jinja\n  --> chats\n  why: "
LIMIT = "error[E0834]: the chat template goes over a limit\n  --> chats"
TIME = "  why: it runs for more than 2 s"
REFUSED = (
    "error[E0821]: 1 of 1 rows are refused by the chat template\n  --> chats in rows 0\n"
    "  why: row 0: "
)


def template(text: str, *message: str) -> Case:
    table = f'dataset = "chats"\nmodel = "smol"\nchat_template_jinja = {json.dumps(text)}'
    return Case("\n".join(message), rule="tokens", table=table)


TEMPLATES: dict[str, Case] = {
    "no jinja": template(
        "a\n{% if %}",
        f"{NO_JINJA}line 2: Expected an expression, got 'end of statement block'",
        TAKE,
    ),
    "unknown tag": template(
        "{% nonsense %}", f"{NO_JINJA}line 1: Encountered unknown tag 'nonsense'.", TAKE
    ),
    "power": template("{{ 9 ** (9 ** (messages | length + 7)) }}", f"{LIMIT} in row 0", TIME, TAKE),
    "power while it compiles": template("{{ 9 ** (9 ** 9) }}", LIMIT, TIME, TAKE),
    "memory": template(
        "{{ 'a' * (messages | length * 10 ** 9) }}",
        f"{REFUSED}line 1: it needs too much memory",
        ROWS,
    ),
    "output": template(
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        f"{REFUSED}it writes more than 16,777,216 characters",
        ROWS,
    ),
    "way out of the sandbox": template(
        "{{ messages.__class__.__init__.__globals__ }}",
        f"{REFUSED}line 1: access to attribute '__init__' of 'Unprintable' object is unsafe.",
        ROWS,
    ),
    "shell": template(
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        f"{REFUSED}line 1: access to attribute '__init__' of 'type' object is unsafe.",
        ROWS,
    ),
    "file": template(
        "{% include '/etc/passwd' %}",
        f"{REFUSED}line 1: no loader for this environment specified",
        ROWS,
    ),
    "undefined variable": template(
        "a\n{{ bos_tokn }}", f"{REFUSED}line 2: 'bos_tokn' is undefined", ROWS
    ),
    "refusal": template(
        "{{ raise_exception('Roles must alternate') }}", f"{REFUSED}Roles must alternate", ROWS
    ),
    "clock": template(
        "{{ strftime_now('%d') }}", f"{REFUSED}line 1: 'strftime_now' is undefined", ROWS
    ),
    "text left out": template(
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "error[E0822]: 1 of 1 rows cannot be masked exactly with this chat template",
        "  --> chats in rows 0",
        "  why: row 0: it shows the text of message 2 not at all",
        "  fix: take a template that marks the assistant's text with {% generation %}, or "
        "`last_turn_only = true`",
    ),
}


def model(files: Mapping[str, bytes], *message: str) -> Case:
    return Case("\n".join(message), files, "base_model", 'source = "HERE"')


CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
CODE = json.dumps({"auto_map": {"AutoModel": "m.M"}}).encode()
MODELS: dict[str, Case] = {
    "pickled weights": model(
        {"config.json": CONFIG, "pytorch_model.bin": b"\x80\x02"},
        "error[E0924]: the model has no `model.safetensors`",
        "  why: other weights, such as pickled ones (`.bin`, `.pt`), are not read",
        "  fix: save it with Transformers' `save_pretrained`, or name the source of pickled "
        "weights as `pickled`",
    ),
    "hidden code": model(
        {"config.json": CODE, "model.safetensors": b""},
        "error[E0922]: `auto_map` in `config.json` loads code from outside",
        "  --> config.json in `auto_map`",
        "  fix: take a model whose class is in Transformers; or, if you trust the Python files "
        "that it names, name their folder or repository as `code`",
    ),
    "no config": model(
        {"model.safetensors": b""},
        "error[E0920]: the source has no `config.json`",
        "  fix: name a Transformers directory or one `.gguf` file",
    ),
}
CASES: dict[str, Case] = {
    **{name: of_rows(*rest) for name, *rest in CORPUS},
    **FILES,
    **{f"template: {name}": case for name, case in TEMPLATES.items()},
    **{f"model: {name}": case for name, case in MODELS.items()},
}
NAMES = {name: f"bad{number:03}" for number, name in enumerate(CASES)}
GOOD = {"chats", "smol"}


@dataclass(frozen=True)
class Built:
    """What became of the targets."""

    root: Path
    store: Path
    exit_code: int
    finished: dict[str, Finished]
    pending: set[str]
    """What another build would run."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root, store = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("store")
    os.environ["FTBUILD_CACHE"] = str(store)
    make_model(root / "model")
    (root / "chats.jsonl").write_text(json.dumps(chat("Hi", "Hello")) + "\n")
    tables = [
        '[project]\nname = "bad"\n',
        '[base_model.smol]\nsource = "model"\n',
        '[dataset.chats]\nsource = "chats.jsonl"\nformat = "openai"\n',
    ]
    for name, case in CASES.items():
        target = NAMES[name]
        (root / target).mkdir()
        for path, content in case.files.items():
            if isinstance(content, bytes):
                (root / target / path).write_bytes(content)
            else:
                content(root / target / path)
        tables.append(f"[{case.rule}.{target}]\n{case.table.replace('HERE', target)}\n")
    (root / "FTBUILD.toml").write_text("\n".join(tables))
    finished: dict[str, Finished] = {}

    def note(event: Any) -> None:
        if isinstance(event, Finished):
            finished[event.label] = event

    with Project.open(root, jobs=2) as project:
        result = project.make(keep_going=True, on_event=note)
        pending = {verdict.label for verdict in project.plan().pending()}
    return Built(root, store, result.exit_code, finished, pending)


def test_table_names_each_of_its_inputs_once() -> None:
    assert len(CORPUS) == len({name for name, *_ in CORPUS}) > 80
    assert len(CASES) == len(CORPUS) + len(FILES) + len(TEMPLATES) + len(MODELS) > 120


def marked(name: str) -> Any:
    fault = None
    if "E0844" in CASES[name].message:
        fault = ("50", "an archive that leads out, or is broken")
    elif "pickle" in name:
        fault = ("46", "pickled rows")
    return pytest.param(name, marks=[] if fault is None else [pytest.mark.fault(*fault)])


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_bad_input_is_refused_with_place_and_remedy(name: str, built: Built) -> None:
    case, target = CASES[name], NAMES[name]
    event = built.finished[target]
    assert event.outcome == "failed"
    assert event.error == case.message.replace("HERE", target)
    assert event.digest is None
    assert not (built.root / "ftbuild-out" / target).exists()


def test_build_fails_and_keeps_what_was_good(built: Built) -> None:
    assert built.exit_code == 1
    kept = {label for label, event in built.finished.items() if event.outcome == "built"}
    assert kept == GOOD
    assert built.pending == set(NAMES.values())  # the store has a result for none of them
    assert not list((built.store / "v1" / "tmp").iterdir())


QUERIES = {
    "two statements": ("select 1; select 2", "`sql` holds more than one statement"),
    "a change behind a select": ("select 1; drop table t", "`sql` holds more than one statement"),
    "a change": ("delete from t", "`sql` is no SELECT"),
    "a change within": (
        "with x as (delete from t returning *) select 1",
        "`sql` holds `delete`: a source only reads",
    ),
    "a new table": ("select * into u from t", "`sql` holds `into`: a source only reads"),
    "a lock": ("select * from t for update", "`sql` holds `update`: a source only reads"),
    "a library": (
        "select load_extension('x.so')",
        "`sql` holds `load_extension`: a source only reads",
    ),
    "a change behind a comment": ("/* select */ insert into t values (1)", "`sql` is no SELECT"),
}


@pytest.mark.parametrize("name", list(QUERIES))
def test_query_that_is_more_than_a_select_is_refused_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, what = QUERIES[name]
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    (tmp_path / "FTBUILD.toml").write_text(
        '[project]\nname = "bad"\n\n[dataset.rows]\n'
        f'source = {{ sql = "{query}", url = "sqlite:///data.db" }}\nformat = "text"\n'
    )
    with Project.open(tmp_path) as project, pytest.raises(FtbuildError) as caught:
        project.make()
    assert caught.value.exit_code == 2
    head, place, *_ = caught.value.render().splitlines()
    assert head == f"error[E0406]: `source`: {what}"
    assert place.startswith("  --> FTBUILD.toml:5:10 in [dataset.rows]")
    assert not list((tmp_path / "store").rglob("actions/*/*.json"))
