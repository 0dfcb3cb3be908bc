"""Roots: which workspaces use a store, so that gc spares what they hold.

`roots/<name>` holds the path of a workspace's state folder; `keys` in that folder lists the
action keys in use, one a line. The engine keeps that list; the store only reads it.
"""

import os
from pathlib import Path

from ftbuild.digest import Digest, hash_bytes, is_digest
from ftbuild.errors import MachineError, Place
from ftbuild.store import disk
from ftbuild.store.layout import Layout


def register(layout: Layout, state: Path) -> None:
    """Say that the workspace with this state folder uses the store.

    A list of keys that does not exist is made, empty: from then on one that is missing
    while its folder is there counts as unreadable.
    """
    folder = os.path.abspath(state)
    named = os.fsencode(folder)
    path = f"{layout.folder('roots')}/{_name_of(named)}"
    if os.path.exists(path) and disk.read(path) == named:
        return
    keys = f"{folder}/keys"
    if not os.path.exists(keys):
        os.makedirs(folder, exist_ok=True)
        with open(keys, "ab"):
            pass
    staged = f"{layout.folder('tmp')}/root-{os.getpid()}-{os.urandom(4).hex()}"
    disk.write_durable(path, named, staged)


def _name_of(named: bytes) -> str:
    return hash_bytes(named)[:32]


def keys_in_use(layout: Layout, *, forget_vanished: bool) -> set[Digest]:
    """Return all keys that registered workspaces name.

    A workspace whose folder is gone is forgotten.

    Raises:
        MachineError: a list is there but cannot be read, so nothing may be removed.
    """
    keys: set[Digest] = set()
    for name in sorted(os.listdir(layout.folder("roots"))):
        path = f"{layout.folder('roots')}/{name}"
        named = disk.read(path)
        if name != _name_of(named):
            raise _unreadable(path, "it does not hold the path that it is named after")
        folder = os.fsdecode(named)
        try:
            os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            if forget_vanished:
                os.unlink(path)
            continue
        except OSError as error:
            raise _unreadable(folder, error.strerror or str(error)) from error
        keys |= _read_keys(f"{folder}/keys")
    return keys


def _read_keys(path: str) -> set[Digest]:
    try:
        lines = disk.read(path).decode("ascii").split()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable(path, "it holds more than keys") from error
    if not all(is_digest(line) for line in lines):
        raise _unreadable(path, "it holds more than keys")
    return {Digest(line) for line in lines}


def _unreadable(path: str, why: str) -> MachineError:
    return MachineError(
        "gc cannot tell what a workspace uses: its list of keys cannot be read",
        code="E0657",
        where=Place(path),
        why=why,
        fix="make the file readable, or run `ftbuild make` in that workspace, "
        "or remove the workspace's `.ftbuild`",
    )
