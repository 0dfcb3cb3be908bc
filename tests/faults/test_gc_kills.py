"""Kill -9 of `ftbuild gc` at its system calls: a record goes before its bytes, never after."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.test_remote_kills import STRACE, run
from remote.checkout import Checkout, checkout
from store_kit import corrupt_blobs, records_without_bytes

CALLS = "openat,unlink,rmdir,rename,chmod,write,mkdir"
COMMAND = "gc --max-size 1B --grace 0s"
POINTS = 10
BROKEN = """\
import os
unlink = os.unlink

def blobs_first(path, *args, **options):
    text = os.fspath(path)
    if "/actions/" in text:  # what stands in its record is gone before the record is
        import json
        try:
            with open(text) as file:
                listed = json.load(file)["tree"]
        except (OSError, ValueError, KeyError):
            listed = []
        base = text.split("/actions/")[0]
        for _, _, _, digest in listed:
            try:
                unlink(f"{base}/blobs/{digest[:2]}/{digest}")
            except OSError:
                pass
    unlink(path, *args, **options)

os.unlink = blobs_first
"""

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


@pytest.fixture
def full(tmp_path: Path) -> Checkout:
    """A checkout that uses one build of its three, so that gc has something to remove."""
    found = checkout(tmp_path / "full", "")
    for text in ("one\n", "two\n", "hello\nworld\n"):
        (found.root / "raw.txt").write_text(text)
        found.make()
    return found


def copy(full: Checkout, place: Path) -> Checkout:
    shutil.copytree(full.root, place / "root", symlinks=True)
    shutil.copytree(full.store, place / "store", symlinks=True)
    shutil.rmtree(place / "root" / "ftbuild-out")
    found = Checkout(place / "root", place / "store")
    found.make()  # its links, and its entry among those that use the store
    return found


def points(found: Checkout, path: str) -> list[tuple[str, int]]:
    log = found.root.parent / "trace"
    options = ["-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}"]
    done = run(found, COMMAND, str(STRACE), *options, path=path)
    assert done.returncode == 0, done.stderr
    made: Counter[str] = Counter()
    chosen = []
    for line in log.read_text().splitlines():
        if match := re.match(r"\d+ +(\w+)\(", line):
            made[match[1]] += 1
            if str(found.store) in line:  # its own modules are read before
                chosen.append((match[1], made[match[1]]))
    return chosen


def sweep(full: Checkout, tmp_path: Path, path: str = "", call: str = "") -> tuple[int, list[str]]:
    """Return how many kills happened, and what was wrong after them."""
    every = [p for p in points(copy(full, tmp_path / "traced"), path) if call in ("", p[0])]
    stride = max(1, len(every) // POINTS)
    is_all = os.environ.get("FTBUILD_FAULTS") == "all"
    fired, wrong = 0, []
    for place, (name, number) in enumerate(every if is_all else every[os.getpid() % stride :: stride]):
        here = copy(full, tmp_path / f"{place}")
        log = tmp_path / f"{place}" / "strace"
        inject = f"inject={name}:signal=SIGKILL:when={number}"
        run(here, COMMAND, str(STRACE), "-f", "-qq", "-o", str(log), "-e", f"trace={name}",
            "-e", inject, path=path)  # fmt: skip
        fired += "+++ killed by SIGKILL +++" in log.read_text()
        wrong += corrupt_blobs(here.store) + records_without_bytes(here.store)
        if path:
            continue
        if run(here, COMMAND).returncode:
            wrong.append(f"{name} {number}: gc fails afterwards")
        if "built" in here.make().values() or here.digests() != full.digests():
            wrong.append(f"{name} {number}: what ftbuild-out uses is gone")
    return fired, wrong


def test_gc_killed_anywhere_leaves_no_record_without_its_bytes(
    full: Checkout, tmp_path: Path
) -> None:
    fired, wrong = sweep(full, tmp_path)
    report("1", "kill -9 at a call of gc", fired=fired, bad=len(wrong))
    assert fired >= POINTS - 1
    assert wrong == []


def test_sweep_turns_red_where_bytes_go_before_their_record(
    full: Checkout, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN)
    fired, wrong = sweep(full, tmp_path, str(tmp_path / "broken"), call="unlink")
    report("1", "kill -9 at a call of gc", control_red=bool(wrong))
    assert fired
    assert wrong
