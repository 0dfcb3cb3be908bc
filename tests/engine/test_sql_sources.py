"""SQL sources: one SELECT, its rows pinned or followed, nothing but reading."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres_kit
from engine.space import Space
from ftbuild.errors import FtbuildError
from ftbuild.events import Finished
from ftbuild.queries import select_problem
from postgres_kit import run_sql

ROWS = (
    "".join(
        json.dumps(row) + "\n"
        for row in ({"n": 1, "text": "one"}, {"n": 2}, {"n": 3, "text": "three"})
    )
    .replace(": ", ":")
    .replace(", ", ",")
)
COPY = """[command.rows]
run = "cat $rows > $out/rows.jsonl"
srcs = { rows = { sql = "%s", url = "sqlite:///data.db"%s } }
"""


def make_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.execute("create table t (n integer, text text)")
    database.executemany("insert into t values (?, ?)", [(1, "one"), (2, None), (3, "three")])
    database.commit()
    return database


def rows_of(space: Space, name: str = "rows") -> str:
    return (space.root / "ftbuild-out" / name / "rows.jsonl").read_text()


def test_rows_of_a_sqlite_file_are_followed(space: Space) -> None:
    database = make_database(space.root / "data.db")
    space.manifest(COPY % ("select n, text from t order by n", ""))
    assert space.make() == ["rows"]
    assert rows_of(space) == ROWS
    assert space.make() == []
    database.execute("create table other (x)")
    database.commit()
    assert space.make() == []  # another table: the file changed, the rows did not
    database.execute("update t set text = 'two' where n = 2")
    database.commit()
    database.close()
    assert space.make() == ["rows"]
    assert '{"n":2,"text":"two"}' in rows_of(space)


def test_rows_in_the_journal_of_a_sqlite_file_count(space: Space) -> None:
    database = make_database(space.root / "data.db")
    space.manifest(COPY % ("select n from t", ""))
    assert space.make() == ["rows"]
    database.execute("pragma journal_mode = wal")
    database.execute("insert into t values (4, 'four')")
    database.commit()
    assert space.make() == ["rows"]
    assert rows_of(space).endswith('{"n":4}\n')
    database.close()


def test_params_are_typed(space: Space) -> None:
    make_database(space.root / "data.db").close()
    query = "select n, typeof(:least) as kind from t where n >= :least"
    space.manifest(COPY % (query, ", params = { least = 3 }"))
    space.make()
    assert rows_of(space) == '{"kind":"integer","n":3}\n'


@pytest.mark.fault("55", "more than a SELECT")
@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("select 1; select 2", "`sql` holds more than one statement"),
        ("select 1; drop table t", "`sql` holds more than one statement"),
        ("delete from t", "`sql` is no SELECT"),
        ("pragma user_version", "`sql` is no SELECT"),
        ("with x as (delete from t returning *) select * from x", "`sql` holds `delete`"),
        ("select * into u from t", "`sql` holds `into`"),
        ("select * from t for update", "`sql` holds `update`"),
        ("select load_extension('x.so')", "`sql` holds `load_extension`"),
        ("/* select */ insert into t values (1)", "`sql` is no SELECT"),
        ("-- select\nupdate t set n = 1", "`sql` is no SELECT"),
        ("", "`sql` is no SELECT"),
    ],
)
def test_more_than_a_select_is_refused(query: str, problem: str) -> None:
    found = select_problem(query)
    assert found is not None
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'a; drop table t' FROM t;",
        'select "update" from t -- delete\n',
        "with x as (select 1) select * from x",
        "select $$ delete; $$",
        "select n offset_n from t limit 1 offset 2",
        "select 'it''s; delete'",
    ],
)
def test_select_with_such_words_in_its_texts_is_taken(query: str) -> None:
    assert select_problem(query) is None


@pytest.mark.fault("55", "a write behind other words")
def test_what_the_words_hide_is_refused_by_sqlite(tmp_path: Path) -> None:
    from ftbuild.sources import sql

    make_database(tmp_path / "data.db").close()
    table = {"sql": "delete from t", "url": "sqlite:///data.db"}
    with pytest.raises(FtbuildError, match="the database refuses `delete from t`"):
        sql.write_sqlite(tmp_path / "data.db", table, tmp_path / "out")
    with sqlite3.connect(tmp_path / "data.db") as database:
        assert database.execute("select count(*) from t").fetchone() == (3,)
    database.close()


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("select absent from t", "no such column: absent"),
        ("select n from t where n > :least", "You did not supply a value for binding parameter"),
    ],
)
def test_query_that_the_database_refuses_is_an_error(space: Space, query: str, why: str) -> None:
    make_database(space.root / "data.db").close()
    space.manifest(COPY % (query, ""))
    assert space.build().exit_code != 0
    (failed,) = [event for event in space.events if isinstance(event, Finished)]
    assert str(failed.error).startswith("error[E0441]")
    assert why in str(failed.error)


@pytest.mark.parametrize(
    ("value", "what"),
    [("x'ff'", "of type bytes"), ("9e999", "inf")],
)
def test_value_that_json_has_not_is_refused(space: Space, value: str, what: str) -> None:
    make_database(space.root / "data.db").close()
    space.manifest(COPY % (f"select {value} as v", ""))
    assert space.build().exit_code != 0
    (failed,) = [event for event in space.events if isinstance(event, Finished)]
    assert f"`v` of row 1 is {what}, which JSON has not" in str(failed.error)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '{ sql = "select 1", url = "postgresql://me:secret@host/db" }',
            "error[E0406]: `srcs.rows`: `url` holds a password, which everybody who reads "
            "FTBUILD.toml would know",
        ),
        (
            '{ sql = "select 1" }',
            "error[E0406]: `srcs.rows`: an SQL source needs either `url` or `url_env`",
        ),
        (
            '{ sql = "drop table t", url_env = "DB" }',
            "error[E0406]: `srcs.rows`: `sql` is no SELECT",
        ),
        (
            '{ sql = "select 1", url_env = "DB", param = { a = 1 } }',
            "error[E0406]: `srcs.rows`: an SQL source has no key `param`",
        ),
    ],
)
def test_table_that_is_no_query_is_an_error_of_the_manifest(
    space: Space, table: str, message: str
) -> None:
    space.manifest(f'[command.x]\nrun = "true"\nsrcs = {{ rows = {table} }}\n')
    with pytest.raises(FtbuildError) as caught:
        space.build()
    assert caught.value.render().startswith(message)


@pytest.fixture
def postgres() -> Iterator[str]:
    with postgres_kit.postgres() as url:
        yield url


def test_rows_of_postgresql_are_pinned_until_asked_for_anew(
    space: Space, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sqlalchemy")
    run_sql(
        postgres,
        "create table t (n integer, text text, score float8, price numeric, made date, more jsonb)",
        "insert into t values (1, 'Grüß', 0.5, 1.50, '2024-02-29', '{\"a\": [1, null]}')",
        "insert into t values (2)",
    )
    monkeypatch.setenv("DB", postgres)
    source = '{ sql = "select * from t where n > :n order by n", url_env = "DB", params = {n = 0} }'
    space.manifest(
        f'[command.rows]\nrun = "cat $rows > $out/rows.jsonl"\nsrcs = {{ rows = {source} }}'
    )
    assert space.make() == ["rows"]
    assert rows_of(space) == (
        '{"made":"2024-02-29","more":{"a":[1,null]},"n":1,"price":"1.50","score":0.5,'
        '"text":"Grüß"}\n{"n":2}\n'
    )
    run_sql(postgres, "insert into t values (3)")
    monkeypatch.setenv("DB", "postgresql+psycopg://nobody@/nothing?host=/nowhere")
    assert space.make() == []  # no database is needed for rows that are pinned
    monkeypatch.setenv("DB", postgres)
    with space.open() as project:
        project.lock(upgrade=("DB",))
    assert space.make() == ["rows"]
    assert rows_of(space).endswith('{"n":3}\n')


@pytest.mark.fault("55", "a write in PostgreSQL")
def test_postgresql_is_only_read(postgres: str, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from ftbuild.sources import sql

    run_sql(
        postgres,
        "create table t (n integer)",
        "create function hidden() returns int language sql "
        "as 'insert into t values (1) returning n'",
    )
    table = {"sql": "select hidden()", "url_env": "DB"}
    with pytest.raises(FtbuildError, match="the database refuses") as caught:
        sql.fetch(table, {"DB": postgres}, tmp_path, tmp_path / "out")
    assert "read-only transaction" in caught.value.render()


def test_variable_that_is_not_set_is_an_error(space: Space) -> None:
    source = '{ sql = "select 1 as n", url_env = "NO_SUCH_DATABASE" }'
    space.manifest(f'[command.rows]\nrun = "true"\nsrcs = {{ rows = {source} }}')
    with pytest.raises(FtbuildError, match="variable `NO_SUCH_DATABASE` is not set"):
        space.build()


def test_database_that_does_not_answer_is_an_error_without_its_password(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("DB", "postgresql+psycopg://me:secret@/x?host=/nowhere")
    source = '{ sql = "select 1 as n", url_env = "DB" }'
    space.manifest(f'[command.rows]\nrun = "true"\nsrcs = {{ rows = {source} }}')
    with pytest.raises(FtbuildError) as caught:
        space.build()
    assert caught.value.problems[0].code == "E0442"
    assert "secret" not in caught.value.render()
