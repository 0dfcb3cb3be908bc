"""From published to durable: when it is flushed, what a failure drops, what a death leaves."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from ftbuild.errors import MachineError
from ftbuild.store import disk, durability, journal, session
from ftbuild.store.actions import Record
from ftbuild.store.durability import Flusher
from ftbuild.store.store import Store
from store_kit import build, contents, damage, key_of, open_store, put, record_of, truncate


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each flush made durable."""
    found: list[int] = []
    real = Flusher.flush

    def flush(self: Flusher, files: Collection[str], folders: Collection[str]) -> None:
        found.append(len(files))
        real(self, files, folders)

    monkeypatch.setattr(Flusher, "flush", flush)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    return now


def _names(store_root: Path, folder: str) -> list[str]:
    return sorted(p.name for p in (store_root / "v1" / folder).rglob("*") if p.is_file())


def test_records_within_a_second_share_one_flush(
    store: Store, flushes: list[int], clock: list[float]
) -> None:
    for number in range(50):
        build(store, number, {"out": b"%d" % number})
        clock[0] += 0.02
    assert flushes == []
    clock[0] += 0.1
    build(store, 50, {"out": b"50"})
    # 51 blobs and 51 records, then only the names.
    assert flushes == [102, 0]
    assert len(_names(store.root, "actions")) == 51


def test_slow_flush_takes_at_most_a_tenth_of_the_time(
    store: Store, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []
    real = Flusher.flush

    def slow(self: Flusher, files: Collection[str], folders: Collection[str]) -> None:
        if files:
            began.append(clock[0])
            clock[0] += 0.5
        real(self, files, folders)

    monkeypatch.setattr(Flusher, "flush", slow)
    for number in range(300):
        build(store, number, {"out": b"%d" % number})
        clock[0] += 0.0625
    assert began == [1001.0625, 1006.625, 1012.1875, 1017.75]


def test_large_batch_is_flushed_at_once(
    store: Store, flushes: list[int], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_BATCH_BYTES", 1000)
    build(store, "a", {"out": b"1" * 1000})
    assert flushes == []
    build(store, "b", {"out": b"2"})
    assert flushes == [4, 0]


def test_record_can_be_flushed_while_nothing_is_published(
    store: Store, flushes: list[int], clock: list[float]
) -> None:
    build(store, "a", {"out": b"1"})
    store.flush_if_due()
    assert flushes == []
    clock[0] += 1.5
    store.flush_if_due()
    store.flush_if_due()
    assert flushes == [2, 0]


def test_loose_blobs_are_flushed_with_the_next_record(
    store: Store, flushes: list[int], clock: list[float]
) -> None:
    store.put_bytes(b"a log")
    store.flush()
    assert flushes == []
    build(store, "a", {"out": b"1"})
    store.flush()
    assert flushes == [3, 0]


def _calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List fsyncs by file name and syncfs by its own."""
    calls: list[str] = []
    real, real_fs = os.fsync, durability._syncfs

    def fsync(descriptor: int) -> None:
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    def syncfs(descriptor: int) -> bool:
        calls.append("syncfs")
        return real_fs(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(durability, "_syncfs", syncfs)
    return calls


def test_bytes_are_durable_before_the_record_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build(store, "a", {"out": b"1"})
    calls = _calls(monkeypatch)
    real = disk.rename_into

    def rename(source: str, target: str) -> None:
        calls.append(f"rename to {os.path.basename(target)}")
        real(source, target)

    monkeypatch.setattr(disk, "rename_into", rename)
    store.flush()
    at = calls.index(f"rename to {record.key}.json")
    blob = record.tree.entries[0].digest
    assert calls[:2] == [blob, f"{record.key}.json"]
    assert {"blobs", blob[:2]} < set(calls[2:at])
    assert sorted(calls[at + 1 :]) == sorted(["actions", record.key[:2]])


def test_many_files_are_flushed_by_one_syncfs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        build(store, number, {"out": b"%d" % number})
    calls = _calls(monkeypatch)
    store.flush()
    assert calls == ["syncfs", "syncfs"]


def test_old_kernel_gets_an_fsync_for_each_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        build(store, number, {"out": b"%d" % number})
    monkeypatch.setattr(durability, "_kernel", lambda: (5, 7))
    calls = _calls(monkeypatch)
    store.flush()
    assert len([name for name in calls if len(name) > 60]) == 40


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("which", [0, 1])
def test_failed_flush_drops_its_records_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    store = open_store(tmp_path)
    build(store, "a", {"out": b"1"})
    calls: list[int] = []

    def fail(self: Flusher, files: Collection[str], folders: Collection[str]) -> None:
        calls.append(len(files))
        if len(calls) == which + 1:
            raise _fail(errno.EIO)

    monkeypatch.setattr(Flusher, "flush", fail)
    with pytest.raises(MachineError) as caught:
        store.flush()
    assert caught.value.render() == (
        "error[E0651]: the disk did not take what was written to the store: "
        "Input/output error\n"
        f"  --> {store.root}/v1\n"
        "  why: what was finished since the last flush may be lost and is not recorded\n"
        "  fix: look at the disk (`dmesg`), then run again"
    )
    assert store.find(key_of("a")) is None
    assert _names(store.root, "pending") == []
    assert _names(store.root, "actions") == []
    store.close()
    assert len(calls) == which + 1
    with open_store(tmp_path) as later:
        assert later.find(key_of("a")) is None


def test_full_disk_while_records_move_keeps_them_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for name in "abc":
        build(store, name, {"out": name.encode()})
    real = disk.rename_into
    moved: list[str] = []

    def rename(source: str, target: str) -> None:
        if "/actions/" in target and len(moved) == 1:
            raise _fail(errno.ENOSPC)
        moved.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename_into", rename)
        with pytest.raises(MachineError, match="the disk is full"):
            store.flush()
    assert len(_names(store.root, "actions")) == 1
    assert len(_names(store.root, "pending")) == 2
    store.close()
    assert len(_names(store.root, "actions")) == 3


def test_record_that_another_process_took_over_is_written_again(store: Store) -> None:
    record = build(store, "a", {"out": b"1"})
    (pending,) = (store.root / "v1" / "pending").glob("*/*.json")
    os.unlink(pending)
    store.flush()
    assert _names(store.root, "actions") == [f"{record.key}.json"]
    with open_store(store.root.parent) as other:
        assert other.find(record.key) == record


def test_pending_record_is_found_by_a_neighbour(tmp_path: Path, store: Store) -> None:
    with open_store(tmp_path) as other:
        assert other.find(key_of("a")) is None
        record = build(store, "a", {"out": b"1"})
        assert _names(store.root, "actions") == []
        assert other.find(key_of("a")) == record
        assert contents(other.lay_out(record.tree)) == {"out": b"1"}
        store.flush()
        assert other.find(key_of("a")) == record


def _owner(store_root: Path) -> Path:
    (path,) = (store_root / "v1" / "tmp").glob("*/owner")
    return path


def _move_elsewhere(path: Path) -> None:
    """Make the owner of a session a process of another boot."""
    who = json.loads(path.read_text())
    path.write_text(json.dumps({**who, "place": "another boot pid:[1]"}))


def test_pending_record_of_another_boot_is_not_trusted_as_it_is(
    tmp_path: Path, store: Store
) -> None:
    record = build(store, "a", {"out": b"1"})
    _move_elsewhere(_owner(store.root))  # the lock is still held by us
    with open_store(tmp_path) as other:
        assert other.find(key_of("a")) is None
        store.flush()
        assert other.find(key_of("a")) == record


DIE = """
import os, sys
from pathlib import Path
from store_kit import build, open_store, truncate
store = open_store(Path(sys.argv[1]))
for name in "abc":
    build(store, name, {"out": name.encode(), "large": name.encode() * 100_000})
store.workspace()
os.kill(os.getpid(), 9)
"""


def _die(tmp_path: Path) -> None:
    """Let a process publish three records and be killed before a flush."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -9
    assert len(_names(tmp_path / "store", "pending")) == 3


def test_records_of_a_killed_process_are_recovered(tmp_path: Path) -> None:
    _die(tmp_path)
    with open_store(tmp_path) as store:
        for name in "abc":
            record = store.find(key_of(name))
            assert record is not None
            assert contents(store.lay_out(record.tree))["out"] == name.encode()
        assert len(_names(store.root, "actions")) == 3
        assert os.listdir(store.root / "v1" / "pending") == []
        assert os.listdir(store.root / "v1" / "tmp") == []


def test_recovered_record_needs_all_its_bytes(tmp_path: Path) -> None:
    _die(tmp_path)
    with open_store(tmp_path / "scratch") as other:
        tree = put(other, {"out": b"a", "large": b"a" * 100_000})
    _, small = (entry.digest for entry in tree.entries)
    blobs = tmp_path / "store" / "v1" / "blobs"
    damage(blobs / small[:2] / small, b"?")
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) is None
        assert store.find(key_of("b")) is not None
        assert store.find(key_of("c")) is not None
        assert len(_names(store.root, "actions")) == 2


def test_torn_record_is_not_recovered(tmp_path: Path) -> None:
    _die(tmp_path)
    pending = tmp_path / "store" / "v1" / "pending"
    (path,) = pending.glob(f"*/{key_of('b')}.json")
    truncate(path, 100)
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) is not None
        assert store.find(key_of("b")) is None
        assert os.listdir(pending) == []


def test_folders_of_a_living_process_are_left_alone(tmp_path: Path, store: Store) -> None:
    workspace = store.workspace()
    build(store, "a", {"out": b"1"})
    open_store(tmp_path).close()
    assert workspace.is_dir()
    assert len(_names(store.root, "pending")) == 1


def test_other_machine_counts_as_alive_while_it_locks_or_is_not_silent(
    tmp_path: Path, store: Store
) -> None:
    workspace = store.workspace()
    owner = _owner(store.root)
    _move_elsewhere(owner)
    name = owner.parent.name
    layout = store._layout
    assert not session.is_dead(layout, name)
    assert store._session is not None
    fcntl.flock(store._session._lock, fcntl.LOCK_UN)
    assert session.is_dead(layout, name)
    assert not session.is_abandoned(layout, name)
    open_store(tmp_path).close()
    assert workspace.is_dir()
    long_ago = time.time() - session.SILENCE_S - 60
    for path in (owner, owner.parent):
        os.utime(path, (long_ago, long_ago))
    assert session.is_abandoned(layout, name)
    open_store(tmp_path).close()
    assert not workspace.exists()


def test_pid_that_belongs_to_another_process_now_is_dead(store: Store) -> None:
    store.workspace()
    owner = _owner(store.root)
    who = json.loads(owner.read_text())
    assert not session.is_dead(store._layout, owner.parent.name)
    owner.write_text(json.dumps({**who, "started": "1"}))
    assert session.is_dead(store._layout, owner.parent.name)


def test_forked_child_has_a_session_of_its_own(tmp_path: Path, store: Store) -> None:
    before = build(store, "parent", {"out": b"1"})
    child = os.fork()
    if child == 0:
        try:
            build(store, "child", {"out": b"2"})
            store.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    after = store.find(key_of("child"))
    assert after is not None
    assert contents(store.lay_out(after.tree)) == {"out": b"2"}
    assert store.find(key_of("parent")) == before
    assert _names(store.root, "actions") == [f"{key_of('child')}.json"]
    build(store, "again", {"out": b"3"})
    store.close()
    assert len(_names(store.root, "actions")) == 3


def test_forked_child_that_dies_loses_nothing(tmp_path: Path, store: Store) -> None:
    child = os.fork()
    if child == 0:
        build(store, "child", {"out": b"2"})
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with open_store(tmp_path) as other:
        assert other.find(key_of("child")) is not None
        assert _names(store.root, "actions") == [f"{key_of('child')}.json"]


def test_threads_publish_and_flush_together(tmp_path: Path, store: Store) -> None:
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 30):
                build(store, number, {"out": b"%d" % (number % 7)})
                if number % 5 == 0:
                    store.flush()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush()
    assert failed == []
    assert len(_names(store.root, "actions")) == 180


def test_store_deleted_while_it_is_used_is_an_error_of_the_machine(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    tree = put(store, {"out": b"1"})
    shutil.rmtree(store.root)
    with pytest.raises(MachineError, match="the store cannot be used"):
        store.publish(record_of("a", tree))
    with pytest.raises(MachineError, match="the store cannot be used"):
        store.workspace()
    store.close()
    with open_store(tmp_path) as again:
        assert build(again, "a", {"out": b"1"}).tree == tree


def fetch(store: Store, name: object, files: dict[str, bytes]) -> Record:
    record = record_of(name, put(store, files))
    store.publish_fetched(record)
    return record


def test_fetched_record_waits_for_no_disk_and_is_found_by_the_next(
    tmp_path: Path, flushes: list[int]
) -> None:
    with open_store(tmp_path) as store:
        record = fetch(store, "a", {"out": b"1"})
        assert store.find(record.key) == record
        store.flush_own()
    for _ in range(2):  # it stays what it is for a while
        with open_store(tmp_path) as store:
            assert store.find(record.key) == record
            assert contents(store.lay_out(record.tree)) == {"out": b"1"}
    assert flushes == []
    assert _names(tmp_path / "store", "pending") == [f"{record.key}.json"]


def _age_what_was_left(store_root: Path) -> None:
    [left] = (store_root / "v1" / "tmp").glob("*/left")
    long_ago = time.time() - session.SETTLE_S - 1
    os.utime(left, (long_ago, long_ago))


def _leave(tmp_path: Path) -> Record:
    with open_store(tmp_path) as store:
        return fetch(store, "a", {"out": b"1", "large": b"2" * 100_000})


def test_fetched_record_is_made_durable_a_minute_later(tmp_path: Path, flushes: list[int]) -> None:
    record = _leave(tmp_path)
    _age_what_was_left(tmp_path / "store")
    with open_store(tmp_path) as store:
        assert flushes == [3, 0]
        assert _names(store.root, "actions") == [f"{record.key}.json"]
        assert store.find(record.key) == record
        assert os.listdir(store.root / "v1" / "pending") == []
        assert os.listdir(store.root / "v1" / "tmp") == []


@pytest.mark.parametrize("harm", ["none", "short", "other bytes"])
def test_fetched_record_of_another_boot_is_hashed_first(tmp_path: Path, harm: str) -> None:
    record = _leave(tmp_path)
    _move_elsewhere(_owner(tmp_path / "store"))
    large, _ = record.tree.entries
    blob = tmp_path / "store" / "v1" / "blobs" / large.digest[:2] / large.digest
    if harm == "short":
        truncate(blob, 0)
    elif harm == "other bytes":
        damage(blob, b"?")
    with open_store(tmp_path) as store:
        assert store.find(record.key) == (record if harm == "none" else None)
        assert os.listdir(store.root / "v1" / "pending") == []


def test_short_blob_of_a_fetched_record_is_a_miss_in_the_same_boot(tmp_path: Path) -> None:
    """A disk that went away and came back while the machine ran on."""
    record = _leave(tmp_path)
    large, _ = record.tree.entries
    truncate(tmp_path / "store" / "v1" / "blobs" / large.digest[:2] / large.digest, 10)
    with open_store(tmp_path) as store:
        assert store.find(record.key) is None


def test_fetched_record_is_flushed_with_one_that_was_made_here(
    tmp_path: Path, flushes: list[int]
) -> None:
    with open_store(tmp_path) as store:
        fetch(store, "a", {"out": b"1"})
        build(store, "b", {"out": b"2"})
    assert flushes == [4, 0]
    assert len(_names(tmp_path / "store", "actions")) == 2


def test_much_that_was_fetched_is_flushed_at_once(
    store: Store, flushes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MAX_WAITING_BYTES", 10)
    fetch(store, "a", {"out": b"1" * 6})
    assert flushes == []
    fetch(store, "b", {"out": b"2" * 6})
    assert flushes == [4, 0]


def test_bytes_fetched_for_a_durable_record_are_made_durable(
    tmp_path: Path, flushes: list[int]
) -> None:
    with open_store(tmp_path) as store:
        record = build(store, "a", {"out": b"1"})
        store.flush()
        del flushes[:]
        store.publish_fetched(record)
    assert flushes == [2, 0]


def test_gc_spares_what_was_fetched_and_waits(tmp_path: Path) -> None:
    record = _leave(tmp_path)
    with open_store(tmp_path) as store:
        store.gc(grace_s=0, max_bytes=0)
        assert store.find(record.key) == record
