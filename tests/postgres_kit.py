"""A real PostgreSQL, started by a test on a socket of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def server_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server of this test's own; its URL."""
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: no /usr/lib/postgresql/*/bin/initdb")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_owner: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        as_owner = ["runuser", "-u", "postgres", "--"]
    data = str(folder / "data")
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    quiet = {"check": True, "capture_output": True, "cwd": "/"}
    initdb = [*as_owner, str(binaries / "initdb"), "-D", data, "-U", "tester", "-A", "trust"]
    control = [*as_owner, str(binaries / "pg_ctl"), "-D", data, "-w"]
    subprocess.run([*initdb, "-E", "UTF8", "--locale=C.UTF-8"], **quiet)  # type: ignore[call-overload]  # one dict for both
    log = str(folder / "log")
    subprocess.run([*control, "-o", options, "-l", log, "start"], **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql+psycopg://tester@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]
        shutil.rmtree(folder)


def run_sql(url: str, *statements: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
