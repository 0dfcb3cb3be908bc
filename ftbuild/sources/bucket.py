"""`s3://BUCKET/PATH`, `gs://…` and what else fsspec reaches: files by the digests of the lock.

A path may be a pattern; its files are then sorted by path.
"""

from collections.abc import Callable
from glob import has_magic
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest
from ftbuild.errors import MachineError
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources.local import endings

MAX_BYTES = 1 << 40
_BLOCK_BYTES = 1 << 20

Keep = Callable[[Path], Digest]


def fetch(spec: str, directory: Path, keep: Keep) -> Pin:
    """Download the files of `spec` into `directory`, keep them, and return what they are.

    Raises:
        MachineError: E0461, fsspec or its part for this address is missing, or nothing is there.
    """
    try:
        files = [_keep_file(*found, directory / "download", keep) for found in _files(spec)]
    except (OSError, ValueError, ImportError) as e:
        raise MachineError(
            f"`{spec}` cannot be had",
            code="E0461",
            why=(str(e) or type(e).__name__).splitlines()[0],
            fix="check the address and your credentials; "
            "fsspec needs a library for each store: pip install fsspec s3fs gcsfs adlfs",
        ) from e
    return Pin(tuple(files))


def _files(spec: str) -> list[tuple[str, Any, str]]:
    """Return name within the source, file system and path of each file."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(spec)
    if not has_magic(path):
        return [("file" + endings(path), system, path)]
    paths = sorted(found for found in system.glob(path) if not system.isdir(found))
    if not paths:
        raise ValueError("the pattern matches no file")
    return [(f"{number:05d}{endings(found)}", system, found) for number, found in enumerate(paths)]


def _keep_file(name: str, system: Any, path: str, target: Path, keep: Keep) -> PinnedFile:
    size = 0
    with system.open(path, "rb") as remote, target.open("wb") as file:
        while block := remote.read(_BLOCK_BYTES):
            size += len(block)
            if size > MAX_BYTES:
                raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes")
            file.write(block)
    return PinnedFile(name, size, keep(target))
