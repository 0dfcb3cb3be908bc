"""Laying out: what was tampered with is mended or found, and nothing else is hashed."""

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftbuild.store import blobs, disk
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from store_kit import build, contents, damage, flip_bit, key_of, open_store, put, truncate

LARGE = bytes(range(256)) * 400
FILES = {"a.txt": b"hello", "data/large.bin": LARGE, "data/sub/b.txt": b"bye"}
BLOBS = 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files `lay_out` hashed."""
    found: list[str] = []
    real = blobs.hash_file
    monkeypatch.setattr(
        blobs, "hash_file", lambda path: (found.append(os.path.basename(path)), real(path))[1]
    )
    return found


def test_new_tree_is_intact_and_nothing_is_hashed(store: Store, hashed: list[str]) -> None:
    tree = put(store, FILES)
    assert store.is_intact(tree)
    assert contents(store.lay_out(tree)) == FILES
    assert hashed == []


def test_another_workspace_hashes_once(tmp_path: Path, store: Store, hashed: list[str]) -> None:
    tree = put(store, FILES)
    with Store(store.root, StatCache(tmp_path / "other")) as other:
        assert not other.is_intact(tree)
        other.lay_out(tree)
        assert sorted(hashed) == ["a.txt", "b.txt", "large.bin"]
        assert other.is_intact(tree)
        other.lay_out(tree)
        assert len(hashed) == 3


def _tampers() -> dict[str, Callable[[Path], None]]:
    return {
        "small file changed": lambda path: damage(path / "a.txt", b"HELLO"),
        "small file longer": lambda path: damage(path / "a.txt", b"hello, you"),
        "small file emptied": lambda path: truncate(path / "a.txt", 0),
        "file deleted": lambda path: os.unlink(path / "data" / "sub" / "b.txt"),
        "large file deleted": lambda path: os.unlink(path / "data" / "large.bin"),
        "file added": lambda path: (path / "data" / "new").write_text("1"),
        "folder added": lambda path: (path / "data" / "new" / "er").mkdir(parents=True),
        "folder deleted": lambda path: shutil.rmtree(path / "data"),
        "all deleted": lambda path: shutil.rmtree(path),
        "file replaced by a folder": lambda path: _replace_by_folder(path / "a.txt"),
        "folder replaced by a file": lambda path: _replace_by_file(path / "data" / "sub"),
        "file replaced by a link": lambda path: _replace_by_link(path / "a.txt"),
        "folder replaced by a link": lambda path: _replace_by_link(path / "data"),
        "tree replaced by a link": lambda path: _replace_by_link(path),
        "tree replaced by a file": lambda path: _replace_by_file(path),
        "file renamed": lambda path: os.rename(path / "a.txt", path / "c.txt"),
        "modes changed": lambda path: (
            os.chmod(path / "a.txt", 0o777),
            os.chmod(path / "data/large.bin", 0o644),
        )[0],
        "times changed": lambda path: [os.utime(p) for p in path.rglob("*")].clear(),
    }


def _replace_by_folder(path: Path) -> None:
    os.unlink(path)
    path.mkdir()
    (path / "inside").write_text("1")


def _replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("1")


def _replace_by_link(path: Path) -> None:
    moved = path.with_name(path.name + "-moved")
    os.rename(path, moved)
    os.symlink(moved, path)


@pytest.mark.parametrize("how", _tampers())
def test_tampered_tree_is_mended(store: Store, how: str) -> None:
    tree = put(store, FILES)
    path = store.lay_out(tree)
    _tampers()[how](path)
    assert not store.is_intact(tree)
    assert store.lay_out(tree) == path
    assert contents(path) == FILES
    assert not path.is_symlink()
    assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_dir()} == {
        "data",
        "data/sub",
    }
    files = [path / name for name in FILES]
    assert [stat.S_IMODE(file.lstat().st_mode) for file in files] == [0o444] * 3
    assert not any(p.is_symlink() for p in path.rglob("*"))
    # `touch` leaves a time of now, which is racy: only a later look may settle it.
    assert store.is_intact(tree) or how in {"times changed"}


def test_edit_that_keeps_size_and_mtime_is_found(store: Store) -> None:
    tree = put(store, FILES)
    path = store.lay_out(tree) / "a.txt"
    before = path.stat()
    damage(path, b"HELLO")
    os.chmod(path, 0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (5, before.st_mtime_ns)
    assert contents(store.lay_out(tree)) == FILES


def test_what_a_person_put_into_a_tree_is_kept_in_quarantine(store: Store) -> None:
    tree = put(store, FILES)
    (store.lay_out(tree) / "notes.txt").write_text("mine")
    store.lay_out(tree)
    (kept,) = (store.root / "v1" / "quarantine").iterdir()
    assert kept.name.startswith("notes.txt-")
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["large", "small"])
def test_damage_that_no_blob_mends_is_missing_and_then_built_again(
    tmp_path: Path, store: Store, name: str
) -> None:
    data = LARGE if name == "large" else b"hello"
    record = build(store, "x", {"out": data})
    (entry,) = record.tree.entries
    damage(store.tree_path(record.tree.digest) / "out", b"?")
    if name == "small":  # the blob of a small file is another inode
        damage(store.blob_path(entry.digest), b"?")
    with pytest.raises(MissingBlob) as caught:
        store.lay_out(record.tree)
    assert caught.value.digest == entry.digest
    assert caught.value.render() == (
        f"error[E0601]: blob `{entry.digest[:12]}` of the store is missing or damaged\n"
        f"  --> {store.blob_path(entry.digest)}\n"
        "  fix: run again: the action that makes it will be done anew"
    )
    assert caught.value.exit_code == 4
    assert store.find(key_of("x")) is None
    assert [p.name[:64] for p in (store.root / "v1" / "quarantine").iterdir()] == [entry.digest]
    with open_store(tmp_path) as other:
        assert other.find(key_of("x")) is None
    assert build(store, "x", {"out": data}) == record
    assert contents(store.lay_out(record.tree)) == {"out": data}


def _flip_each_blob(store: Store, record: Record) -> int:
    """Flip one bit in each blob in turn; count how often no wrong byte was given out."""
    good = 0
    for number, entry in enumerate(record.tree.entries):
        shutil.rmtree(store.tree_path(record.tree.digest))
        flip_bit(store.blob_path(entry.digest), 7 * number + 5)
        try:
            laid_out = contents(store.lay_out(record.tree))
        except MissingBlob as error:
            good += error.digest == entry.digest and store.find(record.key) is None
        else:
            good += laid_out == FILES
        build(store, "x", FILES)
    return good


def test_flipped_bit_of_each_blob_is_found(store: Store) -> None:
    record = build(store, "x", FILES)
    assert _flip_each_blob(store, record) == BLOBS
    assert len(list((store.root / "v1" / "quarantine").iterdir())) == BLOBS


def test_without_verification_flipped_bits_are_given_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build(store, "x", FILES)
    monkeypatch.setattr(blobs.Blobs, "holds", lambda self, path, stat, digest: True)

    def trust(data: bytes) -> str:
        by_size = {entry.size: entry.digest for entry in record.tree.entries}
        return by_size[len(data)]

    monkeypatch.setattr(blobs, "hash_bytes", trust)
    assert _flip_each_blob(store, record) == 0


@pytest.mark.parametrize("size", [0, 1, 3])
def test_truncated_blob_is_found(store: Store, size: int) -> None:
    for data in (b"hello", LARGE):
        record = build(store, len(data), {"out": data})
        (entry,) = record.tree.entries
        shutil.rmtree(store.tree_path(record.tree.digest))
        truncate(store.blob_path(entry.digest), size)
        with pytest.raises(MissingBlob):
            store.lay_out(record.tree)


def test_swapped_blobs_are_found(store: Store) -> None:
    record = build(store, "x", {"a": b"12345", "b": b"54321"})
    shutil.rmtree(store.tree_path(record.tree.digest))
    a, b = (store.blob_path(entry.digest) for entry in record.tree.entries)
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    damage(a, b_bytes)
    damage(b, a_bytes)
    with pytest.raises(MissingBlob):
        store.lay_out(record.tree)


def test_part_of_a_tree_is_laid_out_beside_it(store: Store, hashed: list[str]) -> None:
    tree = put(store, FILES)
    part = tree.part(["data/*"])
    path = store.lay_out(part)
    assert path != store.lay_out(tree)
    assert contents(path) == {name: FILES[name] for name in ("data/large.bin", "data/sub/b.txt")}
    # The large file got another hard link, which moved the ctime of the whole tree's file too.
    assert store.is_intact(tree)
    assert store.is_intact(part)
    assert hashed == []


def test_executable_file_is_laid_out_executable(store: Store) -> None:
    out = store.workspace()
    (out / "run").write_bytes(LARGE)
    (out / "small").write_bytes(b"1")
    for name in ("run", "small"):
        os.chmod(out / name, 0o755)
    tree = store.put_tree(out)
    shutil.rmtree(store.tree_path(tree.digest))
    path = store.lay_out(tree)
    assert [stat.S_IMODE((path / e.path).stat().st_mode) for e in tree.entries] == [0o555] * 2
    assert store.is_intact(tree)


def test_threads_mend_one_tree_together(store: Store) -> None:
    tree = put(store, FILES)
    damage(store.lay_out(tree) / "a.txt", b"HELLO")
    os.unlink(store.lay_out(tree).parent / tree.digest / "data" / "sub" / "b.txt")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            assert contents(store.lay_out(tree)) == FILES
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_tree_made_by_another_process_meanwhile_is_taken(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = put(store, FILES)
    shutil.rmtree(store.tree_path(tree.digest))
    real = disk.rename_into
    with Store(store.root, StatCache(tmp_path / "other")) as other:

        def be_late(source: str, target: str) -> None:
            if target == str(store.tree_path(tree.digest)):
                monkeypatch.setattr(disk, "rename_into", real)
                other.lay_out(tree)
            real(source, target)

        monkeypatch.setattr(disk, "rename_into", be_late)
        assert contents(store.lay_out(tree)) == FILES
        assert store.is_intact(tree)
