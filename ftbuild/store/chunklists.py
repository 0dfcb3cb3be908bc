"""Chunk lists: what a sender noted of a large blob, so that it need not cut it again.

To the store they are bytes. One that is lost or damaged is made anew, so none is flushed.
"""

import hashlib
import os
from contextlib import suppress

from ftbuild.digest import Digest
from ftbuild.store import disk
from ftbuild.store.layout import Layout

_HEAD = 32


def read(layout: Layout, digest: Digest) -> bytes | None:
    """Return what was kept for a blob; None if that is nothing, or damaged."""
    try:
        data = disk.read(layout.chunk_list(digest))
    except OSError:
        return None
    body = data[_HEAD:]
    return body if hashlib.sha256(body).digest() == data[:_HEAD] else None


def keep(layout: Layout, digest: Digest, body: bytes, staged: str) -> bool:
    """Keep a list, by way of a private file; False where the store takes none."""
    with suppress(OSError):
        disk.write_new(staged, hashlib.sha256(body).digest() + body)
        disk.rename_into(staged, layout.chunk_list(digest))
        return True
    return False


def drop(layout: Layout, digest: Digest) -> None:
    """Remove a list that turned out to be wrong."""
    with suppress(OSError):
        os.unlink(layout.chunk_list(digest))
