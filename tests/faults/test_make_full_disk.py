"""A full disk under a whole `ftbuild make`: told as such, nothing lost, nothing done twice."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.test_store_full_disk import mount, remount, unmount
from store_kit import corrupt_blobs, records_without_bytes

NUM_STEPS = 5
STEP_BYTES = 70_000
MANIFEST = '[project]\nname = "full"\n' + "".join(
    f"[command.step{n}]\n"
    + (f'deps = {{ before = "step{n - 1}" }}\n' if n else "")
    + f"run = \"head -c {STEP_BYTES} /dev/zero | tr '\\\\0' {n} > $out/f\"\n"
    for n in range(NUM_STEPS)
)


@dataclass
class Sweep:
    """What a sweep over sizes found."""

    full: int = 0
    in_a_command: int = 0
    corrupt: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)


def make(root: Path, disk: Path) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "FTBUILD_CACHE": str(disk / "store"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "ftbuild", "make", "-j", "1", "--json", f"step{NUM_STEPS - 1}"]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def built(done: "subprocess.CompletedProcess[str]") -> set[str]:
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return {e["label"] for e in events if e["event"] == "finished" and e["outcome"] == "built"}


def errors(done: "subprocess.CompletedProcess[str]") -> str:
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return done.stderr + "".join(e.get("error") or "" for e in events)


def at_limit(place: Path, limit: str, found: Sweep) -> None:
    """Build within a limit, then without, and note what went wrong."""
    root, disk = place / "space", place / "disk"
    root.mkdir(parents=True)
    (root / "FTBUILD.toml").write_text(MANIFEST)
    if not mount(disk, limit):
        pytest.skip("mounting a tmpfs needs root")
    try:
        first = make(root, disk)
        if first.returncode != 0:
            text = errors(first)
            assert (first.returncode, "error[E0650]: the disk " in text) == (5, True), (limit, text)
            assert "Traceback" not in text
            found.full += 1
            found.in_a_command += "failed with exit status 1" in text
        store = disk / "store"
        if corrupt_blobs(store) or records_without_bytes(store):
            found.corrupt.append(limit)
        remount(disk, "size=64m,nr_inodes=10000")
        second = make(root, disk)
        assert second.returncode == 0, (limit, errors(second))
        found.redone += [f"{limit} {label}" for label in built(first) & built(second)]
        assert built(first) | built(second) == {f"step{n}" for n in range(NUM_STEPS)}
        for number in range(NUM_STEPS):
            made = (root / f"ftbuild-out/step{number}/f").read_text()
            assert made == str(number) * STEP_BYTES
    finally:
        unmount(disk)


def test_full_disk_is_told_and_what_is_finished_stays(tmp_path: Path) -> None:
    found = Sweep()
    sizes = [f"size={kib}k" for kib in range(20, 480, 60)]
    inodes = [f"size=64m,nr_inodes={count}" for count in range(6, 66, 12)]
    for number, limit in enumerate([*sizes, *inodes]):
        at_limit(tmp_path / str(number), limit, found)
    bad = len(found.corrupt) + len(found.redone)
    report("4", "full disk, of a whole build", fired=found.full, bad=bad)
    assert found.full > 9
    assert found.in_a_command > 2
    assert (found.corrupt, found.redone) == ([], [])
