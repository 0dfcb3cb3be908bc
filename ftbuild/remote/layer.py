"""Layers: the places besides the local store where a result may be, in the order they are asked.

A layer is a remote store (`getting.py`), or another store of this format, such as a user's own
beside the project's or one on a shared disk: that one is only read.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ftbuild.digest import Digest
from ftbuild.remote.guard import Tell
from ftbuild.remote.result import Result
from ftbuild.store.actions import DamagedRecord, Record, decode
from ftbuild.store.layout import FORMAT, Layout
from ftbuild.store.store import Store
from ftbuild.store.trees import Entry

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Found:
    """A record that a layer has."""

    record: Record
    result: Result
    """Where the layer has the bytes."""


class Layer(Protocol):
    """One place to ask. Nothing that it does or says can do harm: its trouble is a miss."""

    name: str

    def find(self, key: Digest) -> Found | None:
        """Return the record of an action."""

    def fetch(self, record: Record, entries: Sequence[Entry], store: Store) -> set[Digest]:
        """Bring files of a record into `store`, verified; return the digests of those that came.

        Raises:
            MachineError: `store` cannot be written.
        """

    def close(self) -> None:
        """Let go of what is held open."""


class StoreLayer:
    """Another store of ftbuild's own format, on a disk that this machine reads."""

    def __init__(self, root: str, tell: Tell) -> None:
        self.name = root
        self._layout = Layout(f"{root}/v{FORMAT}")
        self._tell = tell

    def find(self, key: Digest) -> Found | None:
        """Return the record of an action whose files are all there."""
        try:
            data = Path(self._layout.action(key)).read_bytes()
            record = decode(data, key)
            sizes = {e.digest: os.stat(self._layout.blob(e.digest)).st_size for e in _files(record)}
        except (OSError, DamagedRecord):
            return None
        if any(sizes[entry.digest] != entry.size for entry in _files(record)):
            return None
        return Found(record, Result(data))

    def fetch(self, record: Record, entries: Sequence[Entry], store: Store) -> set[Digest]:
        """Copy files into `store`."""
        came = set()
        for entry in entries:
            try:
                with open(self._layout.blob(entry.digest), "rb", buffering=0) as file:
                    if store.receive(entry.digest, iter(lambda: file.read(_BLOCK_BYTES), b"")):
                        came.add(entry.digest)
                    else:
                        self._tell(f"the store `{self.name}` has a damaged blob, which is not used")
            except FileNotFoundError:
                continue
        return came

    def close(self) -> None:
        """Nothing is held open."""


def is_store(path: str) -> bool:
    """Say whether a folder is a store of this format, and not a remote store in a folder."""
    return os.path.isfile(f"{path}/v{FORMAT}/format")


def _files(record: Record) -> Iterator[Entry]:
    return (entry for entry in record.tree.entries if entry.size)
