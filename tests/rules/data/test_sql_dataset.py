"""A dataset from a database is the one from a file with the same rows."""

import sqlite3
from pathlib import Path

import pytest

from engine.space import Space
from ftbuild.testing import tree_digest

MANIFEST = """[dataset.file]
source = "rows.jsonl"
format = "alpaca"

[dataset.query]
format = "alpaca"

[dataset.query.source]
sql = "select instruction, output, stars from t where stars > :least order by stars"
url = "sqlite:///data/rows.db"
params = { least = 1 }
"""
ROWS = [("2+2?", "4", 2), ("Grüß 🌍", "a\nb", 3), ("dropped", "x", 1)]


def test_rows_of_a_query_give_the_dataset_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    (tmp_path / "space" / "data").mkdir(parents=True)
    space = Space(tmp_path / "space", tmp_path / "store")
    database = sqlite3.connect(space.root / "data" / "rows.db")
    database.execute("create table t (instruction text, output text, stars integer)")
    database.executemany("insert into t values (?, ?, ?)", ROWS)
    database.commit()
    database.close()
    space.write(
        "rows.jsonl",
        '{"instruction": "2+2?", "input": null, "output": "4", "stars": 2}\n'
        '{"instruction": "Grüß 🌍", "output": "a\\nb", "stars": 3}\n',
    )
    space.manifest(MANIFEST)
    space.make()
    file, query = (space.root / "ftbuild-out" / name for name in ("file", "query"))
    assert tree_digest(file.resolve()) == tree_digest(query.resolve())


def test_bad_row_of_a_query_is_named_by_the_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    (tmp_path / "space").mkdir(parents=True)
    space = Space(tmp_path / "space", tmp_path / "store")
    database = sqlite3.connect(space.root / "rows.db")
    database.execute("create table t (instruction text, output text)")
    database.executemany("insert into t values (?, ?)", [("a", "b"), ("c", " ")])
    database.commit()
    database.close()
    space.manifest(
        '[dataset.query]\nformat = "alpaca"\n'
        'source = { sql = "select * from t", url = "sqlite:///rows.db" }\n'
    )
    assert space.build().exit_code == 1
    error = next(event.error for event in space.events if getattr(event, "error", None))
    assert "error[E0813]: `output` is empty" in error
    assert "select * from t:2" in error
