"""A full disk under `push` and `pull`: nothing half counts as whole, and a second try ends it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.test_remote_kills import broken_objects, run
from faults.test_store_full_disk import mount, remount, unmount
from remote.checkout import Checkout, checkout
from store_kit import corrupt_blobs, records_without_bytes

SIZES_KIB = [100, 300, 600, 900, 1200, 1800, 2400, 3600]


@dataclass
class Sweep:
    """What a sweep over sizes found."""

    full: int = 0
    corrupt: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    directory = tmp_path / "disk"
    if not mount(directory, "size=64k"):
        pytest.skip("mounting a tmpfs needs root")
    unmount(directory)
    return directory


@pytest.fixture
def full(tmp_path: Path) -> tuple[Checkout, Path]:
    """A built checkout, and a remote folder that has all of it."""
    remote = tmp_path / "full"
    right = checkout(tmp_path / "right", str(remote))
    right.make()
    return right, remote


def names(remote: Path) -> set[str]:
    return {path.name for path in remote.glob("*/*") if path.name[0] != "."}


def test_pull_onto_a_full_disk_is_told_and_ends_later(
    tmp_path: Path, disk: Path, full: tuple[Checkout, Path]
) -> None:
    found = Sweep()
    for size in SIZES_KIB:
        here = checkout(tmp_path / f"{size}", str(full[1]))
        here.store = disk / "store"
        assert mount(disk, f"size={size}k")
        try:
            first = run(here, "pull --all")
            if first.returncode:
                words = {1: "more than the disk has free", 5: "error[E0650]: the disk "}
                assert words[first.returncode] in first.stderr, (size, first)
                found.full += 1
            found.corrupt += corrupt_blobs(here.store) + records_without_bytes(here.store)
            remount(disk, "size=64m")
            second = run(here, "pull --all")
            here.make("big", "clean")
            is_right = here.digests().items() <= full[0].digests().items()
            if second.returncode or not is_right or here.summary().built:
                found.failed.append(f"{size}: {second.returncode} {second.stderr[-300:]}")
        finally:
            unmount(disk)
    bad = len(found.corrupt) + len(found.failed)
    report("4", "full disk, of a pull", fired=found.full, bad=bad)
    assert found.full > 3
    assert (found.corrupt, found.failed) == ([], [])


def test_push_to_a_full_disk_is_told_and_ends_later(
    tmp_path: Path, disk: Path, full: tuple[Checkout, Path]
) -> None:
    found = Sweep()
    right, remote = full
    for size in SIZES_KIB:
        here = Checkout(right.root, right.store, {"FTBUILD_REMOTE": str(disk / "remote")})
        assert mount(disk, f"size={size}k")
        try:
            first = run(here, "push clean big final")
            if first.returncode:
                assert "No space left on device" in first.stderr, (size, first)
                found.full += 1
            found.corrupt += broken_objects(disk / "remote")
            remount(disk, "size=64m")
            second = run(here, "push clean big final")
            if second.returncode or names(disk / "remote") != names(remote):
                found.failed.append(f"{size}: {second.returncode} {second.stderr[-300:]}")
        finally:
            unmount(disk)
    bad = len(found.corrupt) + len(found.failed)
    report("4", "full disk, of a push", fired=found.full, bad=bad)
    assert found.full > 3
    assert (found.corrupt, found.failed) == ([], [])
