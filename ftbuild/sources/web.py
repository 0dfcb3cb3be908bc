"""`https://HOST/PATH`: one file from the web, by the digest that the lock holds.

`https://HOST/PATH#sha256=DIGEST` says beforehand what it must be. Without that, the host that is
named is believed once, when the lock is written, and none to which it redirects.
"""

import re
from pathlib import Path
from urllib.parse import SplitResult, urldefrag, urlsplit

from ftbuild.digest import Digest
from ftbuild.errors import CorruptError, MachineError, UsageError
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources.download import Different, Keep, Room, Wanted, download
from ftbuild.sources.local import endings
from ftbuild.sources.server import LOOPBACK, BrokenOff, Refused

_FRAGMENT = re.compile(r"sha256=([0-9a-f]{64})")


def resolve(spec: str, room: Room, keep: Keep) -> Pin:
    """Download `spec`, keep the file, and return what it is.

    Raises:
        UsageError: E0450, the address is not of the form above.
        MachineError: E0451, the server does not give it.
        CorruptError: E0604, it is not the file of the digest in the address.
    """
    parts = urlsplit(spec)
    named = _check(spec, parts)
    with room(named or spec) as folder:
        try:
            path = _download(spec, Wanted(sha256=named), folder)
        except Different as e:
            raise CorruptError(
                f"`{spec}` is not the file that the address names",
                code="E0604",
                why=str(e),
                fix="if the change is meant, write its sha256 into the address",
            ) from e
        size = path.stat().st_size
        return Pin((PinnedFile("file" + endings(parts.path), size, keep(path)),))


def fetch(spec: str, _: Pin, file: PinnedFile, folder: Path) -> Path:
    """Download the file of the lock into `folder` and return where it lies.

    Raises:
        UsageError: E0450, the address is not of the form above.
        MachineError: E0451, the server does not give it.
        Different: what comes is not the file of the lock.
    """
    _check(spec, urlsplit(spec))
    return _download(spec, Wanted(file.size, file.sha256), folder)


def _download(spec: str, wanted: Wanted, folder: Path) -> Path:
    try:
        return download(urldefrag(spec).url, folder, wanted)
    except (Refused, BrokenOff) as e:
        raise MachineError(
            f"`{spec}` cannot be had",
            code="E0451",
            why=str(e),
            fix="open the address in a browser: is it there, and is the network?",
        ) from e


def _check(spec: str, parts: SplitResult) -> Digest | None:
    """Hold that an address is safe to use, and return the digest that it names."""
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise UsageError(
            f"`{spec}` would come over an open connection", code="E0450", fix="write https:"
        )
    if parts.username or parts.password or not parts.hostname:
        raise UsageError(
            f"`{parts.scheme}://…` holds a user or a password, or no host",
            code="E0450",
            fix="write https://HOST/PATH",
        )
    if not parts.fragment:
        return None
    match = _FRAGMENT.fullmatch(parts.fragment)
    if match is None:
        raise UsageError(
            f"`#{parts.fragment}` is no digest",
            code="E0450",
            fix="write https://HOST/PATH#sha256=, with 64 hex digits in lower case",
        )
    return Digest(match[1])
