"""From a directory to a tree: what is kept, what is refused, whose inodes the store holds."""

import hashlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.errors import ActionError
from ftbuild.store.disk import SMALL_BYTES
from ftbuild.store.statcache import published_mtime_ns
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry, Tree
from store_kit import contents, damage, open_store, put, write

SMALL = b"small\n"
LARGE = b"large\n" * 20_000
SMALL_DIGEST = hashlib.sha256(SMALL).hexdigest()
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def _out(store: Store, files: dict[str, bytes]) -> Path:
    out = store.workspace()
    write(out, files)
    return out


def test_digest_is_of_the_list_of_paths_modes_sizes_and_digests() -> None:
    tree = Tree((Entry("a/b", "f", 6, SMALL_DIGEST), Entry("run", "x", 6, SMALL_DIGEST)))
    text = f'[["a/b","f",6,"{SMALL_DIGEST}"],["run","x",6,"{SMALL_DIGEST}"]]'
    assert tree.digest == hashlib.sha256(text.encode()).hexdigest()
    assert Tree(()).digest == hashlib.sha256(b"[]").hexdigest()
    assert tree.folders == ("", "a")
    assert tree.size == 12
    assert Tree.from_plain(tree.to_plain()) == tree


def test_part_takes_the_files_that_match() -> None:
    names = ["config.json", "data/a.arrow", "model.safetensors", "tokenizer.json"]
    tree = Tree(tuple(Entry(name, "f", 1, SMALL_DIGEST) for name in names))
    assert [e.path for e in tree.part(["*.json"]).entries] == ["config.json", "tokenizer.json"]
    assert [e.path for e in tree.part(["data/*", "tok*"]).entries] == [
        "data/a.arrow",
        "tokenizer.json",
    ]
    assert tree.part(["absent"]).entries == ()


@pytest.mark.fault("52", "a list of files that is no tree")
@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        [["a", "f", 1]],
        [["a", "f", 1, SMALL_DIGEST, 0]],
        [["/etc/passwd", "f", 1, SMALL_DIGEST]],
        [["../a", "f", 1, SMALL_DIGEST]],
        [["a/../../b", "f", 1, SMALL_DIGEST]],
        [["a//b", "f", 1, SMALL_DIGEST]],
        [["a/", "f", 1, SMALL_DIGEST]],
        [["", "f", 1, SMALL_DIGEST]],
        [["a\0b", "f", 1, SMALL_DIGEST]],
        [["\ud800", "f", 1, SMALL_DIGEST]],
        [["a", "l", 1, SMALL_DIGEST]],
        [["a", "f", -1, SMALL_DIGEST]],
        [["a", "f", True, SMALL_DIGEST]],
        [["a", "f", "1", SMALL_DIGEST]],
        [["a", "f", 1, SMALL_DIGEST.upper()]],
        [["a", "f", 1, None]],
        [[3, "f", 1, SMALL_DIGEST]],
        [["b", "f", 1, SMALL_DIGEST], ["a", "f", 1, SMALL_DIGEST]],
        [["a", "f", 1, SMALL_DIGEST], ["a", "f", 1, SMALL_DIGEST]],
        [["a", "f", 1, SMALL_DIGEST], ["a/b", "f", 1, SMALL_DIGEST]],
    ],
)
def test_list_that_is_no_tree_or_leaves_it_is_refused(plain: object) -> None:
    with pytest.raises(ValueError, match=r"tree|size|mode|path"):
        Tree.from_plain(plain)


def test_directory_becomes_blobs_and_a_laid_out_tree(store: Store) -> None:
    out = _out(store, {"b.txt": SMALL, "data/a.bin": LARGE})
    os.chmod(out / "b.txt", 0o700)
    tree = store.put_tree(out)
    assert tree.entries == (
        Entry("b.txt", "x", 6, SMALL_DIGEST),
        Entry("data/a.bin", "f", 120_000, LARGE_DIGEST),
    )
    assert not out.exists()
    assert store.blob_path(SMALL_DIGEST).read_bytes() == SMALL
    assert store.blob_path(LARGE_DIGEST).read_bytes() == LARGE
    assert store.is_intact(tree)
    path = store.lay_out(tree)
    assert path == store.root / "v1" / "trees" / tree.digest[:2] / tree.digest
    assert contents(path) == {"b.txt": SMALL, "data/a.bin": LARGE}


def test_modes_are_read_only_and_keep_x(store: Store) -> None:
    out = _out(store, {"plain": b"1", "run": b"2", "secret": b"3", "suid": b"4", "big": LARGE})
    for name, mode in [("plain", 0o666), ("run", 0o755), ("secret", 0o000), ("suid", 0o4755)]:
        os.chmod(out / name, mode)
    os.chmod(out, 0o700)
    path = store.lay_out(store.put_tree(out))
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()}
    assert modes == {
        "plain": 0o444,
        "run": 0o555,
        "secret": 0o444,
        "suid": 0o555,
        "big": 0o444,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    for blob in (store.root / "v1" / "blobs").glob("*/*"):
        assert stat.S_IMODE(blob.stat().st_mode) == 0o444


def test_mtime_follows_from_the_content(store: Store) -> None:
    tree = put(store, {"a": SMALL, "b": LARGE})
    path = store.lay_out(tree)
    assert (path / "a").stat().st_mtime_ns == published_mtime_ns(SMALL_DIGEST)
    assert (path / "b").stat().st_mtime_ns == published_mtime_ns(LARGE_DIGEST)
    assert path.stat().st_mtime_ns == published_mtime_ns(tree.digest)


def test_small_file_and_its_blob_are_two_inodes_a_large_one_is_one(store: Store) -> None:
    edge = b"e" * SMALL_BYTES
    tree = put(store, {"small": SMALL, "below": edge[1:], "edge": edge, "large": LARGE})
    path = store.lay_out(tree)
    shared = {
        entry.path: os.path.samefile(path / entry.path, store.blob_path(entry.digest))
        for entry in tree.entries
    }
    assert shared == {"small": False, "below": False, "edge": True, "large": True}


def test_same_large_file_is_kept_once(store: Store) -> None:
    first = store.lay_out(put(store, {"a": LARGE}))
    second = store.lay_out(put(store, {"b": LARGE, "c": LARGE}))
    inodes = {p.stat().st_ino for p in (first / "a", second / "b", second / "c")}
    assert len(inodes) == 1
    assert store.is_intact(put(store, {"a": LARGE}))
    assert store.is_intact(put(store, {"b": LARGE, "c": LARGE}))


def test_same_large_bytes_executable_and_not_are_two_inodes(store: Store) -> None:
    out = _out(store, {"f": LARGE, "x": LARGE})
    os.chmod(out / "x", 0o755)
    tree = store.put_tree(out)
    path = store.lay_out(tree)
    assert [entry.mode for entry in tree.entries] == ["f", "x"]
    assert stat.S_IMODE((path / "f").stat().st_mode) == 0o444
    assert stat.S_IMODE((path / "x").stat().st_mode) == 0o555
    assert store.is_intact(tree)


def test_same_tree_twice_is_one_directory(store: Store) -> None:
    files = {"a": SMALL, "b/c": LARGE}
    first = put(store, files)
    second = put(store, files)
    assert first == second
    assert store.is_intact(second)
    assert len(list((store.root / "v1" / "trees").glob("*/*"))) == 1


def test_empty_folders_are_not_part_of_a_tree(store: Store) -> None:
    out = _out(store, {"a/b/c": SMALL})
    (out / "a" / "empty" / "deeper").mkdir(parents=True)
    (out / "void").mkdir()
    tree = store.put_tree(out)
    assert [entry.path for entry in tree.entries] == ["a/b/c"]
    assert sorted(p.name for p in store.lay_out(tree).rglob("*")) == ["a", "b", "c"]
    nothing = store.put_tree(store.workspace())
    assert nothing == Tree(())
    assert list(store.lay_out(nothing).iterdir()) == []


def test_names_of_all_sorts_are_kept(store: Store) -> None:
    names = [" ", "-rf", "a\nb", "tab\t", "*", "'", '"', "\\", "é", "e\u0301", "漢字", "x" * 255]
    tree = put(store, {name: name.encode() for name in names})
    assert [entry.path for entry in tree.entries] == sorted(names)
    assert contents(store.lay_out(tree)) == {name: name.encode() for name in names}
    report("27", "an odd file name", fired=len(names), bad=0)


@pytest.mark.fault("27", "a name that is not UTF-8")
def test_name_that_is_not_utf_8_is_an_error(store: Store) -> None:
    out = store.workspace()
    (out / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    with pytest.raises(ActionError) as caught:
        store.put_tree(out)
    assert caught.value.render() == (
        "error[E0712]: the output holds a file whose name is not UTF-8: `caf\\xe9`\n"
        "  --> caf\\xe9\n"
        "  fix: write it under a name in UTF-8"
    )


@pytest.mark.fault("51", "a pipe and a socket in an output")
def test_pipe_and_socket_are_errors(store: Store) -> None:
    out = _out(store, {"a": SMALL})
    (out / "sub").mkdir()
    os.mkfifo(out / "sub" / "pipe")
    with pytest.raises(ActionError) as caught:
        store.put_tree(out)
    assert caught.value.render() == (
        "error[E0710]: the output holds something that is neither a file nor a folder: "
        "`sub/pipe`\n"
        "  --> sub/pipe\n"
        "  why: sockets, pipes and devices have no content that could be kept\n"
        "  fix: remove it before the action ends"
    )
    other = store.workspace()
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket may have 107 bytes only.
        here = os.getcwd()
        os.chdir(other)
        try:
            listener.bind("s")
        finally:
            os.chdir(here)
        with pytest.raises(ActionError, match="`s`"):
            store.put_tree(other)


@pytest.mark.fault("28", "a path that is too long to open")
@pytest.mark.parametrize("depth", [13, 40])
def test_path_that_nothing_could_open_is_an_error(store: Store, depth: int) -> None:
    out = store.workspace()
    folder = os.open(out, os.O_RDONLY)
    for _ in range(depth):  # step by step: of a longer path no call would take the whole
        os.mkdir("d" * 250, dir_fd=folder)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    with pytest.raises(ActionError) as caught:
        store.put_tree(out)
    assert caught.value.render() == (
        "error[E0714]: the output holds a path that is longer than 3,072 bytes: "
        f"`{'d' * 40}…`\n"
        "  why: with the folder of the store before it, no program could open it\n"
        "  fix: write it under a shorter path"
    )


@pytest.mark.fault("28", "a path of 3,012 bytes")
def test_path_that_is_nearly_too_long_is_kept(store: Store) -> None:
    path = "/".join(["d" * 250] * 12 + ["f"])  # 12 x 251 + 1 bytes
    tree = put(store, {path: b"1"})
    assert contents(store.lay_out(tree)) == {path: b"1"}


def test_links_that_stay_inside_become_copies(store: Store) -> None:
    out = _out(store, {"v1/weights": LARGE, "v1/deep/note": SMALL})
    os.symlink("v1", out / "latest")
    os.symlink("../v1/weights", out / "v1" / "again")
    os.symlink("latest/deep/note", out / "note")
    tree = store.put_tree(out)
    assert contents(store.lay_out(tree)) == {
        "latest/again": LARGE,
        "latest/deep/note": SMALL,
        "latest/weights": LARGE,
        "note": SMALL,
        "v1/again": LARGE,
        "v1/deep/note": SMALL,
        "v1/weights": LARGE,
    }
    assert not any(p.is_symlink() for p in store.lay_out(tree).rglob("*"))


@pytest.mark.fault("51", "a link out of an output")
@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/etc/passwd", "it points to the absolute path `/etc/passwd`"),
        ("../../../../../../../etc/passwd", "it points out of the output directory"),
        ("../outside", "it points out of the output directory"),
        ("absent", "it points to nothing"),
        ("link", "it points to nothing"),
        (".", "it points to a folder that it is in"),
        ("../out/sub/..", "it points to a folder that it is in"),
    ],
)
def test_link_that_cannot_be_kept_is_an_error(store: Store, target: str, why: str) -> None:
    parent = store.workspace()
    write(parent, {"outside": b"secret", "out/sub/a": SMALL})
    os.symlink(target, parent / "out" / "link")
    with pytest.raises(ActionError) as caught:
        store.put_tree(parent / "out")
    assert caught.value.render() == (
        "error[E0711]: the output holds a symbolic link that cannot be kept: `link`\n"
        "  --> link\n"
        f"  why: {why}\n"
        "  fix: write a file in its place, or a relative link to another file of the output"
    )


@pytest.mark.fault("51", "links in a circle")
def test_links_in_a_circle_through_folders_are_an_error(store: Store) -> None:
    out = _out(store, {"a/1": SMALL, "b/2": SMALL})
    os.symlink("../b", out / "a" / "to_b")
    os.symlink("../a", out / "b" / "to_a")
    with pytest.raises(ActionError, match="cannot be kept"):
        store.put_tree(out)


@pytest.mark.fault("51", "a link out of an output")
def test_link_in_a_copied_folder_cannot_leave_the_output(store: Store) -> None:
    parent = store.workspace()
    write(parent, {"outside": b"secret", "out/real/a": SMALL})
    os.symlink("../../outside", parent / "out" / "real" / "bad")
    os.symlink("real", parent / "out" / "copy")
    with pytest.raises(ActionError, match="cannot be kept"):
        store.put_tree(parent / "out")


@pytest.mark.fault("51", "a hard link to a file of somebody else")
@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_hard_link_to_a_file_of_somebody_else_is_copied_first(
    store: Store, tmp_path: Path, data: bytes
) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(data)
    out = store.workspace()
    os.link(mine, out / "a")
    tree = store.put_tree(out)
    assert not os.path.samefile(store.lay_out(tree) / "a", mine)
    mine.write_bytes(b"changed later")
    assert contents(store.lay_out(tree)) == {"a": data}
    assert stat.S_IMODE(mine.stat().st_mode) == 0o644


def test_adopted_large_file_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment = put(store, {"shard": LARGE})
    out = store.workspace()
    os.link(store.blob_path(LARGE_DIGEST), out / "data")

    def refuse(path: str) -> str:
        raise AssertionError(f"{path} was read")

    for module in ("blobs", "ingest"):
        monkeypatch.setattr(f"ftbuild.store.{module}.hash_file", refuse)
    tree = store.put_tree(out, adopted={"data": LARGE_DIGEST})
    assert tree.entries == (Entry("data", "f", 120_000, LARGE_DIGEST),)
    # The new link moved the ctime of the one inode; both trees are still vouched for.
    assert store.is_intact(tree)
    assert store.is_intact(fragment)


def test_adopted_small_file_is_a_copy(store: Store) -> None:
    put(store, {"a": SMALL})
    out = store.workspace()
    os.link(store.blob_path(SMALL_DIGEST), out / "b")
    tree = store.put_tree(out, adopted={"b": SMALL_DIGEST})
    assert tree.entries == (Entry("b", "f", 6, SMALL_DIGEST),)
    path = store.lay_out(tree)
    assert not os.path.samefile(path / "b", store.blob_path(SMALL_DIGEST))
    damage(path / "b", b"SMALL\n")
    assert contents(store.lay_out(tree)) == {"b": SMALL}


@pytest.mark.parametrize("how", ["another file", "written through", "another digest"])
def test_adopted_file_that_is_not_what_it_claims_is_hashed(store: Store, how: str) -> None:
    put(store, {"a": LARGE, "b": LARGE[:-1] + b"!"})
    out = store.workspace()
    changed = b"LARGE\n" + LARGE[6:]
    claimed = LARGE_DIGEST
    if how == "another file":
        (out / "c").write_bytes(changed)
    else:
        os.link(store.blob_path(LARGE_DIGEST), out / "c")
        if how == "written through":
            damage(out / "c", changed)
        else:
            claimed, changed = hashlib.sha256(LARGE[:-1] + b"!").hexdigest(), LARGE
    tree = store.put_tree(out, adopted={"c": claimed})
    assert tree.entries[0].digest == hashlib.sha256(changed).hexdigest()
    assert contents(store.lay_out(tree)) == {"c": changed}


def test_file_without_hard_links_left_is_copied(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, {"a": LARGE})

    def refuse(source: str, target: str, follow_symlinks: bool = True) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", refuse)
    again = put(store, {"b": LARGE})
    assert contents(store.lay_out(again)) == {"b": LARGE}
    new = LARGE + b"new"
    other = put(store, {"c": new})
    assert store.blob_path(hashlib.sha256(new).hexdigest()).read_bytes() == new
    assert store.is_intact(other)
    part = Tree((Entry("d", "f", len(LARGE), LARGE_DIGEST),))
    assert contents(store.lay_out(part)) == {"d": LARGE}
    assert store.is_intact(part)


def test_several_large_files_have_the_digests_of_their_bytes(store: Store, tmp_path: Path) -> None:
    files = {name: os.urandom((16 << 20) + size) for size, name in enumerate("abcd")}
    out = _out(store, {**files, "small": SMALL})
    (out / "b").chmod(0)  # nobody may read it yet
    os.link(out / "c", tmp_path / "another name")
    tree = store.put_tree(out)
    digests = {entry.path: entry.digest for entry in tree.entries}
    assert digests.pop("small") == SMALL_DIGEST
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert contents(store.lay_out(tree)) == {**files, "small": SMALL}


@pytest.mark.parametrize("more", [{}, {"other": b"x" * (16 << 20)}])
def test_output_that_grows_while_it_is_put_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, more: dict[str, bytes]
) -> None:
    from ftbuild.store import ingest

    out = _out(store, {"log": LARGE if not more else b"l" * (16 << 20), **more})
    real = ingest.hash_file

    def hash_and_write(path: str) -> str:
        digest = real(path)
        if path.endswith("log"):
            with open(path, "ab") as file:
                file.write(b"late")
        return digest

    monkeypatch.setattr(ingest, "hash_file", hash_and_write)
    with pytest.raises(ActionError) as caught:
        store.put_tree(out)
    assert caught.value.render() == (
        "error[E0713]: the output is still being written to: `log`\n"
        "  --> log\n"
        "  why: the file changed while it was hashed\n"
        "  fix: end all processes that the action starts before it ends itself"
    )


def test_single_bytes_and_files_become_blobs(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    assert store.put_bytes(SMALL) == SMALL_DIGEST
    assert store.put_bytes(SMALL) == SMALL_DIGEST
    assert store.put_file(source) == LARGE_DIGEST
    assert store.put_file(source) == LARGE_DIGEST
    assert store.has_blob(SMALL_DIGEST)
    assert store.blob_path(LARGE_DIGEST).read_bytes() == LARGE
    source.write_bytes(b"changed")
    assert store.blob_path(LARGE_DIGEST).read_bytes() == LARGE
    assert not store.has_blob("0" * 64)
    with pytest.raises(FileNotFoundError):
        store.put_file(tmp_path / "absent")


def test_damaged_blob_is_replaced_by_the_next_put(store: Store) -> None:
    store.put_bytes(SMALL)
    large = put(store, {"a": LARGE})
    damage(store.blob_path(SMALL_DIGEST), b"SMALL\n")
    damage(store.blob_path(LARGE_DIGEST), b"LARGE\n")
    store.put_bytes(SMALL)
    assert put(store, {"a": LARGE}) == large
    assert store.blob_path(SMALL_DIGEST).read_bytes() == SMALL
    assert store.blob_path(LARGE_DIGEST).read_bytes() == LARGE
    assert contents(store.lay_out(large)) == {"a": LARGE}
