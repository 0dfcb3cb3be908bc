"""A flipped bit in each object of a store: `verify --store` finds all, and builds give the same.

The control flips nothing and leaves out the check of one kind of object.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.store.check import Checker
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from store_kit import build, contents, flip_bit, open_store, truncate

FILES = {
    "small": {"a.txt": b"hello\n", "d/b.txt": b"x" * 300},
    "large": {"weights.bin": bytes(range(256)) * 400},
    "same": {"c.txt": b"hello\n"},
}


@dataclass
class Flips:
    planned: int = 0
    found: int = 0
    used: int = 0
    different: int = 0
    details: list[str] = field(default_factory=list)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    with open_store(tmp_path) as store:
        for name, files in FILES.items():
            build(store, name, files)
    return tmp_path


def objects(root: Path) -> list[Path]:
    base = root / "store" / "v1"
    found = [*base.glob("blobs/*/*"), *base.glob("actions/*/*"), *base.glob("trees/*/*/**/*")]
    return sorted(path for path in found if path.is_file())


def look(root: Path) -> dict[str, dict[str, bytes]]:
    """Build again what is no longer there, and return all outputs."""
    found = {}
    with Store(root / "store", StatCache(root / "fresh")) as store:
        for name, files in FILES.items():
            record = build(store, name, files)
            found[name] = contents(store.lay_out(record.tree))
    return found


def test_bit_in_each_object_is_found_and_rebuilds_are_equal(full: Path) -> None:
    flips = Flips(planned=len(objects(full)))
    for number, path in enumerate(objects(full)):
        size = path.stat().st_size
        flip_bit(path, (number * 37) % (8 * size))
        with Store(full / "store", StatCache(full / f"stat{number}")) as store:
            checked = store.check()
        flips.found += bool(checked.damaged)
        with Store(full / "store", StatCache(full / f"again{number}")) as store:
            flips.used += bool(store.check().damaged)  # nothing damaged is left in its place
        flips.different += look(full) != FILES
        if flips.found != number + 1:
            flips.details.append(str(path))
    report("8", "bit flip in each object of the store", fired=flips.planned, bad=flips.used)
    assert flips.planned > 8
    assert flips == Flips(planned=flips.planned, found=flips.planned)


@pytest.mark.parametrize("mutation", ["empty", "short", "swapped"])
def test_blob_that_is_no_longer_whole_is_found(full: Path, mutation: str) -> None:
    blobs = [path for path in objects(full) if "/blobs/" in str(path)]
    found = 0
    for number, path in enumerate(blobs):
        if mutation == "swapped":
            other = blobs[number - 1].read_bytes()
            path.chmod(0o644)
            path.write_bytes(other)
        else:
            truncate(path, 0 if mutation == "empty" else path.stat().st_size - 1)
        with Store(full / "store", StatCache(full / f"stat{number}")) as store:
            found += bool(store.check().damaged)
        assert look(full) == FILES
    report("9", f"{mutation} blobs", fired=len(blobs), bad=len(blobs) - found)
    assert found == len(blobs)


def test_check_that_believes_names_finds_nothing(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without hashing a flipped bit passes."""
    monkeypatch.setattr(Checker, "_hash", lambda self, path: Path(path).name)
    blob = next(path for path in objects(full) if "/blobs/" in str(path))
    flip_bit(blob, 3)
    with Store(full / "store", StatCache(full / "stat")) as store:
        damaged = [damage for damage in store.check().damaged if damage.kind == "blob"]
    report("8", "bit flip in each object of the store", control_red=damaged == [])
    assert damaged == []


def test_small_blob_is_mended_from_its_tree(full: Path) -> None:
    blob = next(p for p in objects(full) if "/blobs/" in str(p) and p.stat().st_size == 300)
    flip_bit(blob, 5)
    with Store(full / "store", StatCache(full / "stat")) as store:
        [damage] = store.check().damaged
        assert (damage.kind, damage.name, damage.is_mended) == ("blob", blob.name, True)
        assert blob.read_bytes() == b"x" * 300
        assert store.check().damaged == ()


def test_blob_is_mended_from_elsewhere(full: Path) -> None:
    blob = next(p for p in objects(full) if "/blobs/" in str(p) and p.stat().st_size > 65536)
    good = blob.read_bytes()
    flip_bit(blob, 5)
    asked = []
    with Store(full / "store", StatCache(full / "stat")) as store:

        def fetch(digest: str) -> bool:
            asked.append(digest)
            store.put_bytes(good)
            return True

        damaged = store.check(fetch).damaged
    assert {(damage.kind, damage.is_mended) for damage in damaged} == {
        ("blob", True),
        ("tree", True),
    }
    assert asked == [blob.name]
    assert blob.read_bytes() == good


def test_blob_from_elsewhere_is_checked(full: Path) -> None:
    blob = next(p for p in objects(full) if "/blobs/" in str(p) and p.stat().st_size > 65536)
    flip_bit(blob, 5)
    with Store(full / "store", StatCache(full / "stat")) as store:
        damaged = store.check(lambda digest: True).damaged
    assert ("blob", False) in {(damage.kind, damage.is_mended) for damage in damaged}


def test_damaged_record_is_moved_away(full: Path) -> None:
    record = next(path for path in objects(full) if path.suffix == ".json")
    record.chmod(0o644)
    record.write_bytes(json.dumps({"self": "no"}).encode())
    with Store(full / "store", StatCache(full / "stat")) as store:
        [damage] = store.check().damaged
    assert (damage.kind, damage.name, damage.is_mended) == ("record", record.stem, False)
    assert not record.exists()
    assert [path.name[:64] for path in (full / "store/v1/quarantine").iterdir()] == [record.stem]
