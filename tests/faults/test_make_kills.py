"""Kill -9 of a whole `ftbuild make`, at its system calls, in the middle of real steps.

The store's own sweep (test_store_kills.py) covers each of its calls; this one covers what lies
between: scheduler, workers, links, lock, history. SIGKILL is injected by strace into whichever
thread or child is the first to make a call for the n-th time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from store_kit import corrupt_blobs, records_without_bytes

STRACE = shutil.which("strace")
CALLS = (
    "openat,write,fsync,syncfs,rename,link,linkat,mkdir,symlink,unlink,utimensat,chmod,fchmod,"
    "vfork,clone,clone3"
)
POINTS = 44
MANIFEST = """\
[project]
name = "kills"
[command.clean]
srcs = { raw = "raw.txt" }
run = "grep -v '^#' \\"$raw\\" > \\"$out/f\\""
[command.loud]
deps = { clean = "clean" }
run = "tr a-z A-Z < \\"$clean/f\\" > \\"$out/f\\"; echo told"
[command.final]
deps = { loud = "loud" }
run = "cat \\"$loud/f\\" \\"$loud/f\\" > \\"$out/f\\""
"""
BROKEN = """\
import os
from ftbuild.digest import hash_bytes
from ftbuild.store.blobs import Blobs

def put_bytes(self, data):
    path = self._layout.blob(hash_bytes(data))
    if os.path.exists(path):
        return hash_bytes(data)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        file.write(data[:1])
        os.chmod(path, 0o644)
        file.write(data[1:])
    return hash_bytes(data)

Blobs.put_bytes = put_bytes
"""

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


@dataclass
class Sweep:
    """What a sweep found."""

    planned: int = 0
    fired: int = 0
    corrupt: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def start(root: Path, *before: str, path: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "FTBUILD_CACHE": str(root / "store"),
        "PYTHONPATH": os.pathsep.join([*filter(None, [path]), *sys.path]),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "ftbuild", "make", "-j", "1", "--json", "final"]
    return subprocess.run(
        [*before, *command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def workspace(root: Path) -> Path:
    root.mkdir()
    (root / "FTBUILD.toml").write_text(MANIFEST)
    (root / "raw.txt").write_text("# a comment\nhello\nworld\n")
    return root


def finished(stdout: str) -> dict[str, dict[str, str]]:
    """Return the last whole `finished` event of each target."""
    lines = [line for line in stdout.splitlines() if line.endswith("}")]
    events = [json.loads(line) for line in lines]
    return {e["label"]: e for e in events if e["event"] == "finished"}


def points(root: Path, path: str) -> list[tuple[str, int]]:
    """Return call and number of every system call that an undisturbed build makes."""
    log = root / "trace"
    options = ["-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}"]
    assert start(root, str(STRACE), *options, path=path).returncode == 0
    made: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        if match := re.match(r"(\d+) +(\w+)\(", line):
            made[match[1], match[2]] += 1
    most: dict[str, int] = {}
    for (_, call), count in made.items():
        most[call] = max(most.get(call, 0), count)
    return [(call, number) for call in sorted(most) for number in range(1, most[call] + 1)]


def sweep(tmp_path: Path, chosen: list[tuple[str, int]], path: str = "") -> Sweep:
    found = Sweep(planned=len(chosen))
    right = finished(start(workspace(tmp_path / "right")).stdout)
    for place, (call, number) in enumerate(chosen):
        root = workspace(tmp_path / f"{place}")
        log = root / "strace"
        inject = f"inject={call}:signal=SIGKILL:when={number}"
        options = ["-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", inject]
        killed = start(root, str(STRACE), *options, path=path)
        found.fired += "+++ killed by SIGKILL +++" in log.read_text()
        store = root / "store"
        if (store / "v1").exists():
            found.corrupt += corrupt_blobs(store) + records_without_bytes(store)
        again = start(root)
        after = finished(again.stdout)
        if again.returncode or {k: e.get("digest") for k, e in after.items()} != {
            k: e["digest"] for k, e in right.items()
        }:
            found.failed.append(f"{call} {number}: {again.returncode} {again.stderr[-300:]}")
        done = {k for k, e in finished(killed.stdout).items() if e["outcome"] == "built"}
        found.redone += [k for k in done if after.get(k, {}).get("outcome") == "built"]
        if not found.failed:
            shutil.rmtree(root)
    return found


def test_build_killed_anywhere_loses_nothing_and_redoes_nothing(tmp_path: Path) -> None:
    every = points(workspace(tmp_path / "trace"), "")
    stride = max(1, len(every) // POINTS)
    offset = os.getpid() % stride  # another sample each time; all of them with FTBUILD_FAULTS=all
    chosen = every if os.environ.get("FTBUILD_FAULTS") == "all" else every[offset::stride]
    found = sweep(tmp_path, chosen)
    print(f"{len(every)} points, {found}")
    bad = len(found.corrupt) + len(found.redone) + len(found.failed)
    report("1", "kill -9 at a call of a whole build", fired=found.fired, bad=bad)
    assert len(every) > 200
    # How often each thread makes a call differs a little from build to build.
    assert found.fired >= 0.95 * found.planned
    assert (found.corrupt, found.redone, found.failed) == ([], [], [])


def test_sweep_turns_red_on_a_store_that_writes_in_place(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN)
    path = str(tmp_path / "broken")
    every = [p for p in points(workspace(tmp_path / "trace"), path) if p[0] == "chmod"]
    found = sweep(tmp_path, every, path)
    report("1", "kill -9 at a call of a whole build", control_red=bool(found.corrupt))
    assert found.fired >= 0.95 * found.planned
    assert found.corrupt
