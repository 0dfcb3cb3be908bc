"""Kill -9 of gc at each call by which it removes something: what stays is whole."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import ENVIRONMENT, STRACE
from store_kit import build, contents, corrupt_blobs, key_of, open_store, records_without_bytes

CALLS = "unlink,unlinkat,rmdir,rename,fsync,syncfs"
KEPT = {"a.txt": b"kept\n", "all.txt": b"in all\n", "weights.bin": b"kept" * 20_000}
COLLECT = """
import sys
from pathlib import Path
from ftbuild.store import gc
from store_kit import key_of, open_store
with open_store(Path(sys.argv[1])) as store:
    store.gc(max_bytes=0, grace_s=0, in_use=[key_of("kept")])
"""
BYTES_FIRST = """
from ftbuild.store import gc
real, later = gc._remove_records, []
gc._remove_records = lambda *given: later.append(given)
%s
    real(*later[0])
"""

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


@dataclass
class Sweep:
    """What a sweep found."""

    planned: int = 0
    fired: int = 0
    corrupt: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def collect(place: Path, *before: str, program: str = COLLECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", program, str(place)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def filled(tmp_path: Path) -> Path:
    """Return a folder with a store: three records that go, one that stays."""
    place = tmp_path / "filled"
    with open_store(place) as store:
        for name in ("kept", "old", "older", "oldest"):
            files = {"a.txt": b"%s\n" % name.encode(), "weights.bin": name.encode() * 20_000}
            build(store, name, {"all.txt": b"in all\n", **files})
    return place


def copied(original: Path, place: Path) -> Path:
    # A large blob and the file of its tree are one inode.
    subprocess.run(["cp", "-a", str(original), str(place)], check=True)
    return place


def sweep(tmp_path: Path, program: str) -> Sweep:
    original = filled(tmp_path)
    log = tmp_path / "trace"
    options = ["-y", "-qq", "-o", str(log), "-e", f"trace={CALLS}"]
    traced = copied(original, tmp_path / "traced")
    assert collect(traced, str(STRACE), *options, program=program).returncode == 0
    counts: Counter[str] = Counter()
    points = []
    for line in log.read_text().splitlines():
        if match := re.match(r"(\w+)\(", line):
            counts[match[1]] += 1
            if "/store/v1/" in line:
                points.append((match[1], counts[match[1]]))
    found = Sweep(planned=len(points))
    for number, point in enumerate(points):
        one_point(copied(original, tmp_path / f"{number}"), point, program, found)
    return found


def one_point(place: Path, point: tuple[str, int], program: str, found: Sweep) -> None:
    log = place.with_suffix(".inject")
    inject = f"inject={point[0]}:signal=SIGKILL:when={point[1]}"
    options = ["-qq", "-o", str(log), "-e", f"trace={point[0]}", "-e", inject]
    collect(place, str(STRACE), *options, program=program)
    found.fired += "killed by SIGKILL" in log.read_text()
    root = place / "store"
    found.corrupt += corrupt_blobs(root) + records_without_bytes(root)
    again = collect(place)
    with open_store(place) as store:
        record = store.find(key_of("kept"))
        if record is None or contents(store.lay_out(record.tree)) != KEPT:
            found.failed.append(f"{point}: what was in use is gone")
    left = {path.parent.parent.name for path in root.glob("v1/actions/*/*")}
    is_done = len(list(root.glob("v1/blobs/*/*"))) == len(KEPT) and left == {"actions"}
    if again.returncode or not is_done or corrupt_blobs(root):
        found.failed.append(f"{point}: {again.returncode} {again.stderr[-300:]}")
    shutil.rmtree(place)


def test_gc_killed_anywhere_leaves_whole_what_it_leaves(tmp_path: Path) -> None:
    found = sweep(tmp_path, COLLECT)
    bad = len(found.corrupt) + len(found.failed)
    report("1", "kill -9 at a call of gc", fired=found.fired, bad=bad)
    assert found.planned > 15
    assert found == Sweep(planned=found.planned, fired=found.planned)


def test_sweep_turns_red_on_a_gc_that_removes_bytes_before_records(tmp_path: Path) -> None:
    found = sweep(tmp_path, BYTES_FIRST % COLLECT)
    report("1", "kill -9 at a call of gc", control_red=bool(found.corrupt))
    assert found.corrupt
