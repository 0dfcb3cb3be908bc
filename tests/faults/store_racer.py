"""One of several processes that do the same actions at once: `store_racer.py DIRECTORY MODE`.

MODE is `locks`, `no locks` (they succeed for everybody, as on some network file systems) or
`in place` (no locks, and blobs are written where readers see them). At the end it prints how
many actions it has run itself.
"""

import os
import sys
import time
from pathlib import Path

from ftbuild.store import blobs, leases
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.store import Store
from store_kit import contents, key_of, open_store, put, record_of

ROUNDS = 40


def files_of(number: int) -> dict[str, bytes]:
    return {"small": b"%d" % number, "middle": b"%d " % number * 9_000, "same": b"s" * 70_000}


def _put_in_place(self: blobs.Blobs, data: bytes) -> str:
    digest = blobs.hash_bytes(data)
    path = self._layout.blob(digest)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        time.sleep(0.002)
        file.write(data[len(data) // 2 :])
    return digest


def do(store: Store, number: int) -> int:
    """Do one action as the engine does; return 1 if it was run here."""
    with store.lease(key_of(number)):
        record = store.find(key_of(number))
        if record is not None:
            assert contents(store.lay_out(record.tree)) == files_of(number)
            return 0
        record = record_of(number, put(store, files_of(number)))
        store.publish(record)
    assert contents(store.lay_out(record.tree)) == files_of(number)
    return 1


def main(directory: Path, mode: str) -> int:
    if mode != "locks":
        leases._set = lambda descriptor, offset, kind: None
    if mode == "in place":
        blobs.Blobs.put_bytes = _put_in_place  # type: ignore[method-assign,assignment]
    num_run = 0
    with open_store(directory) as store:
        os.write(1, b"ready\n")
        sys.stdin.readline()
        for number in range(ROUNDS):
            try:
                num_run += do(store, number)
            except MissingBlob:
                assert mode == "in place"
        os.write(1, b"%d\n" % num_run)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
