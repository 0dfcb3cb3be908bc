"""Siblings: which fragments one function made of different pieces, all else in their keys equal.

A file of keys, one a line, the latest last. It is a hint and no more: whoever follows it finds
the record, verified, and looks into its document; what is lost or damaged is only not found.
"""

import os
from collections.abc import Iterable
from contextlib import suppress

from ftbuild.digest import Digest, is_digest
from ftbuild.store import disk
from ftbuild.store.layout import Layout

MAX_KEYS = 1 << 17
"""A file of more loses its older half; 8 MiB."""
_LINE_BYTES = 65


def read(layout: Layout, family: Digest) -> list[Digest]:
    """Return the keys that were noted, the latest first, each once."""
    try:
        lines = disk.read(layout.siblings(family)).decode("ascii", "replace").split("\n")
    except OSError:
        return []
    return [Digest(line) for line in dict.fromkeys(reversed(lines)) if is_digest(line)]


def note(layout: Layout, family: Digest, keys: Iterable[Digest], staged: str) -> None:
    """Add keys, by one write each time; `staged` names a private file."""
    path = layout.siblings(family)
    data = "".join(f"{key}\n" for key in keys).encode()
    with suppress(OSError):  # it only saves work
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, data)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size > MAX_KEYS * _LINE_BYTES:
            kept = read(layout, family)[: MAX_KEYS // 2]
            disk.write_new(staged, "".join(f"{key}\n" for key in reversed(kept)).encode())
            disk.rename_into(staged, path)
