"""A full disk, a read-only one, and a limit on the size of files."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.store_faults import ENVIRONMENT
from ftbuild.errors import MachineError
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from store_kit import (
    build,
    contents,
    corrupt_blobs,
    key_of,
    open_store,
    put,
    records_without_bytes,
)

NUM_ACTIONS = 6


def mount(directory: Path, options: str) -> bool:
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "ftbuild-test", str(directory)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True)


def unmount(directory: Path) -> None:
    subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    if not mount(directory, "size=64k"):
        pytest.skip("mounting a tmpfs needs root")
    yield directory
    unmount(directory)


def _files(number: int) -> dict[str, bytes]:
    return {"small": b"%d" % number, "large": b"%d" % number * 80_000}


def _build_all(directory: Path) -> tuple[set[int], MachineError | None]:
    """Do the actions that the store has not; return which, and what went wrong."""
    done: set[int] = set()
    try:
        with open_store(directory) as store:
            for number in range(NUM_ACTIONS):
                if store.find(key_of(number)) is None:
                    _action(store, number)
                    done.add(number)
    except MachineError as error:
        return done, error
    return done, None


def _action(store: Store, number: int) -> None:
    try:
        build(store, number, _files(number))
    except OSError as error:
        # The action's own write, in its output directory: the engine reports it likewise.
        raise MachineError(str(error), code="E0650") from error


def _sweep(directory: Path, limits: list[str]) -> tuple[int, int, list[str]]:
    """Build within each limit, then without one; count full disks, corruption, work redone."""
    full, wrong, redone = 0, 0, []
    for limit in limits:
        assert mount(directory, limit)
        try:
            done, error = _build_all(directory)
            if error is not None:
                full += 1
                assert error.exit_code == 5
                assert error.problems[0].code == "E0650", error.render()
            root = directory / "store"
            wrong += bool(corrupt_blobs(root) or records_without_bytes(root))
            remount(directory, "size=64m,nr_inodes=10000")
            again, error = _build_all(directory)
            assert error is None
            redone += [limit for number in done & again]
            with open_store(directory) as store:
                for number in range(NUM_ACTIONS):
                    record = store.find(key_of(number))
                    assert record is not None
                    assert contents(store.lay_out(record.tree)) == _files(number)
        finally:
            unmount(directory)
    return full, wrong, redone


def test_full_disk_loses_nothing_at_any_size(tmp_path: Path, disk: Path) -> None:
    limits = [f"size={kib}k" for kib in range(20, 720, 20)]
    full, wrong, redone = _sweep(tmp_path / "sweep", limits)
    report("4", "full disk, of the store", fired=full, bad=wrong + len(redone))
    assert full > 20
    assert (wrong, redone) == (0, [])


def test_disk_without_inodes_loses_nothing_at_any_count(tmp_path: Path, disk: Path) -> None:
    limits = [f"size=64m,nr_inodes={count}" for count in range(6, 90, 6)]
    full, wrong, redone = _sweep(tmp_path / "sweep", limits)
    report("5", "no inodes left, of the store", fired=full, bad=wrong + len(redone))
    assert full > 8
    assert (wrong, redone) == (0, [])


def test_full_disk_is_told_in_figures(disk: Path) -> None:
    remount(disk, "size=400k")
    with open_store(disk) as store:
        source = disk.parent / "source"
        source.write_bytes(b"1" * 1_000_000)
        with pytest.raises(MachineError) as caught:
            store.put_file(source)
        text = caught.value.render()
        assert re.match(
            r"error\[E0650\]: the disk is full: [\d,]+ bytes are free\n"
            rf"  --> {store.root}\n"
            r"  fix: free some space, `ftbuild gc` frees the store's, and run again: "
            r"what is finished is kept$",
            text,
        ), text
        left = [p for p in (store.root / "v1" / "tmp").rglob("*") if p.is_file()]
        assert [p.name for p in left] == ["owner"]


def test_no_inodes_are_told_as_such(disk: Path) -> None:
    remount(disk, "size=1m,nr_inodes=40")
    with open_store(disk) as store:
        store.workspace()
        for number in range(os.statvfs(disk).f_favail):
            (disk / f"filler{number}").touch()
        with pytest.raises(MachineError, match="the disk has no free inodes"):
            store.workspace()


def test_read_only_store_still_gives_what_it_has(tmp_path: Path, disk: Path) -> None:
    remount(disk, "size=64m")
    with open_store(disk) as store:
        record = build(store, "a", {"small": b"1", "large": b"2" * 80_000})
    remount(disk, "ro")
    with Store(disk / "store", StatCache(tmp_path / "other")) as store:
        assert store.find(key_of("a")) == record
        assert contents(store.lay_out(record.tree)) == {"small": b"1", "large": b"2" * 80_000}
        assert store.find(key_of("b")) is None
        with store.lease(key_of("b")):
            pass
        with pytest.raises(MachineError) as caught:
            put(store, {"x": b"1"})
        assert caught.value.render().splitlines()[0] == (
            "error[E0652]: the store cannot be written: Read-only file system"
        )
        assert caught.value.exit_code == 5
    report("12", "a store that may only be read", fired=1, bad=0)
    remount(disk, "rw")


LIMITED = """
import sys
from pathlib import Path
from store_kit import open_store
from ftbuild.errors import MachineError
source = Path(sys.argv[1]) / "source"
with open_store(Path(sys.argv[1])) as store:
    try:
        store.put_file(source)
    except MachineError as error:
        print(error.render())
"""


@pytest.mark.fault("3", "a write that takes a part of the bytes")
@pytest.mark.parametrize("limit", [1_000, 100_000, 299_999])
def test_file_size_limit_is_told_and_leaves_no_half_blob(tmp_path: Path, limit: int) -> None:
    (tmp_path / "source").write_bytes(b"1" * 300_000)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout.splitlines()[0] == "error[E0653]: the store cannot be used: File too large"
    assert list((tmp_path / "store" / "v1" / "blobs").rglob("*")) == []
    assert list((tmp_path / "store" / "v1" / "tmp").rglob("*")) == []
