"""Damage in a remote store: never in an artifact, never fatal, and mended by who builds."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild import signing
from ftbuild.digest import canonical_json, hash_bytes
from ftbuild.remote.folder import Folder
from ftbuild.remote.result import Blob, OutputFile, Result
from ftbuild.store.actions import decode, encode
from ftbuild.store.trees import Entry, Tree
from remote.checkout import Checkout, checkout, objects
from store_kit import contents, corrupt_blobs

Harm = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    overwrite(path, bytes(data))


def cut(path: Path) -> None:
    overwrite(path, path.read_bytes()[:-1])


def empty(path: Path) -> None:
    overwrite(path, b"")


def lengthen(path: Path) -> None:
    overwrite(path, path.read_bytes() + b"x")


def overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def built(tmp_path: Path) -> tuple[Checkout, Path, list[str]]:
    """Return a built checkout, its remote folder and the names of all objects in that."""
    remote = tmp_path / "remote"
    a = checkout(tmp_path / "a", str(remote))
    a.make()
    names = objects(Folder(str(remote), "it"), a)
    assert len(names) == len(list(remote.glob("*/*")))
    return a, remote, names


@pytest.mark.parametrize("harm", [flip, cut, empty, lengthen, Path.unlink])
def test_each_damaged_object_is_a_miss_and_is_mended(tmp_path: Path, harm: Harm) -> None:
    a, remote, names = built(tmp_path)
    fired, noticed = 0, 0
    step = 1 if harm is flip or os.environ.get("FTBUILD_FAULTS") == "all" else 7
    for name in names[::step]:
        harm(remote / name)
        fired += 1
        b = checkout(tmp_path / f"b{fired}", str(remote))
        outcomes = b.make("final", "big")
        assert set(outcomes.values()) <= {"built", "fetched", "fresh"}, (name, outcomes)
        assert b.digests() == a.digests(), name
        assert corrupt_blobs(b.store) == [], name
        noticed += "built" in outcomes.values()
        assert len(b.warnings()) == (harm is not Path.unlink or name.startswith("cas/")) * (
            "built" in outcomes.values()
        ), (name, b.warnings())
        c = checkout(tmp_path / f"c{fired}", str(remote))
        assert "built" not in c.make("final", "big").values(), name
        shutil.rmtree(tmp_path / f"b{fired}")
        shutil.rmtree(tmp_path / f"c{fired}")
    assert fired == len(names[::step])
    name = getattr(harm, "__name__", "removed")
    report("36", f"a damaged or missing object of a remote: {name}", fired=fired, bad=0)
    # Of `clean` only the record is needed, so its one blob may be whatever it is.
    assert fired - noticed <= 1


def test_without_verifying_a_flipped_bit_would_get_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the sweep above can turn red."""
    from ftbuild.store import disk

    a, remote, names = built(tmp_path)
    sizes = {name: (remote / name).stat().st_size for name in names}
    flip(remote / max(sizes, key=lambda name: sizes[name]))

    def trusting(path: str, blocks: object) -> object:
        right = iter(expected)
        Path(path).write_bytes(b"".join(blocks))  # type: ignore[call-overload]
        return next(right)

    b = checkout(tmp_path / "b", str(remote))
    with a.open() as project:
        [big] = [v for v in project.plan(["big"]).verdicts if v.label == "big"]
        assert big.key is not None
        record = project.store.find(big.key)
    assert record is not None
    real = disk.write_and_hash
    expected = [e.digest for e in record.tree.entries if e.path == "big"]

    def trusting_large(path: str, blocks: object, _: object = None) -> object:
        data = b"".join(blocks)  # type: ignore[call-overload]
        return trusting(path, [data]) if len(data) > 1_100_000 else real(path, [data])

    monkeypatch.setattr(disk, "write_and_hash", trusting_large)
    b.make("big")
    is_red = corrupt_blobs(b.store) != []
    report("36", "a damaged or missing object of a remote: flip", control_red=is_red)
    assert is_red
    assert contents(b.output("big")) != contents(a.output("big"))


def test_record_of_another_action_under_the_right_key_is_refused(tmp_path: Path) -> None:
    _, remote, _ = built(tmp_path)
    records = sorted((remote / "ac").iterdir())
    first, second = (path.read_bytes() for path in records[:2])
    overwrite(records[0], second)
    overwrite(records[1], first)
    b = checkout(tmp_path / "b", str(remote))
    assert "built" in b.make().values()
    [warning] = b.warnings()
    assert "gave something wrong (a record that is none" in warning


def poison(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change a record and make everything in it fit again, as one with bad intent would."""
    result = Result.decode(path.read_bytes())
    record = decode(result.record, path.name)  # type: ignore[arg-type]
    document = dict(record.document)
    change(document)
    encoded = encode(replace(record, document=document))
    overwrite(path, replace(result, record=encoded).encode())


def test_record_whose_document_is_of_another_key_is_refused(tmp_path: Path) -> None:
    _, remote, _ = built(tmp_path)
    for path in (remote / "ac").iterdir():
        poison(path, lambda document: document.update(version=99))
    b = checkout(tmp_path / "b", str(remote))
    assert set(b.make().values()) == {"built"}
    [warning] = b.warnings()
    assert warning.endswith(
        "gave something wrong (a record whose document is of another key), which is not used"
    )


def test_poisoned_record_is_refused_by_who_demands_signatures_and_written_over(
    tmp_path: Path,
) -> None:
    """A wrong result under the right key, all of it fitting: only a signature can tell."""
    signer = signing.Signer(b"k" * 32)
    a, remote, _ = built(tmp_path)
    with a.open() as project:
        [good] = [v for v in project.plan(["clean"]).verdicts if v.label == "clean"]
    path = remote / "ac" / str(good.key)
    result = Result.decode(path.read_bytes())
    record = decode(result.record, path.name)  # type: ignore[arg-type]
    evil = b"evil\n"
    tree = Tree((Entry("f", "f", len(evil), hash_bytes(evil)),))
    (remote / "cas" / hash_bytes(evil)).write_bytes(evil)
    file = OutputFile("f", Blob(hash_bytes(evil), len(evil)))
    overwrite(path, Result(encode(replace(record, tree=tree)), (file,)).encode())

    believing = checkout(tmp_path / "believing", str(remote))
    believing.make("clean")
    is_red = contents(believing.output("clean")) == {"f": evil}
    report("40", "poisoned record under the right key", control_red=is_red)
    assert is_red

    for number, outcome in ((1, "built"), (2, "fetched")):
        b = checkout(tmp_path / f"b{number}", str(remote))
        b.environment["FTBUILD_SIGNING_KEY"] = signer.to_text()
        manifest = b.root / "FTBUILD.toml"
        keys = f'\n[cache]\ntrusted_keys = ["{signer.public}"]\n'
        manifest.write_text(manifest.read_text() + keys)
        assert b.make("clean") == {"clean": outcome}
        assert contents(b.output("clean")) == {"f": b"hello\nworld\n"}
        assert ("it is not signed" in "".join(b.warnings())) == (number == 1)
    report("40", "poisoned record under the right key", fired=1, bad=0)


@pytest.mark.fault("52", "a record of a remote with such a path")
@pytest.mark.parametrize("path", ["../../evil", "/evil", "a/../../evil", "a//b", "."])
def test_record_with_a_path_that_leaves_its_tree_is_refused(tmp_path: Path, path: str) -> None:
    _, remote, _ = built(tmp_path)
    fired = 0
    for file in (remote / "ac").iterdir():
        result = Result.decode(file.read_bytes())
        body = b"{" + result.record[75:].replace(
            b'"tree":[["', b'"tree":[["' + canonical_json(path)[1:-1] + b'","f",0,"'
            + hash_bytes(b"").encode() + b'"],["', 1
        )  # fmt: skip
        record = b'{"self":"' + hash_bytes(body).encode() + b'",' + body[1:]
        overwrite(file, replace(result, record=record).encode())
        fired += 1
    b = checkout(tmp_path / "b", str(remote))
    assert set(b.make().values()) == {"built"}
    assert fired == 3
    assert not list(tmp_path.rglob("evil"))


def test_record_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    _, remote, _ = built(tmp_path)
    for file in (remote / "ac").iterdir():
        result = Result.decode(file.read_bytes())
        record = decode(result.record, file.name)  # type: ignore[arg-type]
        entries = tuple(entry._replace(size=1 << 60) for entry in record.tree.entries)
        encoded = encode(replace(record, tree=replace(record.tree, entries=entries)))
        overwrite(file, replace(result, record=encoded).encode())
    b = checkout(tmp_path / "b", str(remote))
    assert "built" in b.make().values()
    assert "bytes, more than the disk has free" in b.warnings()[0]


def test_store_of_another_is_read_and_never_written(tmp_path: Path) -> None:
    a, _, _ = built(tmp_path)
    before = contents(a.store / "v1" / "actions")
    b = checkout(tmp_path / "b", str(a.store))
    assert b.make() == {"clean": "fresh", "big": "fresh", "final": "fetched"}
    assert b.digests() == a.digests()
    assert contents(a.store / "v1" / "actions") == before
    flip(max((a.store / "v1" / "blobs").glob("*/*"), key=lambda p: p.stat().st_size))
    c = checkout(tmp_path / "c", str(a.store))
    assert "built" in c.make("big").values()
    assert c.digests()["big"] == a.digests()["big"]
    assert c.warnings() == [f"the store `{a.store}` has a damaged blob, which is not used"]


def test_layers_are_asked_in_their_order_and_hits_come_down(tmp_path: Path) -> None:
    a, remote, _ = built(tmp_path)
    b = checkout(tmp_path / "b", f"{tmp_path / 'nothing'} {a.store} {remote}")
    assert b.make() == {"clean": "fresh", "big": "fresh", "final": "fetched"}
    c = checkout(tmp_path / "c", f"{tmp_path / 'nothing'} {remote}")
    assert c.make() == {"clean": "fresh", "big": "fresh", "final": "fetched"}
    assert c.make(offline=True) == dict.fromkeys(("clean", "big", "final"), "fresh")
