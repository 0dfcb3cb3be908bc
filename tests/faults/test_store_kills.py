"""Kill -9 and failing system calls at every point at which a small build changes the store."""

import re
import shutil
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import (
    STRACE,
    Outcome,
    Point,
    fired,
    inject,
    is_complete,
    look,
    points,
    run_writer,
    sample,
)
from store_kit import corrupt_blobs, records_without_bytes

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


def _sweep(tmp_path: Path, chosen: list[Point], what: str, variant: str = "") -> Outcome:
    outcome = Outcome(planned=len(chosen))
    for number, point in enumerate(chosen):
        directory = tmp_path / f"{variant.replace(' ', '-')}{number}"
        done = inject(directory, point, what, variant)
        outcome.fired += fired(directory)
        if "signal" not in what:
            # The call may be one whose failure does no harm; else it is told in words.
            told = re.match(r"error\[E06\d\d\]: ", done.stderr) is not None
            if done.returncode != (5 if told else 0):
                outcome.failed += 1
                outcome.details.append(f"{point}: {done.returncode} {done.stderr[-500:]}")
        look(directory, done.stdout, outcome)
    return outcome


def _harm(outcome: Outcome) -> int:
    return outcome.corrupt + outcome.redone + outcome.failed + outcome.different


def _report(name: str, outcome: Outcome, total: int) -> None:
    print(f"{name}: {total} points; {outcome}", *outcome.details, sep="\n")


def test_kill_at_any_point_corrupts_nothing_and_redoes_nothing(tmp_path: Path) -> None:
    found = points(tmp_path / "trace")
    chosen = sample(found, 72)
    outcome = _sweep(tmp_path, chosen, "signal=SIGKILL")
    _report("kill", outcome, len(found))
    report("1", "kill -9 at a call of the store", fired=outcome.fired, bad=_harm(outcome))
    assert len(found) > 100
    expected = Outcome(planned=len(chosen), fired=len(chosen))
    assert (str(outcome), outcome.details) == (str(expected), [])


@pytest.mark.parametrize("variant", ["in place", "record first"])
def test_kill_sweep_turns_red_on_a_broken_store(tmp_path: Path, variant: str) -> None:
    found = points(tmp_path / "trace", variant)
    if variant == "in place":
        of_blobs = _writes_of_blobs(tmp_path / "trace.trace")
        chosen = [point for point in found if point.call == "write" and point.number in of_blobs]
    else:
        chosen = [point for point in found if point.call == "rename"][3:]
    outcome = _sweep(tmp_path, chosen[:8], "signal=SIGKILL", variant)
    _report(variant, outcome, len(found))
    report("1", "kill -9 at a call of the store", control_red=outcome.corrupt > 0)
    assert outcome.fired == outcome.planned > 2
    assert outcome.corrupt > 0


def _writes_of_blobs(trace: Path) -> set[int]:
    writes = [line for line in trace.read_text().splitlines() if line.startswith("write(")]
    return {number for number, line in enumerate(writes, 1) if "/blobs/" in line}


@pytest.mark.parametrize(
    ("error", "row", "most"),
    [("ENOSPC", "6", 28), ("EIO", "6", 28), ("EDQUOT", "5", 8), ("ESTALE", "22", 8)],
)
def test_failing_call_is_told_in_words_and_corrupts_nothing(
    tmp_path: Path, error: str, row: str, most: int
) -> None:
    # What makes bytes durable has a test of its own: there, what was built is dropped.
    harmless = ("rmdir", "unlink", "flock", "fsync", "syncfs")
    traced = points(tmp_path / "trace")
    found = [p for p in traced if p.call not in harmless and not p.is_of_action]
    chosen = sample(found, most)
    outcome = _sweep(tmp_path, chosen, f"error={error}")
    _report(error, outcome, len(found))
    report(row, f"{error} of a call of the store", fired=outcome.fired, bad=_harm(outcome))
    expected = Outcome(planned=len(chosen), fired=len(chosen))
    assert (str(outcome), outcome.details) == (str(expected), [])


def test_failing_read_is_told_or_a_miss_and_gives_nothing_wrong(tmp_path: Path) -> None:
    """Each read of a file of the store, in a build that finds all in it."""
    assert run_writer(tmp_path / "full").returncode == 0
    log = tmp_path / "log"
    shutil.copytree(tmp_path / "full", tmp_path / "traced", symlinks=True)
    before = [str(STRACE), "-y", "-o", str(log), "-e", "trace=read"]
    run_writer(tmp_path / "traced", "", before)
    reads = enumerate(log.read_text().splitlines(), 1)
    found = [n for n, line in reads if str(tmp_path / "traced" / "store") in line]
    num_fired, wrong = 0, []
    for number in sample([Point("read", n, False) for n in found], 12):
        directory = tmp_path / str(number.number)
        shutil.copytree(tmp_path / "full", directory, symlinks=True)
        done = inject(directory, number, "error=EIO")
        num_fired += fired(directory)
        if done.returncode and "error[E06" not in done.stderr and "OSError" not in done.stderr:
            wrong.append(done.stderr[-500:])
        wrong += corrupt_blobs(directory / "store") + records_without_bytes(directory / "store")
        assert run_writer(directory).returncode == 0
        assert is_complete(directory)
    report("6", "EIO of a read of the store", fired=num_fired, bad=len(wrong))
    assert num_fired > 5
    assert wrong == []


def test_failed_fsync_records_nothing(tmp_path: Path) -> None:
    found = [p for p in points(tmp_path / "trace", "flush each") if p.call in ("fsync", "syncfs")]
    assert {point.call for point in found} == {"fsync", "syncfs"}
    num_fired = 0
    for number, point in enumerate(found):
        directory = tmp_path / str(number)
        done = inject(directory, point, "error=EIO", "flush each")
        num_fired += fired(directory)
        assert done.returncode == 5
        # The first two are of the store's own making: its format file and that file's folder.
        assert done.stderr.startswith(
            "error[E0653]: the store cannot be used: Input/output error\n"
            if number < 2
            else "error[E0651]: the disk did not take what was written to the store: "
            "Input/output error\n"
        )
        # What had been flushed before stays; of the failed batch nothing is recorded.
        flushed_before = len(re.findall(r"built", done.stdout))
        actions = directory / "store" / "v1" / "actions"
        assert len(list(actions.glob("*/*.json"))) == flushed_before
        assert not list((directory / "store" / "v1" / "pending").glob("*/*.json"))
        assert records_without_bytes(directory / "store") == []
        assert run_writer(directory).returncode == 0
        assert is_complete(directory)
    report("7", "EIO of fsync and syncfs", fired=num_fired, bad=0)
    assert num_fired == len(found)


def test_undisturbed_build_is_complete_and_the_next_finds_all(tmp_path: Path) -> None:
    first, second = run_writer(tmp_path / "a"), run_writer(tmp_path / "a")
    assert (first.stdout, first.stderr) == ("built 0\nbuilt 1\nbuilt 2\n", "")
    assert (second.stdout, second.stderr) == ("found 0\nfound 1\nfound 2\n", "")
    assert is_complete(tmp_path / "a")
