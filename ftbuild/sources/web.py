"""`https://HOST/PATH`: one file from the web, by the digest that the lock holds.

What a server says is not believed: the bytes are bounded in number and time, must be as many as
were announced, come from the host that was named, and give the digest of the lock.
"""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, UsageError
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources.local import endings

MAX_BYTES = 1 << 40
WAIT_S = 60.0
"""The longest silence of a server."""
MAX_S = 6 * 3600.0
_BLOCK_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

Keep = Callable[[Path], Digest]


def fetch(spec: str, directory: Path, keep: Keep) -> Pin:
    """Download `spec` into `directory`, keep the file, and return what it is.

    Raises:
        UsageError: E0450, the address is not of the form above.
        MachineError: E0451, the server does not give it.
    """
    parts = urlsplit(spec)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise UsageError(
            f"`{spec}` would come over an open connection", code="E0450", fix="write https:"
        )
    if parts.username or parts.password or not parts.hostname:
        raise UsageError(
            f"`{parts.scheme}://…` holds a user or a password, or no host",
            code="E0450",
            fix="write https://HOST/PATH",
        )
    target = directory / "download"
    try:
        _download(spec, target)
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise MachineError(
            f"`{spec}` cannot be had",
            code="E0451",
            why=_reason(e),
            fix="open the address in a browser: is it there, and is the network?",
        ) from e
    size = target.stat().st_size
    return Pin((PinnedFile("file" + endings(parts.path), size, keep(target)),))


def _download(spec: str, target: Path) -> None:
    request = urllib.request.Request(
        spec, headers={"User-Agent": "ftbuild", "Accept-Encoding": "identity"}
    )
    opener = urllib.request.build_opener(_SameHost)
    with opener.open(request, timeout=WAIT_S) as response, target.open("wb") as file:
        announced = response.headers.get("Content-Length")
        if announced is not None and int(announced) > MAX_BYTES:
            raise ValueError(f"it has {int(announced):,} bytes, more than {MAX_BYTES:,}")
        got = _copy(response, file)
        if announced is not None and got != int(announced):
            raise ValueError(f"{int(announced):,} bytes were announced and {got:,} came")


def _copy(response: Any, file: IO[bytes]) -> int:
    got = 0
    ends_at = time.monotonic() + MAX_S
    # `read1` gives what has come; `read` would wait for a whole block of a server that dawdles.
    while block := response.read1(_BLOCK_BYTES):
        got += len(block)
        if got > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes came")
        if time.monotonic() > ends_at:
            raise ValueError(f"it takes longer than {MAX_S:,.0f} s")
        file.write(block)
    return got


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one host: another one was never named in FTBUILD.toml."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            fp.close()
            raise ValueError(
                f"it is redirected to {new.scheme}://{new.netloc}; if you trust that, name it"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
