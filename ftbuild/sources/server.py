"""Server: one request over HTTP, to a server of which nothing is believed.

An answer has to keep coming, its headers too: 64 KiB for each minute of waiting. A redirect may
lead to another host only where the bytes are known beforehand, never from https to http, never from
the network to this machine; credentials do not go with it.
"""

import http.client
import io
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urlsplit

WAIT_S = 60.0
"""The longest silence of a server, and the longest that it may take for `STEP_BYTES`."""
STEP_BYTES = 64 << 10
MAX_ASKED_BYTES = 64 << 20
"""The longest answer to a question: a list of the files of a repository."""
MAX_ASKED_S = 300.0
BLOCK_BYTES = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAX_REASON = 200
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class Refused(Exception):
    """A server does what it must not, or says no: asking again is of no use."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class BrokenOff(Exception):
    """An answer did not come, or not whole: asking again may help."""


@dataclass(frozen=True)
class Asked:
    """How a server is asked."""

    url: str
    ends_at: float
    """When the answer must have come, on the monotonic clock."""
    token: str | None = None
    """Given to the host of `url` alone."""
    may_leave: bool = False
    """Whether redirects to other hosts are followed."""


def open_answer(asked: Asked, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """Ask, and return the answer, whose body is still to be read.

    Raises:
        Refused: the server says no, or redirects to where nobody may go.
        BrokenOff: it does not answer.
    """
    request = urllib.request.Request(
        asked.url, headers={"User-Agent": "ftbuild", "Accept-Encoding": "identity", **headers}
    )
    if asked.token is not None:
        # urllib takes all other headers along to wherever it is redirected.
        request.add_unredirected_header("Authorization", f"Bearer {asked.token}")
    opener = urllib.request.build_opener(
        _Http(asked.ends_at), _Https(asked.ends_at), _Redirects(may_leave=asked.may_leave)
    )
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=WAIT_S)
    except urllib.error.HTTPError as e:
        e.close()
        raise _said_no(e) from e
    except (OSError, http.client.HTTPException) as e:
        raise trouble(e) from e
    return answer


def ask(url: str, *, token: str | None) -> bytes:
    """Return the whole answer to a question, of at most `MAX_ASKED_BYTES`.

    Raises:
        Refused, BrokenOff: as `open_answer`; or the answer is longer.
    """
    with open_answer(Asked(url, time.monotonic() + MAX_ASKED_S, token), {}) as answer:
        try:
            data = answer.read(MAX_ASKED_BYTES + 1)
        except (OSError, http.client.HTTPException) as e:
            raise trouble(e) from e
        if len(data) > MAX_ASKED_BYTES:
            raise Refused(f"it answers with more than {MAX_ASKED_BYTES:,} bytes")
        if answer.length:
            raise cut_short(len(data) + answer.length, len(data))
    return data


def cut_short(announced: int, came: int) -> BrokenOff:
    """Return what to raise when an answer ends too soon."""
    return BrokenOff(f"{announced:,} bytes were announced and {came:,} came")


def trouble(error: Exception) -> Refused | BrokenOff:
    """Return what went wrong in words, and whether asking again may help."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, http.client.IncompleteRead):
        return BrokenOff("the answer was cut short")
    if isinstance(cause, http.client.RemoteDisconnected):
        return BrokenOff("it closes the connection without an answer")
    if isinstance(cause, http.client.HTTPException):
        return Refused(f"it does not speak HTTP: {type(cause).__name__}")
    if isinstance(cause, ConnectionResetError | BrokenPipeError):
        return BrokenOff("it broke the connection off")
    if isinstance(error, TimeoutError):
        return BrokenOff(str(error))
    return Refused(str(cause) or type(cause).__name__)


def _said_no(error: urllib.error.HTTPError) -> Refused | BrokenOff:
    said = f"the server says {error.code} {error.reason}".rstrip()
    if more := error.headers.get("X-Error-Message"):  # the hub explains itself so
        said += f": {more}"
    said = " ".join(said.split())[:_MAX_REASON]
    return BrokenOff(said) if error.code in _TEMPORARY else Refused(said, error.code)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within a host, and to others if it may."""

    def __init__(self, *, may_leave: bool) -> None:
        self._may_leave = may_leave

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        is_same = (old.scheme, old.netloc) == (new.scheme, new.netloc)
        if not is_same and (why := self._objection(old, new)):
            fp.close()
            raise Refused(f"it is redirected to {new.scheme}://{_host(new)}{why}")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following is not None and is_same and token is not None:
            following.add_unredirected_header("Authorization", token)
        return following

    def _objection(self, old: SplitResult, new: SplitResult) -> str | None:
        if not self._may_leave:
            return "; if you trust that, name it"
        if new.scheme != "https" and (old.scheme == "https" or new.scheme != "http"):
            return ", an open connection"
        if new.hostname in LOOPBACK and old.hostname not in LOOPBACK:
            return ", which is this machine"
        return None


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


class _Http(urllib.request.HTTPHandler):
    def __init__(self, ends_at: float) -> None:
        super().__init__()
        self._ends_at = ends_at

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, ends_at=self._ends_at), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, ends_at: float) -> None:
        super().__init__()
        self._ends_at = ends_at

    def https_open(self, req: urllib.request.Request) -> Any:
        secure = partial(
            _SecureConnection, ends_at=self._ends_at, context=ssl.create_default_context()
        )
        return self.do_open(secure, req)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, ends_at: float, **options: Any) -> None:
        super().__init__(host, **options)
        # http.client calls it and asks nothing else of it.
        self.response_class = partial(_Answer, ends_at=ends_at)  # type: ignore[assignment]


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, ends_at: float, **options: Any) -> None:
        super().__init__(host, **options)
        # http.client calls it and asks nothing else of it.
        self.response_class = partial(_Answer, ends_at=ends_at)  # type: ignore[assignment]


class _Answer(http.client.HTTPResponse):
    """An answer of a server that dawdles is not waited for."""

    def __init__(self, sock: Any, *args: Any, ends_at: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock, ends_at), 64 << 10)


class _Reader(io.RawIOBase):
    """Reads what a socket gives, and keeps the time that this takes."""

    def __init__(self, raw: Any, sock: Any, ends_at: float) -> None:
        self._raw, self._sock, self._ends_at = raw, sock, ends_at
        self._waited_s, self._got = 0.0, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def close(self) -> None:
        """Let go of the socket."""
        if not self.closed:
            super().close()
            self._raw.close()

    def readinto(self, buffer: Any) -> int:
        """Read what has come."""
        began = time.monotonic()
        left = WAIT_S - self._waited_s
        if left <= 0:
            raise TimeoutError(f"it gives less than {STEP_BYTES:,} bytes in {WAIT_S:g} s")
        if began >= self._ends_at:
            raise TimeoutError("it takes too long")
        self._sock.settimeout(min(left, self._ends_at - began))
        count: int = self._raw.readinto(buffer)
        self._waited_s += time.monotonic() - began
        self._got += count
        if self._got >= STEP_BYTES:
            self._waited_s, self._got = 0.0, 0
        return count
