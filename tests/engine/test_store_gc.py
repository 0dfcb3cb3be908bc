"""gc: what goes, what stays, and when it refuses."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftbuild.errors import MachineError
from ftbuild.store import gc
from ftbuild.store.actions import Record, encode
from ftbuild.store.gc import Collected
from ftbuild.store.store import Store
from store_kit import build, contents, key_of, open_store, put, record_of

DAY_S = 86_400.0
LARGE = b"0123456789" * 10_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def _age(store: Store, name: str, days: float) -> None:
    """Let the record of `name` have been used last so many days ago."""
    key = key_of(name)
    moment = time.time() - days * DAY_S
    os.utime(store.root / "v1" / "actions" / key[:2] / f"{key}.json", (moment, moment))


def _later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let gc run so many days from now: no program can make a ctime older."""
    now = time.time_ns() / 1e9 + days * DAY_S
    monkeypatch.setattr(gc.time, "time", lambda: now)


def _keys(store: Store) -> set[str]:
    return {p.stem for p in (store.root / "v1" / "actions").glob("*/*")}


def _objects(store: Store, folder: str) -> set[str]:
    return {p.name for p in (store.root / "v1" / folder).glob("*/*")}


def _sizes(*records: Record) -> int:
    """Bytes of the records' files, of their blobs, and of the copies in small files' trees."""
    blobs = {e.digest: e.size for record in records for e in record.tree.entries}
    copies = sum(e.size for r in records for e in r.tree.entries if e.size < 65_536)
    return sum(len(encode(record)) for record in records) + sum(blobs.values()) + copies


def test_without_bounds_only_what_no_record_names_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = build(store, "kept", {"a": b"1", "b": LARGE})
    orphan = put(store, {"c": b"2"})
    log = store.put_bytes(b"a log")
    named = store.put_bytes(b"a source")
    store.publish(Record(key_of("n"), put(store, {}), None, {"sources": [named]}, {}))
    store.flush()
    _later(monkeypatch, 3)
    found = store.gc(dry_run=True)
    assert (found.records, found.trees, found.blobs, found.others) == (0, 1, 2, 0)
    assert found.freed_bytes == 1 + 1 + 5
    assert store.is_intact(orphan)
    assert store.has_blob(log)

    assert store.gc() == found
    assert not store.tree_path(orphan.digest).exists()
    assert not store.has_blob(log)
    assert store.has_blob(named)
    assert store.find(key_of("kept")) == kept
    assert contents(store.lay_out(kept.tree)) == {"a": b"1", "b": LARGE}
    assert store.gc() == Collected(0, 0, 0, 0, 0, found.kept_records, found.kept_bytes)


def test_age_bound_removes_what_was_not_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build(store, "old", {"a": b"1", "both": LARGE})
    new = build(store, "new", {"b": b"2", "both": LARGE})
    store.flush()
    _later(monkeypatch, 10)
    _age(store, "old", 30)
    _age(store, "new", 5)
    found = store.gc(max_age_s=20 * DAY_S)
    # The large blob stays, and the old tree's large file was only another name of it.
    assert found == Collected(1, 1, 1, 0, len(encode(old)) + 1 + 1, 1, _sizes(new))
    assert _keys(store) == {key_of("new")}
    assert _objects(store, "trees") == {new.tree.digest}
    assert _objects(store, "blobs") == {e.digest for e in new.tree.entries}


def test_size_bound_keeps_what_was_used_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {name: build(store, name, {"x": name.encode() + LARGE}) for name in "abcd"}
    store.flush()
    _later(monkeypatch, 10)
    for days, name in enumerate("badc", start=5):
        _age(store, name, days)
    bound = _sizes(records["b"], records["a"])
    found = store.gc(max_bytes=bound)
    assert _keys(store) == {key_of("a"), key_of("b")}
    assert (found.records, found.kept_records, found.kept_bytes) == (2, 2, bound)
    assert found.freed_bytes == _sizes(records["c"], records["d"])
    total = sum(p.stat().st_size for p in (store.root / "v1" / "blobs").rglob("*") if p.is_file())
    assert total <= bound
    assert store.gc(max_bytes=bound).records == 0
    store.gc(max_bytes=bound - 1)
    assert _keys(store) == {key_of("b")}


def test_keys_in_use_stay_whatever_the_bounds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "theirs", "nobody's"):
        build(store, name, {"x": name.encode()})
    store.flush()
    _later(monkeypatch, 100)
    found = store.gc(max_bytes=0, max_age_s=0, in_use=[key_of("mine"), key_of("theirs")])
    assert found.records == 1
    assert _keys(store) == {key_of("mine"), key_of("theirs")}


def test_workspaces_keep_what_their_lists_name(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        build(store, name, {"x": name.encode()})
    store.flush()
    for workspace, name in (("one", "a"), ("two", "b"), ("gone", "c")):
        state = tmp_path / workspace / ".ftbuild"
        store.register(state)
        store.register(state)
        assert (state / "keys").read_bytes() == b""
        (state / "keys").write_text(f"{key_of(name)}\n")
    shutil.rmtree(tmp_path / "gone")
    _later(monkeypatch, 10)
    assert len(os.listdir(store.root / "v1" / "roots")) == 3
    store.gc(max_bytes=0, dry_run=True)
    assert len(os.listdir(store.root / "v1" / "roots")) == 3
    store.gc(max_bytes=0)
    assert _keys(store) == {key_of("a"), key_of("b")}
    assert len(os.listdir(store.root / "v1" / "roots")) == 2


@pytest.mark.parametrize("how", ["deleted", "a folder", "binary", "no keys"])
def test_unreadable_list_of_keys_stops_gc(tmp_path: Path, store: Store, how: str) -> None:
    build(store, "a", {"x": b"1"})
    state = tmp_path / "project" / ".ftbuild"
    store.register(state)
    keys = state / "keys"
    keys.unlink()
    if how == "a folder":
        keys.mkdir()
    elif how == "binary":
        keys.write_bytes(b"\xff\xfe")
    elif how == "no keys":
        keys.write_text("helper\n")
    with pytest.raises(MachineError) as caught:
        store.gc(max_bytes=0, grace_s=0)
    lines = caught.value.render().splitlines()
    assert lines[:2] == [
        "error[E0657]: gc cannot tell what a workspace uses: its list of keys cannot be read",
        f"  --> {keys}",
    ]
    assert store.find(key_of("a")) is not None
    assert len(_keys(store)) == 1


def test_nothing_younger_than_the_grace_period_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(store, "a", {"x": b"1"})
    orphan = put(store, {"y": b"2"})
    store.scratch(key_of("s"))
    store.flush()
    empty = Collected(0, 0, 0, 0, 0, 1, _sizes(record_of("a", put(store, {"x": b"1"}))))
    assert store.gc(max_bytes=0, max_age_s=0) == empty
    _later(monkeypatch, 0.9)
    assert store.gc(max_bytes=0, max_age_s=0) == empty
    assert store.is_intact(orphan)
    _later(monkeypatch, 1.1)
    assert store.gc(max_bytes=0, max_age_s=0).records == 1


def test_old_scratch_quarantine_and_temporary_files_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.scratch(key_of("s")) / "checkpoint").write_bytes(b"12345")
    base = store.root / "v1"
    (base / "quarantine" / "bad-1").write_bytes(b"123")
    (base / "tmp" / "left").mkdir()
    (base / "tmp" / "left" / "half").write_bytes(b"1234567")
    mine = store.workspace()
    assert store.gc().others == 0
    _later(monkeypatch, 2)
    found = store.gc()
    assert (found.others, found.freed_bytes) == (3, 15)
    assert os.listdir(base / "scratch") == []
    assert os.listdir(base / "quarantine") == []
    assert mine.is_dir()


def test_recovered_use_of_an_old_blob_makes_it_young(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbuild.store import blobs

    digest = store.put_bytes(b"old")
    before = store.blob_path(digest).stat().st_ctime_ns
    monkeypatch.setattr(blobs, "_RENEW_S", -1)
    store.put_bytes(b"old")
    assert store.blob_path(digest).stat().st_ctime_ns > before


def test_pending_records_of_others_are_spared(tmp_path: Path, store: Store) -> None:
    from ftbuild.store import leases

    with open_store(tmp_path) as other:
        record = build(other, "a", {"x": b"1"})
        # Locks that do nothing: gc does not see the other process.
        assert other._shared is not None
        leases.leave(other._locks, other._shared)
        other._shared = None
        found = store.gc(max_bytes=0, grace_s=0)
        assert (found.records, found.trees, found.blobs) == (0, 0, 0)
        assert other.find(key_of("a")) == record


USE = """
import sys
from pathlib import Path
from store_kit import open_store
with open_store(Path(sys.argv[1])) as store:
    if sys.argv[2] == "write":
        store.workspace()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["write", "read"])
def test_running_build_is_waited_for_and_then_named(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(gc, "WAIT_S", 0.05)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", USE, str(tmp_path), how],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "open\n"
        with pytest.raises(MachineError) as caught:
            store.gc(max_bytes=0, grace_s=0)
        who = (
            f"`-c {tmp_path} write` (pid {user.pid} on {os.uname().nodename})"
            if how == "write"
            else "another process"
        )
        assert caught.value.render() == (
            f"error[E0656]: the store is in use by {who}\n"
            f"  --> {store.root}\n"
            "  fix: wait until it has ended, then run `ftbuild gc` again"
        )
        assert caught.value.exit_code == 5
        monkeypatch.setattr(gc, "WAIT_S", 30.0)
        user.communicate("")
    assert store.gc(max_bytes=0, grace_s=0).records == 0


def test_store_cannot_be_opened_while_gc_has_it(tmp_path: Path, store: Store) -> None:
    held = store._exclude(0.0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", USE, str(tmp_path), "read"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdout is not None
        os.set_blocking(user.stdout.fileno(), False)
        time.sleep(0.4)
        assert not user.stdout.readline()
        os.set_blocking(user.stdout.fileno(), True)
        from ftbuild.store import leases

        leases.leave(store._locks, held)
        assert user.stdout.readline() == "open\n"
        user.communicate("")


def test_record_goes_before_its_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftbuild.store import disk

    build(store, "a", {"x": LARGE})
    store.flush()
    removed: list[str] = []
    real = disk.remove

    def remove(path: str) -> None:
        if "/v1/" in path and path.count("/v1/") == 1:
            removed.append(path.split("/v1/")[1].split("/")[0])
        real(path)

    monkeypatch.setattr(disk, "remove", remove)
    _later(monkeypatch, 10)
    store.gc(max_bytes=0)
    assert list(dict.fromkeys(removed))[:3] == ["actions", "trees", "blobs"]


def test_damaged_entry_of_a_workspace_stops_gc_until_it_registers_again(
    tmp_path: Path, store: Store
) -> None:
    store.register(tmp_path / ".ftbuild")
    (root,) = (store.root / "v1" / "roots").iterdir()
    root.write_bytes(b"")
    with pytest.raises(MachineError, match="gc cannot tell what a workspace uses"):
        store.gc(max_bytes=0)
    store.register(tmp_path / ".ftbuild")
    assert store.gc(max_bytes=0).records == 0
