"""Chunks: boundaries follow from content, so what two files share is stored and sent once."""

import hashlib
import os
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ftbuild.digest import hash_bytes
from ftbuild.remote import chunks
from ftbuild.remote.result import Blob, encode_manifest


def noise(size: int, seed: int | None = None) -> bytes:
    return os.urandom(size) if seed is None else random.Random(seed).randbytes(size)


def pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    place = 0
    for size in sizes:
        yield data[place : place + size]
        place += size


def digests(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    cut = chunks.cut(str(path), len(data))
    return [hashlib.sha256(chunk).hexdigest() for chunk in pieces(data, cut)]


@pytest.mark.parametrize("size", [1 << 20, 3_000_001, 70 << 20])
def test_chunks_are_the_file_and_keep_their_bounds(tmp_path: Path, size: int) -> None:
    data = noise(size)
    (tmp_path / "f").write_bytes(data)
    found = list(chunks.cut(str(tmp_path / "f"), size))
    assert sum(found) == size
    average = chunks.average(size)
    assert all(average // 4 <= size <= 4 * average for size in found[:-1])
    assert size / average / 3 < len(found) < size / average * 3


def test_boundaries_stay_what_they_were(tmp_path: Path) -> None:
    """Other boundaries would send and store everything once more after an upgrade."""
    (tmp_path / "f").write_bytes(noise(2 << 20, seed=1))
    sizes = list(chunks.cut(str(tmp_path / "f"), 2 << 20))
    assert sizes[:6] == PINNED


PINNED = [33258, 78308, 80973, 39403, 28737, 67810]


@pytest.mark.parametrize("how", ["changed", "inserted", "removed", "appended"])
def test_edit_changes_the_chunks_it_touches(tmp_path: Path, how: str) -> None:
    data = noise(8 << 20, seed=2)
    middle = 4 << 20
    edited = {
        "changed": data[:middle] + b"x" * 100 + data[middle + 100 :],
        "inserted": data[:middle] + b"x" * 100 + data[middle:],
        "removed": data[:middle] + data[middle + 100 :],
        "appended": data + b"x" * 100,
    }[how]
    before, after = set(digests(tmp_path / "a", data)), digests(tmp_path / "b", edited)
    assert 0 < len([digest for digest in after if digest not in before]) <= 3


def test_cutting_holds_a_few_chunks_in_memory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(noise(128 << 20))
    tracemalloc.start()
    for _ in chunks.cut(str(tmp_path / "f"), 128 << 20):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20


def test_list_of_chunks_is_kept_in_36_bytes_each() -> None:
    blobs = [Blob(hash_bytes(b"%d" % n), 70_000 + n) for n in range(3)]
    found = chunks.listed(blobs)
    message = encode_manifest(blobs)
    assert found.manifest == Blob(hash_bytes(message), len(message))
    assert found.message() == message
    data = found.encode()
    assert data[36:72] == bytes.fromhex(blobs[0].digest) + (70_000).to_bytes(4, "little")
    assert (len(data), chunks.decode(data, 210_003)) == (144, found)


@pytest.mark.parametrize(("data", "size"), [(None, 0), (b"", 0), (bytes(35), 0), (bytes(36), 1)])
def test_list_that_is_none_is_not_used(data: bytes | None, size: int) -> None:
    assert chunks.decode(data, size) is None
