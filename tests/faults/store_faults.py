"""Injecting faults into `store_writer.py` by strace, and looking at what is left.

Never with `--seccomp-bpf`: it skips the injection without a word (strace 6.1, kernel 6.18), and
every count here would be of faults that did not happen.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults.store_writer import NUM_ACTIONS, files_of
from store_kit import contents, corrupt_blobs, key_of, open_store, records_without_bytes

STRACE = shutil.which("strace")
WRITER = Path(__file__).with_name("store_writer.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
CALLS = (
    "openat",
    "write",
    "fsync",
    "syncfs",
    "rename",
    "linkat",
    "mkdir",
    "rmdir",
    "unlink",
    "fchmod",
    "chmod",
    "fchmodat",
    "utimensat",
    "flock",
)


@dataclass(frozen=True)
class Point:
    """The `number`-th time that the writer makes a system call."""

    call: str
    number: int
    is_of_action: bool
    """The action itself makes it, in its output directory, and not the store."""


@dataclass
class Outcome:
    """Counts over a sweep; a test compares them whole."""

    planned: int = 0
    fired: int = 0
    corrupt: int = 0
    redone: int = 0
    failed: int = 0
    different: int = 0
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"planned {self.planned}, fired {self.fired}, corrupt {self.corrupt}, "
            f"redone {self.redone}, failed {self.failed}, different {self.different}"
        )


def run_writer(
    directory: Path, variant: str = "", before: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run the build, under `before` (strace and its options) if given."""
    directory.mkdir(exist_ok=True)
    command = [*before, sys.executable, "-S", str(WRITER), str(directory), variant]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def points(directory: Path, variant: str = "") -> list[Point]:
    """Return all calls by which the writer changes the store or makes it durable."""
    trace = directory.with_suffix(".trace")
    traced = f"trace={','.join(CALLS)}"
    assert STRACE is not None
    run_writer(directory, variant, [STRACE, "-y", "-s", "4096", "-o", str(trace), "-e", traced])
    counts: Counter[str] = Counter()
    found = []
    for line in trace.read_text().splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        call = match[1]
        counts[call] += 1
        changes = call != "openat" or "O_CREAT" in line
        if changes and str(directory) in line:
            writes = call in ("openat", "write", "mkdir")
            of_action = writes and re.search(r"/v1/tmp/[^/]+/\d+/", line) is not None
            found.append(Point(call, counts[call], of_action))
    return found


def inject(
    directory: Path, point: Point, what: str, variant: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run the writer with a fault: `signal=SIGKILL`, `error=EIO`, …"""
    assert STRACE is not None
    options = ["-qq", "-o", str(directory.with_suffix(".inject")), "-e", f"trace={point.call}"]
    fault = f"inject={point.call}:{what}:when={point.number}"
    return run_writer(directory, variant, [STRACE, *options, "-e", fault])


def fired(directory: Path) -> bool:
    """Say whether strace did inject, by its own account."""
    text = directory.with_suffix(".inject").read_text()
    return "(INJECTED)" in text or "killed by SIGKILL" in text


def look(directory: Path, first: str, outcome: Outcome) -> None:
    """Count what the fault did, then build again undisturbed and count that too.

    `first` is what the disturbed writer said: what it called built must not be built again.
    """
    root = directory / "store"
    wrong = corrupt_blobs(root) + records_without_bytes(root)
    outcome.corrupt += bool(wrong)
    again = run_writer(directory)
    finished = set(re.findall(r"(?:built|found) (\d)", first))
    rebuilt = set(re.findall(r"built (\d)", again.stdout))
    outcome.redone += bool(finished & rebuilt)
    outcome.failed += again.returncode != 0
    outcome.different += not is_complete(directory)
    if wrong or finished & rebuilt or again.returncode:
        outcome.details.append(f"{wrong} {finished & rebuilt} {again.stderr[-500:]}")


def is_complete(directory: Path) -> bool:
    """Say whether the store holds all actions, whole, and nothing unfinished."""
    with open_store(directory) as store:
        for number in range(NUM_ACTIONS):
            record = store.find(key_of(number))
            if record is None or contents(store.lay_out(record.tree)) != files_of(number):
                return False
        return not _unfinished(store.root) and not corrupt_blobs(store.root)


def _unfinished(root: Path) -> list[Path]:
    """Return what is left of dead processes that no one may still need.

    A process that died before it could say who it is may, for all we know, be about to: its
    empty folder waits for gc.
    """
    base = root / "v1"
    nameless = [p.parent for p in base.glob("tmp/*/owner") if p.stat().st_size == 0]
    left = [*base.glob("tmp/*/*"), *base.glob("pending/*/*")]
    return [path for path in left if path.parent not in nameless]


def sample(found: list[Point], most: int) -> list[Point]:
    """Return about `most` of the points, others each hour; all with FTBUILD_FAULTS=all."""
    step = max(1, -(-len(found) // most))
    if os.environ.get("FTBUILD_FAULTS") == "all":
        return found
    return found[int(time.time() / 3600) % step :: step]
