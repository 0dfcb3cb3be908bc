"""What the tests of the store share: outputs of made-up actions, and a look at all objects."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ftbuild.digest import Digest, hash_value
from ftbuild.store.actions import Record
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree

Files = Mapping[str, bytes]


def open_store(directory: Path) -> Store:
    return Store(directory / "store", StatCache(directory / "statcache"))


def key_of(name: object) -> Digest:
    return hash_value(["key", name])


def write(directory: Path, files: Files) -> None:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def put(store: Store, files: Files) -> Tree:
    out = store.workspace()
    write(out, files)
    return store.put_tree(out)


def record_of(name: object, tree: Tree, value: object = None) -> Record:
    return Record(key_of(name), tree, value, {"rule": "toy", "name": str(name)}, {"seconds": 1.5})


def build(store: Store, name: object, files: Files) -> Record:
    record = record_of(name, put(store, files))
    store.publish(record)
    return record


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def damage(path: Path, data: bytes) -> None:
    """Write into a read-only file of the store in place, as a broken rule or disk would."""
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(data)


def truncate(path: Path, size: int) -> None:
    """Cut a read-only file of the store short."""
    os.chmod(path, 0o644)
    os.truncate(path, size)


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    damage(path, bytes(data))


def corrupt_blobs(root: Path) -> list[str]:
    """Return the names of blobs whose bytes have another digest; computed here, by hashlib."""
    return [
        path.name
        for path in (root / "v1" / "blobs").glob("*/*")
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name
    ]


def records_without_bytes(root: Path) -> list[str]:
    """Return the keys of records that cannot be read or whose blobs are not all intact."""
    broken = []
    for path in (root / "v1" / "actions").glob("*/*"):
        try:
            for _, _, size, digest in json.loads(path.read_bytes())["tree"]:
                data = (root / "v1" / "blobs" / digest[:2] / digest).read_bytes()
                assert len(data) == size
                assert hashlib.sha256(data).hexdigest() == digest
        except (OSError, ValueError, KeyError, AssertionError):
            broken.append(path.name.removesuffix(".json"))
    return broken
