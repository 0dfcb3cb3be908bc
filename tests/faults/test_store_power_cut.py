"""A power cut: all that was not made durable is lost, on a real ext4 and a real xfs.

The file system of a loop device is shut down without flushing its log (what xfstests does),
unmounted, mounted again, so that its journal is replayed as after a crash.
"""

import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import ENVIRONMENT, WRITER, is_complete, run_writer
from store_kit import corrupt_blobs, records_without_bytes

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


_MEGABYTES = {"ext4": 48, "xfs": 304}
"""xfs refuses less than 300 MB; the file is sparse."""


class Disk:
    """A file system in a file, mounted, whose power can be cut."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        self.image = directory / "image"
        self.mounted = directory / "disk"
        self.mounted.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(_MEGABYTES[kind] << 20)
        _run(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", str(self.image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.mounted))

    def unmount(self) -> None:
        _run("umount", str(self.mounted))

    def cut_power(self) -> None:
        descriptor = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restart(self) -> None:
        self.unmount()
        self.mount()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("a power cut needs root")
    if shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"mkfs.{request.param} is not installed")
    try:
        made = Disk(tmp_path, request.param)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device for {request.param}: {error.stderr.decode().strip()}")
    yield made
    made.unmount()


@dataclass
class Cuts:
    made: int = 0
    bad: int = 0
    failed: int = 0
    redone_after_flush: int = 0
    details: list[str] = field(default_factory=list)


def _cut(disk: Disk, number: int, variant: str, after: str, cuts: Cuts) -> None:
    """Cut the power as soon as the writer has said `after`; look; build again."""
    directory = disk.mounted / str(number)
    directory.mkdir()
    os.sync()
    command = [sys.executable, "-S", str(WRITER), str(directory), variant]
    said = []
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            said.append(line)
            if line.strip() == after:
                break
        disk.cut_power()
        cuts.made += 1
        writer.kill()
    disk.restart()
    root = directory / "store"
    wrong = corrupt_blobs(root), records_without_bytes(root)
    # A blob that no record names may be torn: nobody is given it. A record may not be.
    cuts.bad += bool(wrong[1])
    again = run_writer(directory)
    cuts.failed += again.returncode != 0 or not is_complete(directory)
    if variant == "flush each":
        durable = set(re.findall(r"built (\d)", "".join(said)))
        cuts.redone_after_flush += len(durable & set(re.findall(r"built (\d)", again.stdout)))
    if wrong[1] or again.returncode:
        cuts.details.append(f"{after}: {wrong} {again.stderr[-500:]}")


def test_power_cut_never_leaves_a_record_without_its_bytes(disk: Disk) -> None:
    cuts = Cuts()
    for round_ in range(2):
        for number, variant in enumerate(("", "flush each")):
            for action in range(3):
                _cut(disk, 100 * round_ + 10 * number + action, variant, f"built {action}", cuts)
    report("2", f"power cut on {disk.kind}", fired=cuts.made, bad=cuts.bad + cuts.failed)
    assert cuts == Cuts(made=12)


def test_power_cut_test_turns_red_without_fsync_of_blobs(disk: Disk) -> None:
    cuts = Cuts()
    for action in range(3):
        _cut(disk, action, "flush only records", f"built {action}", cuts)
    report("2", f"power cut on {disk.kind}", control_red=cuts.bad > 0)
    assert cuts.made == 3
    assert cuts.bad > 0


def _cut_after_a_fetch(disk: Disk, name: str, then: str, *, names_last: bool = False) -> int:
    """Cut the power when what was fetched waits for the kernel; build again; return its code."""
    directory = disk.mounted / name
    directory.mkdir()
    os.sync()
    assert run_writer(directory, "fetched").returncode == 0
    if names_last:  # names reach the disk, as they may at any moment; their bytes do not
        for path in sorted(directory.rglob("*")):
            if path.is_dir() or path.name.endswith((".json", "owner", "left")):
                subprocess.run(["sync", str(path)], check=True)
    disk.cut_power()
    disk.restart()
    assert not names_last or corrupt_blobs(directory / "store")
    return run_writer(directory, then).returncode


def test_power_cut_after_a_fetch_costs_fetching_again_at_most(disk: Disk) -> None:
    bad = 0
    for number in range(4):
        code = _cut_after_a_fetch(disk, f"fetched{number}", "", names_last=number > 1)
        bad += code != 0 or bool(records_without_bytes(disk.mounted / f"fetched{number}/store"))
    report("2", f"power cut on {disk.kind} after a fetch", fired=4, bad=bad)
    assert bad == 0


def test_power_cut_after_a_fetch_turns_red_where_sizes_are_not_looked_at(disk: Disk) -> None:
    is_red = _cut_after_a_fetch(disk, "red", "no look at sizes", names_last=True) != 0
    report("2", f"power cut on {disk.kind} after a fetch", control_red=is_red)
    assert is_red


def test_recovery_hashes_what_a_power_cut_left_pending(disk: Disk) -> None:
    """Pending records reach the disk without their bytes: none of them may be promoted."""
    directory = disk.mounted / "pending"
    directory.mkdir()
    os.sync()
    command = [sys.executable, "-S", str(WRITER), str(directory), "sync pending"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        assert writer.stdout is not None
        assert [writer.stdout.readline() for _ in range(3)] == [f"built {n}\n" for n in range(3)]
        disk.cut_power()
        writer.kill()
    disk.restart()
    root = directory / "store"
    assert len(list(root.glob("v1/pending/*/*.json"))) == 3
    assert corrupt_blobs(root)
    again = run_writer(directory)
    assert (again.returncode, again.stdout) == (0, "built 0\nbuilt 1\nbuilt 2\n")
    assert is_complete(directory)
