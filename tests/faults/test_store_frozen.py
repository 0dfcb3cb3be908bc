"""A writer that is frozen while gc runs loses nothing: by its lock, and where locks do nothing by
the grace period."""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import ENVIRONMENT, WRITER, is_complete, run_writer
from ftbuild.errors import MachineError
from ftbuild.store import gc
from store_kit import open_store

FAULT = "gc while a writer is frozen"


def frozen_at(directory: Path, line: str, grace_s: float) -> tuple[bool, bool]:
    """Freeze a writer when it says `line`, collect, let it go on; say what became of both."""
    directory.mkdir()
    command = [sys.executable, "-S", str(WRITER), str(directory)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        assert writer.stdout is not None
        assert any(said.strip() == line for said in writer.stdout)
        writer.send_signal(signal.SIGSTOP)
        try:
            was_refused = collect(directory, grace_s)
        finally:
            writer.send_signal(signal.SIGCONT)
        writer.stdout.read()
        ended_well = writer.wait(60) == 0
    again = run_writer(directory)
    return was_refused, ended_well and "built" not in again.stdout and is_complete(directory)


def collect(directory: Path, grace_s: float) -> bool:
    """Run gc; say whether it was refused because the writer has the store."""
    with open_store(directory) as store:
        try:
            store.gc(grace_s=grace_s, max_bytes=0)
        except MachineError as error:
            return error.problems[0].code == "E0656"
    return False


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "fcntl", lambda *args: 0)
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)


@pytest.mark.parametrize("line", ["built 0", "built 1"])
def test_gc_waits_for_a_frozen_writer(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "WAIT_S", 0.1)
    found = frozen_at(tmp_path / "x", line, 0)
    report("14", FAULT, fired=1, bad=found != (True, True))
    assert found == (True, True)


@pytest.mark.parametrize("line", ["built 0", "built 1"])
@pytest.mark.usefixtures("no_locks")
def test_grace_period_spares_a_frozen_writer_where_locks_do_nothing(
    tmp_path: Path, line: str
) -> None:
    found = frozen_at(tmp_path / "x", line, 24 * 3600)
    report("14", FAULT, fired=1, bad=found != (False, True))
    assert found == (False, True)


@pytest.mark.usefixtures("no_locks")
def test_without_lock_and_grace_a_frozen_writer_loses_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gc._records
    pending = ("pending",)  # nor what it has published
    monkeypatch.setattr(
        gc, "_records", lambda *args, folder="actions": () if folder in pending else real(*args)
    )
    was_refused, is_whole = frozen_at(tmp_path / "x", "built 1", 0)
    report("14", FAULT, control_red=not is_whole)
    assert (was_refused, is_whole) == (False, False)
