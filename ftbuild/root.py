"""Where a workspace begins. On the path of every command, so it imports no TOML parser."""

import os
import stat
from pathlib import Path

from ftbuild.errors import ManifestError, Place, Problem

FILE_NAME = "FTBUILD.toml"
LARGEST_BYTES = 4 << 20
"""Of an FTBUILD.toml; more is not read."""
_HEADERS = (b"[project]", b"[ project ]", b"project.", b"project =", b"project=")


def find_root(start: Path) -> Path:
    """Return the nearest folder from `start` upwards whose FTBUILD.toml has [project].

    Raises:
        ManifestError: there is none.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if has_project(folder / FILE_NAME):
            return folder
    what = f"there is no workspace: no {FILE_NAME} with [project] here or in a folder above"
    raise ManifestError([Problem("E0101", what, Place(str(start)), fix="ftbuild init")])


def has_project(path: Path | str) -> bool:
    """Say whether there is a FTBUILD.toml at `path` with a [project], even if it is broken."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False  # opening a pipe would wait for ever
        with open(path, "rb") as file:
            text = file.read(LARGEST_BYTES)
    except OSError:
        return False
    return any(line.lstrip(b"\xef\xbb\xbf \t").startswith(_HEADERS) for line in text.splitlines())
