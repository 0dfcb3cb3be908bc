"""Eight processes do the same actions at once while a reader hashes all it sees."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import ENVIRONMENT
from faults.store_racer import ROUNDS
from store_kit import corrupt_blobs, records_without_bytes

RACER = Path(__file__).with_name("store_racer.py")
NUM_PROCESSES = 8


@dataclass
class Race:
    reads: int = 0
    torn: int = 0
    runs: int = 0
    failed: int = 0


def _race(directory: Path, mode: str) -> Race:
    race = Race()
    command = [sys.executable, str(RACER), str(directory), mode]
    directory.mkdir()
    racers = [
        subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(NUM_PROCESSES)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdin is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    while any(racer.poll() is None for racer in racers):
        _read_all(directory / "store" / "v1", race)
    for racer in racers:
        said, complaint = racer.communicate()
        race.failed += racer.returncode != 0
        race.runs += int(said or 0)
        if racer.returncode:
            print(complaint)
    print(f"{mode}: {race}")
    return race


def _read_all(base: Path, race: Race) -> None:
    for path in base.glob("blobs/*/*"):
        race.reads += 1
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # a writer found it damaged and moved it away: the control does that
        race.torn += hashlib.sha256(data).hexdigest() != path.name
    for path in base.glob("trees/*/*/*"):
        race.reads += 1
        race.torn += path.exists() and path.stat().st_size == 0


@pytest.mark.parametrize("mode", ["locks", "no locks"])
def test_racing_processes_tear_nothing(tmp_path: Path, mode: str) -> None:
    race = _race(tmp_path / "race", mode)
    root = tmp_path / "race" / "store"
    fault = f"eight processes and a hashing reader, {mode}"
    row = "19" if mode == "locks" else "20"
    report(row, fault, fired=race.reads, bad=race.torn + race.failed)
    assert (race.torn, race.failed) == (0, 0)
    assert race.reads > 300
    assert (corrupt_blobs(root), records_without_bytes(root)) == ([], [])
    assert len(list((root / "v1" / "actions").glob("*/*.json"))) == ROUNDS
    assert len(list((root / "v1" / "trees").glob("*/*"))) == ROUNDS
    assert list((root / "v1" / "quarantine").iterdir()) == []
    if mode == "locks":
        assert race.runs == ROUNDS  # each action once, whoever did it
    else:
        assert race.runs >= ROUNDS


def test_reader_sees_blobs_that_are_written_in_place(tmp_path: Path) -> None:
    race = _race(tmp_path / "race", "in place")
    for row, mode in (("19", "locks"), ("20", "no locks")):
        fault = f"eight processes and a hashing reader, {mode}"
        report(row, fault, control_red=race.torn > 0)
    assert race.torn > 0
