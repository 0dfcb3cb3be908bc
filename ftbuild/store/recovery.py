"""Recovery: what processes that died had pending is finished or dropped when a store opens.

A kill leaves records in pending/ whose bytes are all there, a power cut such whose bytes are
not. Which it was is not known, so each blob is hashed in full; a record that holds is made
durable and published, any other dropped. Locks and pids only tell where to look: taking over
the records of a process that still lives does no harm.

What a process of this boot left on purpose waits a minute: others find it in pending/ meanwhile,
and it is cheap to make durable once the kernel has written it.
"""

import os
import time
from contextlib import suppress

from ftbuild.digest import Digest, hash_file
from ftbuild.store import disk, partial
from ftbuild.store.actions import DamagedRecord, Record, decode
from ftbuild.store.durability import Flusher
from ftbuild.store.layout import Layout
from ftbuild.store.session import is_abandoned, is_dead, is_settling


def recover(layout: Layout) -> None:
    """Publish the intact records of dead processes and remove their folders.

    A store that may only be read is left as it is.
    """
    for name in _names(layout.folder("pending")):
        with suppress(OSError):
            if is_dead(layout, name) and not is_settling(layout, name):
                _take_over(layout, f"{layout.folder('pending')}/{name}")
                if is_abandoned(layout, name):
                    os.rmdir(f"{layout.folder('pending')}/{name}")
    for name in _names(layout.folder("tmp")):
        with suppress(OSError):
            if _is_left_over(layout, name):
                _clear(layout, f"{layout.folder('tmp')}/{name}")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_left_over(layout: Layout, name: str) -> bool:
    if os.path.isdir(f"{layout.folder('pending')}/{name}"):
        return False  # it says whose records those are
    if os.path.isdir(f"{layout.folder('tmp')}/{name}"):
        return is_abandoned(layout, name)
    return time.time() - os.lstat(f"{layout.folder('tmp')}/{name}").st_mtime > 3600


def _clear(layout: Layout, path: str) -> None:
    if os.path.isdir(path):
        partial.keep_all(layout, path)
    disk.remove(path)


def _take_over(layout: Layout, folder: str) -> None:
    intact: dict[str, Record] = {}
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        record = _read(path, Digest(name.removesuffix(".json")))
        if (
            record is not None
            and _is_newer(path, layout.action(record.key))
            and _is_whole(layout, record)
        ):
            intact[path] = record
        else:
            os.unlink(path)
    if intact:
        flusher = Flusher(layout.base)
        try:
            _publish(layout, folder, intact, flusher)
        finally:
            flusher.close()


def _publish(layout: Layout, folder: str, intact: dict[str, Record], flusher: Flusher) -> None:
    blobs = {layout.blob(e.digest) for record in intact.values() for e in record.tree.entries}
    folders = {os.path.dirname(path) for path in blobs}
    try:
        flusher.flush([*blobs, *intact], {*folders, layout.folder("blobs"), folder})
    except OSError:
        for path in intact:
            os.unlink(path)
        raise
    for path, record in intact.items():
        with suppress(FileNotFoundError):
            disk.rename_into(path, layout.action(record.key))
    actions = {os.path.dirname(layout.action(record.key)) for record in intact.values()}
    flusher.flush((), {*actions, layout.folder("actions")})


def _read(path: str, key: Digest) -> Record | None:
    try:
        return decode(disk.read(path), key)
    except (OSError, DamagedRecord):
        return None


def _is_newer(path: str, other: str) -> bool:
    try:
        return os.stat(path).st_mtime_ns >= os.stat(other).st_mtime_ns
    except FileNotFoundError:
        return True


def _is_whole(layout: Layout, record: Record) -> bool:
    try:
        return all(hash_file(layout.blob(e.digest)) == e.digest for e in record.tree.entries)
    except OSError:
        return False
