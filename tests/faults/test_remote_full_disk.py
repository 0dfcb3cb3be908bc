"""A full disk under `push` (a shared folder) and under `pull` (the store): told, and gone on with.

At each size nothing is half there; when there is space the same command ends the work.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.test_remote_kills import broken_objects, run
from faults.test_store_full_disk import mount, remount, unmount
from remote.checkout import Checkout, checkout
from store_kit import corrupt_blobs, records_without_bytes

SIZES = [100, 400, 800, 1200]
"""KiB; `big` and `final` are 1.3 MB together, in chunks, and 2.2 MB in files."""


@pytest.fixture(params=SIZES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    if not mount(directory, f"size={request.param}k"):
        pytest.skip("mounting a tmpfs needs root")
    yield directory
    unmount(directory)


def test_push_into_a_full_folder_leaves_nothing_half_there(disk: Path, tmp_path: Path) -> None:
    remote = disk / "remote"
    here = checkout(tmp_path / "here", "")
    here.make("big", "final")
    here.environment["FTBUILD_REMOTE"] = str(remote)
    first = run(here, "push clean big final")
    assert "No space left on device" in first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    harm = broken_objects(remote)
    remount(disk, "size=64m")
    assert run(here, "push clean big final").returncode == 0
    harm += broken_objects(remote)
    there = checkout(tmp_path / "there", str(remote))
    assert "built" not in there.make("big", "final").values()
    report("4", "full disk, of the folder that push writes to", fired=1, bad=len(harm))
    assert harm == []


def test_pull_into_a_full_store_leaves_nothing_half_there(disk: Path, tmp_path: Path) -> None:
    sender = checkout(tmp_path / "sender", str(tmp_path / "remote"))
    sender.make("big", "final")
    assert run(sender, "push clean big final").returncode == 0
    root = checkout(tmp_path / "here", "").root
    here = Checkout(root, disk / "store", {"FTBUILD_REMOTE": str(tmp_path / "remote")})
    first = run(here, "pull --all big final")
    assert first.returncode in (1, 5), first.stderr
    told = ("more than the disk has free", "error[E0650]: the disk is full")
    assert any(text in first.stderr for text in told), first.stderr
    assert "Traceback" not in first.stderr
    harm = corrupt_blobs(here.store) + records_without_bytes(here.store)
    remount(disk, "size=64m")
    assert run(here, "pull --all big final").returncode == 0
    harm += corrupt_blobs(here.store) + records_without_bytes(here.store)
    report("4", "full disk, of the store that pull writes to", fired=1, bad=len(harm))
    assert harm == []
    assert "built" not in here.make("big", "final").values()
    assert here.digests() == sender.digests()
