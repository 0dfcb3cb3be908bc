"""Leases save double work; nothing breaks without them."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.store import leases
from ftbuild.store.store import Store
from store_kit import build, key_of, open_store

HOLD = """
import sys
from pathlib import Path
from store_kit import key_of, open_store
store = open_store(Path(sys.argv[1]))
with store.lease(key_of("a")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lease of `a`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_holds_an_action(store: Store, holder: "subprocess.Popen[str]") -> None:
    assert store.try_lease(key_of("a")) is None
    other = store.try_lease(key_of("b"))
    assert other is not None
    store.release_lease(key_of("b"), other)


def test_killed_holder_frees_the_lease(store: Store, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    holder.wait()
    with store.lease(key_of("a")):
        pass
    report("21", "a lease whose holder was killed", fired=1, bad=0)


def test_waiting_ends_when_the_holder_does(store: Store, holder: "subprocess.Popen[str]") -> None:
    got = threading.Event()

    def wait() -> None:
        with store.lease(key_of("a")):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.1)
    assert holder.stdin is not None
    holder.stdin.close()
    assert got.wait(30)
    thread.join()


def test_threads_of_one_process_exclude_each_other(store: Store) -> None:
    inside: list[int] = []
    overlaps: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with store.lease(key_of("a")):
                inside.append(number)
                overlaps.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1] * 80


def test_one_thread_may_hold_several_actions(store: Store) -> None:
    with store.lease(key_of("a")), store.lease(key_of("b")):
        assert store.try_lease(key_of("a")) is None
    with store.lease(key_of("a")):
        pass


def test_lease_is_given_back_after_an_error(store: Store) -> None:
    with pytest.raises(KeyError), store.lease(key_of("a")):
        raise KeyError
    with store.lease(key_of("a")):
        pass


def test_forked_child_does_not_keep_the_lease(store: Store) -> None:
    read_end, write_end = os.pipe()
    held = store.try_lease(key_of("a"))
    assert held is not None
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    store.release_lease(key_of("a"), held)
    with store.lease(key_of("a")):
        pass
    os.close(write_end)
    os.waitpid(child, 0)


def test_leases_leave_no_files(store: Store) -> None:
    for number in range(100):
        with store.lease(key_of(number)):
            pass
    assert os.listdir(store.root / "v1" / "leases") == ["lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_without_locks_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, offset: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(leases, "_set", refuse)
    with open_store(tmp_path) as store, store.lease(key_of("a")), store.lease(key_of("a")):
        assert build(store, "a", {"out": b"1"}) == store.find(key_of("a"))


def test_locks_that_succeed_for_all_break_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_set", lambda descriptor, offset, kind: None)
    with open_store(tmp_path) as one, open_store(tmp_path) as two:
        with one.lease(key_of("a")), two.lease(key_of("a")):
            first = build(one, "a", {"out": b"1"})
            second = build(two, "a", {"out": b"2"})
        assert one.find(key_of("a")) == first
        assert two.find(key_of("a")) == second
        collected = one.gc(grace_s=0)
        assert (collected.records, collected.blobs) == (0, 0)
    with open_store(tmp_path) as later:
        assert later.find(key_of("a")) in (first, second)
