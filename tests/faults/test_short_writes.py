"""Writes that take a part of what they are given, and calls that a signal interrupts."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import ENVIRONMENT, STRACE, WRITER, is_complete, run_writer
from store_kit import corrupt_blobs, records_without_bytes

SHORT = """\
import os
real, joined, count = os.write, os.writev, [0]

def write(descriptor, data):
    if descriptor < 3:
        return real(descriptor, data)
    count[0] += 1
    return real(descriptor, memoryview(data)[: max(1, len(data) // 3)])

def writev(descriptor, blocks):
    return write(descriptor, next(b for b in blocks if len(b)))

os.write, os.writev = write, writev
import atexit
atexit.register(lambda: real(2, b"%d" % count[0]))
"""
ONE_WRITE = """
from ftbuild.store import disk
disk.write_all = lambda descriptor, data: write(descriptor, data)
"""


def short(place: Path, more: str = "") -> tuple[int, list[str]]:
    """Run the writer where every write is short; return how many were, and what is wrong."""
    (place / "patch").mkdir(parents=True)
    (place / "patch" / "sitecustomize.py").write_text(SHORT + more)
    path = os.pathsep.join([str(place / "patch"), ENVIRONMENT["PYTHONPATH"]])
    (place / "w").mkdir()
    done = subprocess.run(
        [sys.executable, str(WRITER), str(place / "w")],
        env={**ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    root = place / "w" / "store"
    return int(done.stderr.split()[-1]), corrupt_blobs(root) + records_without_bytes(root)


def test_short_write_is_gone_on_with(tmp_path: Path) -> None:
    fired, wrong = short(tmp_path)
    report("3", "a short write", fired=fired, bad=len(wrong))
    assert fired > 50
    assert wrong == []
    assert is_complete(tmp_path / "w")


def test_short_write_turns_red_where_it_is_taken_for_all(tmp_path: Path) -> None:
    _, wrong = short(tmp_path, ONE_WRITE)
    report("3", "a short write", control_red=bool(wrong))
    assert wrong


def test_write_that_ends_at_a_limit_leaves_nothing_half_there(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the kernel writes up to the limit, then refuses."""
    fired, wrong = 0, []
    for number, limit in enumerate(range(500, 70_000, 9_000)):
        directory = tmp_path / str(number)
        directory.mkdir()
        done = subprocess.run(
            [sys.executable, "-S", str(WRITER), str(directory)],
            env=ENVIRONMENT,
            capture_output=True,
            check=False,
            preexec_fn=lambda most=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )
        fired += done.returncode != 0
        root = directory / "store"
        wrong += corrupt_blobs(root) + records_without_bytes(root)
        assert run_writer(directory).returncode == 0
        assert is_complete(directory)
    report("3", "a write that ends at a limit", fired=fired, bad=len(wrong))
    assert fired == 8
    assert wrong == []


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_interrupted_call_is_made_again(tmp_path: Path, call: str) -> None:
    log = tmp_path / "log"
    inject = f"inject={call}:error=EINTR:when=1+3"
    done = run_writer(
        tmp_path / "w",
        "flush each",
        [str(STRACE), "-o", str(log), "-e", f"trace={call}", "-e", inject],
    )
    fired = log.read_text().count("(INJECTED)")
    assert done.returncode == 0, done.stderr
    assert fired > 0
    wrong = corrupt_blobs(tmp_path / "w/store") + records_without_bytes(tmp_path / "w/store")
    report("3", "an interrupted call", fired=fired, bad=len(wrong))
    assert wrong == []
    assert is_complete(tmp_path / "w")
