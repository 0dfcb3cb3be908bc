import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.store import statcache
from ftbuild.store.statcache import RACY_NS, StatCache, published_mtime_ns

A = hashlib.sha256(b"aaaa").hexdigest()
B = hashlib.sha256(b"bbbb").hexdigest()
OLD_NS = 1_500_000_000_000_000_000


def _stat(size: int, mtime_ns: int, ctime_ns: int, ino: int = 7, dev: int = 3) -> os.stat_result:
    fields = (0o100644, ino, dev, 1, 0, 0, size, 0, 0, 0)
    return os.stat_result(fields, {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns})


def _counting_hash(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the cache hash as ever and list what it hashed."""
    hashed: list[str] = []
    real = statcache.hash_file
    monkeypatch.setattr(statcache, "hash_file", lambda p: (hashed.append(str(p)), real(p))[1])
    return hashed


def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of the machine be an hour ahead of the file system's."""
    real = time.time_ns
    monkeypatch.setattr(statcache.time, "time_ns", lambda: real() + 3600 * 10**9)


def test_settled_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(monkeypatch)
    hashed = _counting_hash(monkeypatch)
    file = tmp_path / "a"
    file.write_bytes(b"aaaa")
    cache = StatCache(tmp_path / "cache")
    assert cache.known(str(file)) is None
    assert [cache.digest_of(str(file)) for _ in range(3)] == [A, A, A]
    assert cache.known(str(file)) == A
    assert hashed == [str(file)]


def test_young_file_is_hashed_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = _counting_hash(monkeypatch)
    file = tmp_path / "a"
    file.write_bytes(b"aaaa")
    cache = StatCache(tmp_path / "cache")
    assert [cache.digest_of(str(file)) for _ in range(3)] == [A, A, A]
    assert len(hashed) == 3


def test_file_of_the_future_is_hashed_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = _counting_hash(monkeypatch)
    file = tmp_path / "a"
    file.write_bytes(b"aaaa")
    os.utime(file, (2**31, 2**31))
    _settle(monkeypatch)
    cache = StatCache(tmp_path / "cache")
    assert [cache.digest_of(str(file)) for _ in range(2)] == [A, A]
    assert len(hashed) == 2
    report("23", "a file of the year 2038", fired=1, bad=0)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (_stat(5, OLD_NS, OLD_NS), "size"),
        (_stat(4, OLD_NS + 1, OLD_NS), "mtime"),
        (_stat(4, OLD_NS, OLD_NS + 1), "ctime"),
        (_stat(4, OLD_NS, OLD_NS, ino=8), "inode"),
        (_stat(4, OLD_NS, OLD_NS, dev=4), "device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_field_of_the_stat_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: os.stat_result, field: str
) -> None:
    cache = StatCache(tmp_path / "cache")
    now = [_stat(4, OLD_NS, OLD_NS)]
    monkeypatch.setattr(statcache.os, "stat", lambda path: now[0])
    cache.note("/f", A, now[0], OLD_NS + 2 * RACY_NS)
    cache.vouch(now[0], A, OLD_NS + 2 * RACY_NS)
    assert cache.known("/f") == A
    assert cache.vouches(now[0], A)
    now[0] = changed
    assert cache.known("/f") is None, field
    assert not cache.vouches(changed, A), field


@pytest.mark.parametrize(
    ("mtime_ns", "ctime_ns", "is_kept"),
    [
        (OLD_NS - RACY_NS - 1, OLD_NS - RACY_NS - 1, True),
        (OLD_NS - RACY_NS, OLD_NS - RACY_NS - 1, False),
        (OLD_NS - RACY_NS - 1, OLD_NS - RACY_NS, False),
        (OLD_NS + 1, OLD_NS - RACY_NS - 1, False),
    ],
)
def test_racy_rule_is_two_seconds_on_mtime_and_ctime(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mtime_ns: int,
    ctime_ns: int,
    is_kept: bool,
) -> None:
    cache = StatCache(tmp_path / "cache")
    stat = _stat(4, mtime_ns, ctime_ns)
    monkeypatch.setattr(statcache.os, "stat", lambda path: stat)
    cache.note("/f", A, stat, OLD_NS)
    cache.vouch(stat, A, OLD_NS)
    assert (cache.known("/f") == A) is is_kept
    assert cache.vouches(stat, A) is is_kept


def _stale_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> int:
    """Edit a file on a clock that ticks every 2 s, mtime put back; count wrong digests.

    No program can set a ctime, so both times are rounded down on their way to the cache.
    """
    real = os.stat

    def coarse(path: str) -> os.stat_result:
        stat = real(path)
        ctime_ns = stat.st_ctime_ns // RACY_NS * RACY_NS
        return _stat(stat.st_size, stat.st_mtime_ns, ctime_ns, stat.st_ino, stat.st_dev)

    monkeypatch.setattr(statcache.os, "stat", coarse)
    cache = StatCache(tmp_path / "cache")
    file = str(tmp_path / "edited")
    stale = 0
    for number in range(rounds):
        data = b"%08d" % number
        with open(file, "wb") as opened:
            opened.write(data)
        os.utime(file, ns=(OLD_NS, OLD_NS))
        stale += cache.digest_of(file) != hashlib.sha256(data).hexdigest()
    return stale


def test_same_size_edits_with_the_old_mtime_are_all_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = _stale_digests(tmp_path, monkeypatch, 1000)
    report("25", "an edit of the same size with the old mtime", fired=1000, bad=stale)
    assert stale == 0


def test_without_the_racy_rule_edits_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statcache, "_is_settled", lambda stat, read_at_ns: True)
    stale = _stale_digests(tmp_path, monkeypatch, 1000)
    report("25", "an edit of the same size with the old mtime", control_red=stale > 0)
    assert stale > 900


def test_edit_while_hashing_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(monkeypatch)
    file = tmp_path / "a"
    file.write_bytes(b"aaaa")
    real = statcache.hash_file

    def hash_and_edit(path: str) -> str:
        digest = real(path)
        file.write_bytes(b"bbbb")
        os.utime(file, ns=(OLD_NS, OLD_NS))
        return digest

    cache = StatCache(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(statcache, "hash_file", hash_and_edit)
        assert cache.digest_of(str(file)) == A
    assert cache.known(str(file)) is None
    assert cache.digest_of(str(file)) == B


def test_published_mtime_is_a_moment_of_2000_to_2008_that_follows_from_the_digest() -> None:
    low, high = "0" * 64, "f" * 64
    assert published_mtime_ns(low) == 946_684_800 * 10**9
    assert published_mtime_ns(high) == (946_684_800 + 2**28 - 1) * 10**9 + 2**28 - 1
    assert time.gmtime(published_mtime_ns(high) // 10**9).tm_year == 2008
    assert published_mtime_ns(A) != published_mtime_ns(B)
    # `datasets` caches by path and by mtime as a float: that must differ too.
    assert published_mtime_ns(A) / 1e9 != published_mtime_ns(B) / 1e9


def test_published_file_is_vouched_for_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"aaaa")
    cache = StatCache(tmp_path / "cache")
    cache.vouch(os.stat(file), A, time.time_ns())
    assert not cache.vouches(os.stat(file), A)
    os.utime(file, ns=(0, published_mtime_ns(A)))
    cache.vouch(os.stat(file), A, time.time_ns())
    assert cache.vouches(os.stat(file), A)
    assert not cache.vouches(os.stat(file), B)
    file.write_bytes(b"bbbb")
    assert not cache.vouches(os.stat(file), A)


def test_cache_survives_being_saved_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settle(monkeypatch)
    file = tmp_path / "a"
    file.write_bytes(b"aaaa")
    cache = StatCache(tmp_path / "cache")
    cache.digest_of(str(file))
    os.utime(file, ns=(0, published_mtime_ns(A)))
    cache.vouch(os.stat(file), A, 0)
    cache.digest_of(str(file))
    cache.save()
    again = StatCache(tmp_path / "cache")
    assert again.known(str(file)) == A
    assert again.vouches(os.stat(file), A)
    assert sorted(os.listdir(tmp_path)) == ["a", "cache"]


def test_unchanged_cache_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(monkeypatch)
    (tmp_path / "a").write_bytes(b"aaaa")
    StatCache(tmp_path / "cache").save()
    assert not (tmp_path / "cache").exists()
    cache = StatCache(tmp_path / "cache")
    cache.digest_of(str(tmp_path / "a"))
    cache.save()
    before = os.stat(tmp_path / "cache")
    again = StatCache(tmp_path / "cache")
    again.digest_of(str(tmp_path / "a"))
    again.save()
    assert os.stat(tmp_path / "cache").st_ino == before.st_ino


def test_damaged_cache_file_is_an_empty_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settle(monkeypatch)
    for number in range(20):
        (tmp_path / f"f{number}").write_bytes(b"aaaa")
    cache = StatCache(tmp_path / "cache")
    for number in range(20):
        cache.digest_of(str(tmp_path / f"f{number}"))
    cache.save()
    good = (tmp_path / "cache").read_bytes()
    damaged = [good[:cut] for cut in range(0, len(good), 37)]
    damaged += [
        good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]
        for at in range(0, len(good), 11)
    ]
    assert len(damaged) > 200
    for data in [b"", b"\0" * 5000, b"{}", *damaged]:
        (tmp_path / "cache").write_bytes(data)
        assert StatCache(tmp_path / "cache").known(str(tmp_path / "f3")) is None
    report("11", "a damaged stat cache", fired=len(damaged) + 3, bad=0)
    (tmp_path / "cache").write_bytes(good)
    assert StatCache(tmp_path / "cache").known(str(tmp_path / "f3")) == A


def test_failed_save_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(monkeypatch)
    (tmp_path / "a").write_bytes(b"aaaa")
    cache = StatCache(tmp_path / "cache")
    cache.digest_of(str(tmp_path / "a"))
    cache.save()
    good = (tmp_path / "cache").read_bytes()
    (tmp_path / "b").write_bytes(b"bbbb")
    cache.digest_of(str(tmp_path / "b"))

    def refuse(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statcache.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        cache.save()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "cache"]
    assert (tmp_path / "cache").read_bytes() == good


def test_cache_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statcache, "_KEPT", 10)
    cache = StatCache(tmp_path / "cache")
    for number in range(20):
        cache.note(f"/f{number}", A, _stat(4, OLD_NS, OLD_NS), OLD_NS + 2 * RACY_NS)
    cache.save()
    again = StatCache(tmp_path / "cache")
    again.note("/new", A, _stat(4, OLD_NS, OLD_NS), OLD_NS + 2 * RACY_NS)
    again.save()
    monkeypatch.setattr(statcache.os, "stat", lambda path: _stat(4, OLD_NS, OLD_NS))
    last = StatCache(tmp_path / "cache")
    assert last.known("/new") == A
    assert last.known("/f1") is None


def test_threads_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(monkeypatch)
    expected = {}
    for number in range(200):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)
        expected[f"f{number}"] = hashlib.sha256(b"%d" % number).hexdigest()
    cache = StatCache(tmp_path / "cache")
    wrong: list[str] = []

    def work() -> None:
        for name, digest in expected.items():
            if cache.digest_of(str(tmp_path / name)) != digest:
                wrong.append(name)
            cache.save()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert StatCache(tmp_path / "cache").known(str(tmp_path / "f7")) == expected["f7"]


def test_another_process_is_believed_of_files_that_are_not_known_here(tmp_path: Path) -> None:
    there, here = StatCache(tmp_path / "there"), StatCache(tmp_path / "here")
    first, second = _stat(4, OLD_NS, OLD_NS, ino=7), _stat(4, OLD_NS, OLD_NS, ino=8)
    there.vouch(first, A, OLD_NS + 10 * RACY_NS)
    there.vouch(second, A, OLD_NS + 10 * RACY_NS)
    here.learn(there.take_new())
    assert here.vouches(first, A)
    assert here.vouches(second, A)
    assert there.take_new() == []


def test_another_process_is_not_believed_of_a_file_that_changed(tmp_path: Path) -> None:
    there, here = StatCache(tmp_path / "there"), StatCache(tmp_path / "here")
    before, after = _stat(4, OLD_NS, OLD_NS), _stat(4, OLD_NS, OLD_NS + 1)
    here.vouch(before, A, OLD_NS + 10 * RACY_NS)
    there.vouch(after, A, OLD_NS + 10 * RACY_NS)
    here.learn(there.take_new())
    assert not here.vouches(after, A)
    assert here.vouches(before, A)
