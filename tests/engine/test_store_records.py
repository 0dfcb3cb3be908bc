"""Records: what one looks like, what is found, and that no damage ever makes a wrong hit."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults.fault_report import report
from ftbuild.digest import Digest
from ftbuild.errors import MachineError
from ftbuild.store import actions, siblings
from ftbuild.store.actions import DamagedRecord, Record, decode, encode
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree
from store_kit import build, damage, key_of, open_store, put, record_of, truncate

EMPTY = hashlib.sha256(b"").hexdigest()
KEY = Digest("ab" * 32)
RECORD = Record(
    KEY,
    Tree((Entry("é.txt", "f", 0, Digest(EMPTY)),)),
    {"rows": [1, 2.5, None]},
    {"rule": "toy"},
    {"seconds": 3},
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def _files(store: Store, folder: str) -> list[str]:
    return sorted(p.name for p in (store.root / "v1" / folder).rglob("*") if p.is_file())


def test_record_is_canonical_json_that_names_its_own_digest() -> None:
    body = (
        '{"document":{"rule":"toy"},"format":1,"key":"' + KEY + '","provenance":{"seconds":3},'
        '"tree":[["é.txt","f",0,"' + EMPTY + '"]],"value":{"rows":[1,2.5,null]}}'
    )
    own = hashlib.sha256(body.encode()).hexdigest()
    data = encode(RECORD)
    assert data.decode() == '{"self":"' + own + '",' + body[1:]
    assert json.loads(data)["self"] == own
    assert decode(data, KEY) == RECORD


def test_record_with_nan_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Record(KEY, Tree(()), float("nan"), {}, {}))


def test_record_of_another_key_is_damaged() -> None:
    with pytest.raises(DamagedRecord):
        decode(encode(RECORD), Digest("cd" * 32))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"tree": [["../a", "f", 0, EMPTY]]},
        {"tree": None},
        {"document": None},
        {"provenance": []},
        {"key": "0" * 64},
    ],
)
def test_record_of_another_shape_with_a_right_self_is_damaged(change: dict[str, object]) -> None:
    plain = json.loads(encode(RECORD))
    del plain["self"]
    body = json.dumps({**plain, **change}, sort_keys=True, separators=(",", ":")).encode()
    own = hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(DamagedRecord):
        decode(b'{"self":"' + own + b'",' + body[1:], KEY)


@st.composite
def _mutations(draw: st.DrawFn) -> bytes:
    data = bytearray(encode(RECORD))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "delete", "replace", "twice"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "flip":
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draw(st.binary(min_size=1, max_size=8))
    elif kind == "delete":
        del data[at : at + draw(st.integers(1, 8))]
    elif kind == "replace":
        return draw(st.binary(max_size=300))
    else:
        return bytes(data * 2)
    return bytes(data)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_mutations())
def test_damaged_record_is_never_a_hit(data: bytes) -> None:
    if data == encode(RECORD):
        return
    with pytest.raises(DamagedRecord):
        decode(data, KEY)
    report("10", "a damaged record", fired=1, bad=0)


def test_without_the_self_digest_damage_is_a_wrong_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(RECORD).replace(b'"toy"', b'"top"')
    monkeypatch.setattr(actions, "hash_bytes", lambda body: Digest(data[9:73].decode()))
    assert decode(data, KEY).document == {"rule": "top"}
    report("10", "a damaged record", control_red=True)


def test_published_record_is_found_here_and_later(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) is None
        record = build(store, "a", {"out": b"1"})
        assert store.find(key_of("a")) == record
        assert _files(store, "actions") == []
        store.flush()
        assert _files(store, "actions") == [f"{key_of('a')}.json"]
        assert _files(store, "pending") == []
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) == record
        assert store.find(key_of("b")) is None


def test_later_record_of_a_key_replaces_the_earlier(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        build(store, "a", {"out": b"1"})
        second = build(store, "a", {"out": b"2"})
        assert store.find(key_of("a")) == second
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) == second
        third = build(store, "a", {"out": b"3"})
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) == third


def test_damaged_record_goes_to_quarantine_and_counts_as_absent(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        build(store, "a", {"out": b"1"})
    with open_store(tmp_path) as store:
        path = store.root / "v1" / "actions" / key_of("a")[:2] / f"{key_of('a')}.json"
        damage(path, b'{"self":"0')
        assert store.find(key_of("a")) is None
        assert not path.exists()
        (kept,) = _files(store, "quarantine")
        assert kept.startswith(f"{key_of('a')}.json-")
        record = build(store, "a", {"out": b"1"})
        assert store.find(key_of("a")) == record


def test_record_whose_blob_and_tree_are_gone_is_not_found(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        record = build(store, "a", {"out": b"1", "more": b"2"})
    (entry, _) = record.tree.entries
    with open_store(tmp_path) as store:
        os.unlink(store.blob_path(entry.digest))
        assert store.find(key_of("a")) == record  # the laid-out file is there
        os.unlink(store.tree_path(record.tree.digest) / entry.path)
        assert store.find(key_of("a")) is None
        again = build(store, "a", {"out": b"1", "more": b"2"})
        assert store.find(key_of("a")) == again


def test_deleted_blob_is_restored_from_the_tree(tmp_path: Path) -> None:
    large = b"large" * 20_000
    with open_store(tmp_path) as store:
        record = build(store, "a", {"large": large, "small": b"1"})
    with Store(tmp_path / "store", StatCache(tmp_path / "another")) as store:
        for entry in record.tree.entries:
            os.unlink(store.blob_path(entry.digest))
        store.lay_out(record.tree)
        assert [store.blob_path(e.digest).read_bytes() for e in record.tree.entries] == [
            large,
            b"1",
        ]


def test_blob_of_the_wrong_size_goes_to_quarantine(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        record = build(store, "a", {"out": b"12345"})
    with open_store(tmp_path) as store:
        (entry,) = record.tree.entries
        truncate(store.blob_path(entry.digest), 0)
        assert store.find(key_of("a")) == record
        assert not store.has_blob(entry.digest)
        truncate(store.tree_path(record.tree.digest) / "out", 0)
        assert store.find(key_of("a")) is None


def test_use_of_a_record_shows_in_its_mtime_once_an_hour(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        build(store, "a", {"out": b"1"})
    with open_store(tmp_path) as store:
        path = store.root / "v1" / "actions" / key_of("a")[:2] / f"{key_of('a')}.json"
        before = time.time() - 3000
        os.utime(path, (before, before))
        store.find(key_of("a"))
        assert path.stat().st_mtime == pytest.approx(before, abs=1)
        week_ago = time.time() - 7 * 86400
        os.utime(path, (week_ago, week_ago))
        store.find(key_of("a"))
        assert path.stat().st_mtime == pytest.approx(time.time(), abs=60)


@pytest.mark.fault("15", "a store of a newer format")
def test_newer_format_is_refused_with_a_hint(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        build(store, "a", {"out": b"1"})
    (tmp_path / "store" / "v1" / "format").write_text("2\n")
    with pytest.raises(MachineError) as caught:
        open_store(tmp_path)
    assert caught.value.render() == (
        "error[E0655]: the store has format `2`; this ftbuild knows format 1\n"
        f"  --> {tmp_path / 'store'}\n"
        "  fix: upgrade ftbuild, or set FTBUILD_CACHE to another folder"
    )
    (tmp_path / "other" / "store" / "v7").mkdir(parents=True)
    with pytest.raises(MachineError, match="the store has format `7`"):
        open_store(tmp_path / "other")


def test_store_that_was_half_made_is_finished(tmp_path: Path) -> None:
    (tmp_path / "store" / "v1" / "blobs").mkdir(parents=True)
    with open_store(tmp_path) as store:
        record = build(store, "a", {"out": b"1"})
        assert store.find(key_of("a")) == record
    assert (tmp_path / "store" / "v1" / "format").read_text() == "1\n"


def test_place_that_cannot_be_a_store_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(MachineError) as caught:
        open_store(tmp_path)
    assert caught.value.render().splitlines()[0] == (
        "error[E0653]: the store cannot be used: Not a directory"
    )
    assert caught.value.exit_code == 5


def test_opening_and_finding_make_no_session(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        build(store, "a", {"out": b"1"})
    with open_store(tmp_path) as store:
        assert store.find(key_of("a")) is not None
        assert os.listdir(store.root / "v1" / "tmp") == []
        assert os.listdir(store.root / "v1" / "pending") == []


def test_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, {"out": b"1"})
    store.forget(store.workspace())
    store.workspace()
    store.close()
    store.close()
    assert os.listdir(tmp_path / "store" / "v1" / "tmp") == []
    assert os.listdir(tmp_path / "store" / "v1" / "pending") == []


def test_scratch_survives_and_is_dropped(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (store.scratch(KEY) / "checkpoint").write_text("1")
    with open_store(tmp_path) as store:
        assert (store.scratch(KEY) / "checkpoint").read_text() == "1"
        store.drop_scratch(KEY)
        assert os.listdir(store.scratch(KEY)) == []


def test_read_only_folder_left_by_a_rule_is_removed(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        out = store.workspace()
        (out / "a").mkdir()
        (out / "a" / "b").write_text("1")
        os.chmod(out / "a", 0o500)
        store.forget(out)
        assert not out.exists()


def test_provenance_and_document_come_back(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        record = record_of("a", put(store, {}), value=[1, "two", None])
        store.publish(record)
    with open_store(tmp_path) as store:
        found = store.find(key_of("a"))
        assert found is not None
        assert (found.value, found.document, found.provenance) == (
            [1, "two", None],
            {"rule": "toy", "name": "a"},
            {"seconds": 1.5},
        )


def test_siblings_are_listed_once_the_latest_first(tmp_path: Path) -> None:
    family = key_of("family")
    with open_store(tmp_path) as store:
        assert store.siblings(family) == []
        store.note_siblings(family, [key_of(1), key_of(2)])
        store.note_siblings(family, [key_of(3), key_of(1)])
        assert store.siblings(family) == [key_of(1), key_of(3), key_of(2)]
        assert store.siblings(key_of("other")) == []


def test_long_list_of_siblings_loses_its_older_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "MAX_KEYS", 10)
    with open_store(tmp_path) as store:
        for number in range(11):
            store.note_siblings(key_of("family"), [key_of(number)])
        assert store.siblings(key_of("family")) == [key_of(n) for n in (10, 9, 8, 7, 6)]
