"""`s3://BUCKET/PATH`, `gs://…` and what else fsspec reaches: files by the digests of the lock.

A path may be a pattern; its files are then sorted by path. The big clouds are reached by fsspec's
own library for each, where that is installed, else by obstore, which remote stores use too.
"""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from glob import has_magic
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest
from ftbuild.errors import MachineError
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources.local import endings

MAX_BYTES = 1 << 40
_BLOCK_BYTES = 1 << 20
_TIMEOUTS = {"connect_timeout": "5s", "timeout": "60s"}
_RETRY: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
_LOOPBACK = ("http://localhost", "http://127.0.0.1", "http://[::1]")
_ADDRESS = "check the address and your credentials"
_LIBRARIES = "pip install 'ftbuild[remote,fsspec]', or fsspec and its library for the address"
_RIGHTS = "give credentials that may read it, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

Keep = Callable[[Path], Digest]


def fetch(spec: str, directory: Path, keep: Keep) -> Pin:
    """Download the files of `spec` into `directory`, keep them, and return what they are.

    Raises:
        MachineError: E0461, a library for this address is missing, nothing is there, or it may
            not be read.
    """
    try:
        files = [_keep_file(*found, directory / "download", keep) for found in _files(spec)]
    except Exception as error:  # each library has errors of its own
        if isinstance(error, MachineError):
            raise
        why, fix = _explained(error)
        raise MachineError(f"`{spec}` cannot be had", code="E0461", why=why, fix=fix) from error
    return Pin(tuple(files))


def _files(spec: str) -> list[tuple[str, Any, str]]:
    """Return name within the source, file system and path of each file."""
    system, path = _system_of(spec)
    if not has_magic(path):
        system.info(path)
        return [("file" + endings(path), system, path)]
    paths = sorted(found for found in system.glob(path) if not system.isdir(found))
    if not paths:
        raise FileNotFoundError("the pattern matches no file")
    return [(f"{number:05d}{endings(found)}", system, found) for number, found in enumerate(paths)]


def _system_of(spec: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(spec)
        return found
    except ImportError as error:
        name, _, path = spec.partition("://")
        try:
            from obstore.fsspec import SUPPORTED_PROTOCOLS, FsspecStore
        except ImportError:
            raise error from None
        if name not in SUPPORTED_PROTOCOLS:
            raise
        opened: Any = FsspecStore  # its type has an overload for each cloud, and none for all
        options: dict[str, Any] = dict(_TIMEOUTS)
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith(_LOOPBACK):
            options["allow_http"] = True
        system = opened(name, client_options=options, retry_config=_RETRY, skip_instance_cache=True)
        return system, path


def _keep_file(name: str, system: Any, path: str, target: Path, keep: Keep) -> PinnedFile:
    size = 0
    with system.open(path, "rb") as remote, target.open("wb") as file:
        while block := remote.read(_BLOCK_BYTES):
            size += len(block)
            if size > MAX_BYTES:
                raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes")
            file.write(block)
    return PinnedFile(name, size, keep(target))


def _explained(error: Exception) -> tuple[str, str]:
    """Return why a file cannot be had, and what to do."""
    text = str(error) or type(error).__name__
    if isinstance(error, ImportError):
        return text.splitlines()[0], _LIBRARIES
    said = re.search(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*)</Message>)?", text)
    is_refused = re.search(r"PermissionDenied|Unauthenticated|Forbidden", type(error).__name__)
    if said is None:
        first = text.splitlines()[0][:200]
        return (f"nothing is there: {first}" if isinstance(error, FileNotFoundError) else first), (
            _RIGHTS if is_refused else _ADDRESS
        )
    code, message = said.groups()
    why = f"the server says {code}" + (f": {message}" if message else "")
    return why, _ADDRESS if code.startswith("NoSuch") else _RIGHTS
