"""`{ sql = "select …", url = "sqlite:///file.db" }`: the rows of one query, as JSON Lines.

A query has no content before it is run. So it is run once and its rows are kept, as a remote
file would be: FTBUILD.lock holds their digest, and `ftbuild lock --upgrade NAME` (of the variable
in `url_env`) asks the database again. A SQLite file is a local input: when it changes, the query
is run again by itself, and only other rows make anything stale.

Rows come in the order in which the database gives them: a query that must give the same rows on
every machine says `order by`.

{"answer":"4","question":"How much is 2 + 2?"}
"""

import contextlib
import datetime
import decimal
import math
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ftbuild.digest import canonical_json
from ftbuild.errors import MachineError, UsageError

NAME = "file.jsonl"

_SQLITE = "sqlite:///"
_BLOCK_ROWS = 1000
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
    sqlite3.SQLITE_TRANSACTION,
}


def sqlite_file(table: Mapping[str, Any], base: Path) -> Path | None:
    """Return the SQLite file that `url` names, seen from `base`; None for another database.

    Raises:
        UsageError: E0440, there is no such file.
    """
    url = table.get("url", "")
    if not url.startswith("sqlite:"):
        return None
    path: Path = base / url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not path.is_file():
        raise UsageError(
            f"there is no SQLite file `{url}`",
            code="E0440",
            fix="write sqlite:/// and the path of the file, relative to its FTBUILD.toml",
        )
    return path


def write_sqlite(path: Path, table: Mapping[str, Any], out: Path) -> None:
    """Write the rows of a query on a SQLite file to `out`.

    Raises:
        UsageError: E0441, the query is wrong, or does more than to read.
    """
    name = f"file:{quote(str(path.resolve()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(name, uri=True, isolation_level=None)) as database:
            database.set_authorizer(_only_reads)
            cursor = database.execute(table["sql"], table.get("params", {}))
            with open(out, "wb") as file:
                _write(file, [column[0] for column in cursor.description], iter(cursor))
    except (sqlite3.Error, OverflowError) as e:
        raise _refused(e, table) from e


def _only_reads(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY


def fetch(table: Mapping[str, Any], environment: Mapping[str, str], base: Path, out: Path) -> None:
    """Write the rows of a query to `out`.

    Raises:
        UsageError: E0441, the query is wrong, or does more than to read.
        MachineError: the variable is not set, or the database cannot be reached.
    """
    url = table.get("url") or environment.get(table["url_env"])
    if not url:
        raise MachineError(
            f"the environment variable `{table['url_env']}` is not set",
            code="E0442",
            fix="set it to the database's URL, such as postgresql+psycopg://user:password@host/name",
        )
    file = sqlite_file({"url": url}, base)
    if file is not None:
        write_sqlite(file, table, out)
        return
    _ask(url, table, out)


def _ask(url: str, table: Mapping[str, Any], out: Path) -> None:
    try:
        import sqlalchemy
    except ImportError as e:
        raise MachineError(
            "an SQL source needs the library `sqlalchemy`",
            code="E0443",
            fix="pip install 'ftbuild[sql]', and the driver of your database",
        ) from e
    try:
        engine = sqlalchemy.create_engine(url)
    except (sqlalchemy.exc.ArgumentError, ImportError) as e:
        raise MachineError(
            "the URL of the database cannot be used",
            code="E0443",
            why=str(e).splitlines()[0].replace(url, "…"),
            fix="its form is dialect+driver://user:password@host/name; is the driver installed?",
        ) from e
    try:
        with engine.connect() as connection, open(out, "wb") as file:
            _make_read_only(connection)
            query = sqlalchemy.text(table["sql"])
            streamed = connection.execution_options(stream_results=True)
            result = streamed.execute(query, table.get("params", {}))
            _write(file, list(result.keys()), _rows(result))
    except sqlalchemy.exc.OperationalError as e:
        raise MachineError(
            "the database does not answer the query",
            code="E0442",
            why=str(e.orig).strip().splitlines()[0],
            fix="does it run, and does the URL name it?",
        ) from e
    except sqlalchemy.exc.SQLAlchemyError as e:
        raise _refused(getattr(e, "orig", None) or e, table) from e
    finally:
        engine.dispose()


def _rows(result: Any) -> Iterator[Sequence[Any]]:
    for block in result.partitions(_BLOCK_ROWS):
        yield from block


def _make_read_only(connection: Any) -> None:
    if connection.dialect.name in ("postgresql", "mysql", "mariadb"):
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _refused(error: BaseException, table: Mapping[str, Any]) -> UsageError:
    return UsageError(
        f"the database refuses `{' '.join(table['sql'].split())[:80]}`",
        code="E0441",
        why=(str(error).strip() or type(error).__name__).splitlines()[0],
        fix="try the query in the database's own shell; values of `params` are named `:name`",
    )


def _write(file: IO[bytes], columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    twice, count = Counter(columns).most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"the query gives two columns named `{twice}`", code="E0441", fix="name one: `x as y`"
        )
    for number, row in enumerate(rows, 1):
        values = {
            key: _value(value, key, number)
            for key, value in zip(columns, row, strict=True)
            if value is not None
        }
        file.write(canonical_json(values) + b"\n")


def _value(value: Any, column: str, row: int) -> Any:
    """Return a value of a database as JSON has it, as Parquet's would be."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
    elif value is None or isinstance(value, str | bool | int):
        return value
    elif isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    elif isinstance(value, decimal.Decimal | uuid.UUID | datetime.timedelta):
        return str(value)
    elif isinstance(value, dict):
        return {key: _value(item, column, row) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        return [_value(item, column, row) for item in value]
    raise UsageError(
        f"`{column}` of row {row} is {_shown(value)}, which JSON has not",
        code="E0441",
        fix=f"leave it out, or give it as text: cast({column} as text)",
    )


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, float) else f"of type {type(value).__name__}"
