"""The same rows give the same dataset, whatever they are written in and wherever they lie."""

import gzip
import io
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from engine.space import Space
from ftbuild_rules.data._pieces import LEAST_BYTES
from postgres_kit import postgres, run_sql
from remote_kit import s3

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"Frage {n}: Grüß dich, 世界 🌍?"},
            {"role": "assistant", "content": f'So, "{n}",\n\tund {"weiter " * (n % 40)}!'},
        ],
        "id": n,
        "score": n / 8,
        "source": None if n % 5 else "made",
    }
    for n in range(2500)
]
FILES = ("jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz", "tar", "tgz")
SQL = "select messages, id, score, source from chats order by id"
TYPES = 'types = { id = "integer", score = "number" }'


@pytest.fixture
def url() -> Iterator[str]:
    with postgres() as found:
        yield found


def cells() -> list[tuple[str, int, float, str | None]]:
    """Return the rows as a table has them: what was said is a JSON text."""
    return [(json.dumps(r["messages"]), r["id"], r["score"], r["source"]) for r in ROWS]


def write_files(folder: Path) -> None:
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (folder / "rows.jsonl").write_bytes(lines)
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    for ending, mode in (("tar", "w"), ("tgz", "w:gz")):
        with tarfile.open(folder / f"rows.{ending}", mode) as archive:  # type: ignore[call-overload]  # a mode from a table
            item = tarfile.TarInfo("data/rows.jsonl")
            item.size = len(lines)
            archive.addfile(item, io.BytesIO(lines))
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, folder / "rows.parquet", row_group_size=700)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    quoted = (
        ",".join("" if c is None else '"' + str(c).replace('"', '""') + '"' for c in row)
        for row in cells()
    )
    (folder / "rows.csv").write_text("messages,id,score,source\n" + "\n".join(quoted) + "\n")


def write_sqlite(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("create table chats (messages text, id integer, score real, source text)")
    database.executemany("insert into chats values (?, ?, ?, ?)", cells())
    database.commit()
    database.close()


def write_postgres(url: str) -> None:
    rows = ", ".join(
        "({}, {}, {}, {})".format(
            *("null" if c is None else "'" + str(c).replace("'", "''") + "'" for c in row)
        )
        for row in cells()
    )
    run_sql(
        url,
        "create table chats (messages jsonb, id integer, score float8, source text)",
        f"insert into chats values {rows}".replace("%", "%%"),
    )


def write_s3(folder: Path) -> None:
    import obstore
    from obstore.store import from_url

    store = from_url("s3://team", client_options={"allow_http": True})
    obstore.put(store, "chats/rows.parquet", (folder / "rows.parquet").read_bytes())


def target(name: str, source: str) -> str:
    types = TYPES if name == "csv" else ""
    return f'[dataset."{name}"]\nformat = "openai"\nsource = {source}\n{types}\n'


def test_same_rows_give_the_same_digest_from_everywhere(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv("CHATS", url)
    space = Space(tmp_path / "space", tmp_path / "store")
    space.root.mkdir()
    write_files(space.root / "data")
    write_sqlite(space.root / "data" / "rows.db")
    write_postgres(url)
    sources = {ending.replace(".", "-"): f'"data/rows.{ending}"' for ending in FILES}
    sources["sqlite"] = f'{{ sql = "{SQL}", url = "sqlite:///data/rows.db" }}'
    sources["postgres"] = f'{{ sql = "{SQL}", url_env = "CHATS" }}'
    sources["s3"] = '"s3://team/chats/*.parquet"'
    space.manifest("".join(target(*item) for item in sources.items()))
    with s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        write_s3(space.root / "data")
        assert sorted(space.make()) == sorted(sources)
    digests = {name: space.finished(name).digest for name in sources}
    assert set(digests.values()) == {digests["jsonl"]}
    shards = list((space.output("jsonl") / "data").iterdir())
    assert len(shards) > 1
    assert (space.root / "data" / "rows.jsonl").stat().st_size < LEAST_BYTES
