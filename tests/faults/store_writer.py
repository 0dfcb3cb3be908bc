"""A small build for the fault tests: `store_writer.py DIRECTORY [VARIANT]`.

Three actions, each done unless the store has it; a line says `found N` or `built N` once that
is so. The variants are broken on purpose: a test that stays green with one of them is worthless.
`fetched` is not broken: it publishes as a build does what it fetched.
"""

import os
import sys
from collections.abc import Collection
from pathlib import Path

from ftbuild.errors import FtbuildError
from ftbuild.store import blobs, disk, durability, journal, lookup
from ftbuild.store.actions import Record, encode
from ftbuild.store.store import Store
from store_kit import contents, key_of, open_store, put, record_of

NUM_ACTIONS = 3


def files_of(number: int) -> dict[str, bytes]:
    """The output of an action: its own small and large file, and one that all have."""
    return {
        "answer.txt": b"answer %d\n" % number,
        "data/weights.bin": b"%d" % number * 70_000,
        "data/all.txt": b"the same in all\n",
    }


def break_store(variant: str) -> None:
    """Make the store wrong in one way."""
    if variant == "in place":
        blobs.Blobs.put_bytes = _put_in_place  # type: ignore[method-assign]
    elif variant == "record first":
        journal.Journal.publish = _publish_nothing  # type: ignore[method-assign]
    elif variant == "no look at sizes":
        lookup.Lookup.has_bytes = lambda *_: True  # type: ignore[method-assign]
    elif variant == "flush only records":
        durability.Flusher.flush = _flush_records_only  # type: ignore[method-assign]


def _put_in_place(self: blobs.Blobs, data: bytes) -> str:
    digest = blobs.hash_bytes(data)
    path = self._layout.blob(digest)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    half = len(data) // 2
    with open(path, "wb", buffering=0) as file:
        file.write(data[:half])
        file.write(data[half:])
    return digest


def _publish_nothing(self: journal.Journal, record: Record) -> None:
    return


def _flush_records_only(
    self: durability.Flusher, files: Collection[str], folders: Collection[str]
) -> None:
    for path in (*files, *folders):
        if path.endswith(".json") or "/actions" in path:
            disk.sync(path)


def _record_first(store: Store, number: int) -> None:
    """Write the record of an action before its bytes are anywhere."""
    with open_store(store.root.parent / "aside") as aside:
        record = record_of(number, put(aside, files_of(number)))
    target = store._layout.action(record.key)
    staged = store._fresh()
    disk.write_new(staged, encode(record))
    disk.rename_into(staged, target)


def _make_durable(store: Store, number: int, variant: str) -> None:
    if variant in ("flush each", "flush only records"):
        store.flush()
    elif variant == "sync pending" and store._session is not None:
        # Not broken: a disk may write what it likes before it is asked to.
        disk.sync(f"{store._session.pending}/{key_of(number)}.json")


def main(directory: Path, variant: str) -> int:
    break_store(variant)
    # On a slow day a flush by the clock would shift the numbers of all later calls.
    journal._INTERVAL_S = 3600.0
    with open_store(directory) as store:
        for number in range(NUM_ACTIONS):
            record = store.find(key_of(number))
            if record is None:
                if variant == "record first":
                    _record_first(store, number)
                record = record_of(number, put(store, files_of(number)))
                (store.publish_fetched if variant == "fetched" else store.publish)(record)
                _make_durable(store, number, variant)
                os.write(1, b"built %d\n" % number)
            else:
                os.write(1, b"found %d\n" % number)
            assert contents(store.lay_out(record.tree)) == files_of(number)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
    except FtbuildError as error:
        os.write(2, error.render().encode())
        os._exit(error.exit_code)
