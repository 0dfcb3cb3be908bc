"""Partial: what a fetch that was broken off has of a large file, for the next one to go on from.

It lies at `partial/<digest>` until somebody claims it, by a rename into the own folder. Nothing of
it is believed: who goes on hashes it from its first byte, and keeps what is right of it.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from ftbuild.digest import Digest
from ftbuild.store import disk
from ftbuild.store.layout import Layout

WORTH_BYTES = 8 << 20
"""A smaller file is fetched anew."""
_SUFFIX = ".part"


@dataclass(frozen=True)
class Partial:
    """The beginning of a file, verified, on a path of this process."""

    path: str
    hasher: "hashlib._Hash"
    """Has hashed it."""
    count: int
    """So many pieces are there."""


def name(path: str, digest: Digest) -> str:
    """Return what a private path becomes while a large file is received there."""
    return f"{path}-{digest}{_SUFFIX}"


def keep(layout: Layout, path: str) -> None:
    """Put a broken off file where the next fetch looks for it."""
    digest = os.path.basename(path).removesuffix(_SUFFIX).rpartition("-")[2]
    with suppress(OSError):
        disk.rename_into(path, layout.partial(Digest(digest)))


def keep_all(layout: Layout, folder: str) -> None:
    """Keep what a dead process was receiving."""
    for found in os.listdir(folder):
        if found.endswith(_SUFFIX):
            keep(layout, f"{folder}/{found}")


def claim(
    layout: Layout, digest: Digest, pieces: Iterable[tuple[Digest, int]], own: str
) -> Partial | None:
    """Take what there is of a file that consists of `pieces`; `own` names a private path."""
    path = name(own, digest)
    try:
        os.rename(layout.partial(digest), path)
        with open(path, "r+b", buffering=0) as file:
            hasher, count, size = hashlib.sha256(), 0, 0
            for piece, length in pieces:
                data = file.read(length) or b""
                if len(data) != length or hashlib.sha256(data).hexdigest() != piece:
                    break
                hasher.update(data)
                count, size = count + 1, size + length
            file.truncate(size)
    except OSError:
        return None
    return Partial(path, hasher, count)
