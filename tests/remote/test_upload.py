"""What is sent: each object once, after a question for many at once, and little of it read."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ftbuild.remote import chunks, upload
from ftbuild.remote.folder import Folder
from remote.checkout import Checkout, checkout, objects


@pytest.fixture
def built(tmp_path: Path) -> Checkout:
    a = checkout(tmp_path / "a", "")
    a.make("final", "big")
    a.environment["FTBUILD_REMOTE"] = str(tmp_path / "remote")
    return a


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is read to be sent, and `cut` for each file that is cut."""
    found: list[str] = []
    real_reader, real_cut = upload._reader, chunks.cut

    def reader(path: str, place: int, size: int) -> object:
        read = real_reader(path, place, size)
        return lambda: (found.append(os.path.basename(path)), read())[1]

    def cut(path: str, size: int) -> Iterator[int]:
        found.append("cut")
        return real_cut(path, size)

    monkeypatch.setattr(upload, "_reader", reader)
    monkeypatch.setattr(chunks, "cut", cut)
    return found


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many objects each question was for."""
    found: list[int] = []
    real = Folder.sizes

    def sizes(self: Folder, paths: Sequence[str]) -> list[int | None]:
        found.append(len(paths))
        return real(self, paths)

    monkeypatch.setattr(Folder, "sizes", sizes)
    return found


SENT = {"clean": "sent", "big": "sent", "final": "sent"}
PRESENT = dict.fromkeys(SENT, "present")


def test_second_push_asks_for_all_and_reads_nothing(
    built: Checkout, reads: list[str], questions: list[int]
) -> None:
    assert built.push("final", "big") == SENT
    assert reads.count("cut") == 2
    del reads[:], questions[:]
    assert built.push("final", "big") == PRESENT
    assert reads == []
    there = objects(Folder(built.environment["FTBUILD_REMOTE"], "it"), built)
    num_blobs = len([name for name in there if name.startswith("cas/")])
    # What two targets share is asked for twice where both are looked at in the same moment.
    assert num_blobs <= sum(questions) < 2 * num_blobs
    assert len(questions) < 10


def test_chunk_that_is_gone_is_read_and_sent_alone(
    built: Checkout, tmp_path: Path, reads: list[str]
) -> None:
    built.push("final", "big")
    names = {p.name: p.stat().st_ino for p in (tmp_path / "remote/cas").iterdir()}
    sizes = {name: (tmp_path / "remote/cas" / name).stat().st_size for name in names}
    gone = max(sizes, key=lambda name: sizes[name])
    (tmp_path / "remote/cas" / gone).unlink()
    del reads[:]
    assert set(built.push("final", "big").values()) <= {"present", "sent"}
    assert len(reads) == 1
    found = {p.name: p.stat().st_ino for p in (tmp_path / "remote/cas").iterdir()}
    assert found.keys() == names.keys()
    assert {name for name in names if found[name] != names[name]} <= {gone}


def test_gone_manifest_is_sent_again_from_the_kept_list(built: Checkout, tmp_path: Path) -> None:
    built.push("final", "big")
    remote = tmp_path / "remote"
    shutil.copytree(remote, tmp_path / "before")
    kept = list((built.store / "v1" / "chunks").glob("*/*"))
    assert len(kept) == 2
    with built.open() as project:
        for path in kept:
            size = (built.store / "v1/blobs" / path.parent.name / path.name).stat().st_size
            found = chunks.decode(project.store.chunk_list(path.name), size)  # type: ignore[arg-type]
            assert found is not None
            (remote / "cas" / found.manifest.digest).unlink()
    built.push("final", "big")
    assert {p.name for p in remote.rglob("*")} == {p.name for p in (tmp_path / "before").rglob("*")}
    there = checkout(tmp_path / "b", str(remote))
    assert "built" not in there.make("final", "big").values()


@pytest.mark.parametrize("harm", ["flipped", "cut", "of another file"])
def test_wrong_list_is_made_anew(
    built: Checkout, tmp_path: Path, reads: list[str], harm: str
) -> None:
    built.push("final", "big")
    kept = sorted((built.store / "v1" / "chunks").glob("*/*"))
    data = kept[0].read_bytes()
    harmed = {
        "flipped": data[:40] + bytes([data[40] ^ 1]) + data[41:],
        "cut": data[:-36],
        "of another file": kept[1].read_bytes(),
    }[harm]
    kept[0].unlink()
    kept[0].write_bytes(harmed)
    del reads[:]
    built.push("final", "big")
    assert reads.count("cut") == 1
    assert sorted((built.store / "v1" / "chunks").glob("*/*"))[0].read_bytes() == data


def test_list_whose_bytes_are_others_is_dropped_and_nothing_wrong_is_sent(
    built: Checkout, tmp_path: Path
) -> None:
    """A list that fits in form and size, and lies: only hashing what is sent tells."""
    built.push("final", "big")
    with built.open() as project:
        for path in (built.store / "v1" / "chunks").glob("*/*"):
            digest = path.name
            size = (built.store / "v1/blobs" / path.parent.name / path.name).stat().st_size
            found = chunks.decode(project.store.chunk_list(digest), size)  # type: ignore[arg-type]
            assert found is not None
            lie = [blob._replace(digest="0" * 63 + str(n % 10)) for n, blob in enumerate(found[1])]
            path.unlink()
            project.store.keep_chunk_list(digest, chunks.listed(lie).encode())  # type: ignore[arg-type]
    remote = tmp_path / "other"
    built.environment["FTBUILD_REMOTE"] = str(remote)
    assert built.push("final", "big") == {"clean": "sent", "big": "lost", "final": "lost"}
    assert built.push("final", "big") == {"clean": "present", "big": "sent", "final": "sent"}
    there = checkout(tmp_path / "b", str(remote))
    assert "built" not in there.make("final", "big").values()


def test_store_that_takes_no_list_sends_all_the_same(
    built: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbuild.store import chunklists

    monkeypatch.setattr(chunklists, "keep", lambda *_: False)
    assert built.push("final", "big") == SENT
    assert built.push("final", "big") == PRESENT
    there = checkout(tmp_path / "b", str(tmp_path / "remote"))
    assert "built" not in there.make("final", "big").values()


def test_gc_drops_the_lists_of_blobs_that_are_gone(built: Checkout) -> None:
    built.push("final", "big")
    folder = built.store / "v1"
    kept = {path.name for path in (folder / "chunks").glob("*/*")}
    with built.open() as project:
        project.store.gc(grace_s=0)
    assert {path.name for path in (folder / "chunks").glob("*/*")} == kept
    (built.root / ".ftbuild" / "keys").write_text("")
    with built.open() as project:
        project.store.gc(grace_s=0, max_bytes=0)
    assert list((folder / "blobs").glob("*/*")) == list((folder / "chunks").glob("*/*")) == []
