"""docs/store-format.md shows a real store: this makes it and compares."""

import json
import re
from pathlib import Path

from ftbuild.digest import hash_value
from ftbuild.store.actions import Record
from store_kit import open_store, put

DOCS = Path(__file__).parents[2] / "docs" / "store-format.md"


def _example(directory: Path) -> Record:
    document = {
        "format": 1,
        "rule": "command",
        "version": 1,
        "params": {"run": "echo hello > $out/hello.txt"},
        "inputs": {},
        "sources": {},
        "variables": {},
        "libraries": {},
    }
    with open_store(directory) as store:
        tree = put(store, {"hello.txt": b"hello\n"})
        record = Record(hash_value(document), tree, None, document, {"seconds": 0.1})
        store.publish(record)
    return record


def test_listing_is_that_of_a_real_store(tmp_path: Path) -> None:
    _example(tmp_path)
    files = [p for p in (tmp_path / "store").rglob("*") if p.is_file()]
    listed = "\n".join(sorted(p.relative_to(tmp_path).as_posix() for p in files))
    assert f"```\n{listed}\n```" in DOCS.read_text()


def test_shown_record_and_tree_are_the_bytes_of_a_real_one(tmp_path: Path) -> None:
    record = _example(tmp_path)
    (path,) = (tmp_path / "store" / "v1" / "actions").glob("*/*.json")
    assert f"```json\n{path.read_text()}\n```" in DOCS.read_text()
    tree = json.dumps(record.tree.to_plain(), separators=(",", ":"))
    assert f"```json\n{tree}\n```" in DOCS.read_text()


def test_every_folder_of_a_store_has_its_section(tmp_path: Path) -> None:
    _example(tmp_path)
    sections = set(re.findall(r"^### `([a-z]+)", DOCS.read_text(), flags=re.MULTILINE))
    # `toolchains` is made with the first one.
    assert sections == {"toolchains", *(p.name for p in (tmp_path / "store" / "v1").iterdir())}
