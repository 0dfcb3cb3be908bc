"""A server of Bazel's HTTP cache protocol as a remote store: bazel-remote, nginx with WebDAV.

    GET, HEAD, PUT  URL/cas/<sha256>  URL/ac/<key>

Nothing that a server says is believed. What comes is bounded in number and time, must be as
many bytes as were announced, is taken as it is (no compression) and from nowhere else (no
redirects). `http.client` and not a friendlier library because none of them has those bounds.
"""

import base64
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ftbuild.remote.address import Address
from ftbuild.remote.backend import Data, RemoteError

CONNECT_S = 5.0
STALL_S = 10.0
"""The longest silence of a server, and the time that any answer may take to begin."""
MIN_BYTES_PER_S = 16 << 10
_BLOCK_BYTES = 1 << 20
_MAX_REASON = 200

_NOT_THERE = (404, 410)
_FORBIDDEN = (401, 403, 405, 501)
_FULL = (413, 507)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class Web:
    """One server, with a connection for each thread."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.name = address.name
        self._address = address
        parts = urlsplit(address.url)
        self._prefix, self._query = parts.path, f"?{parts.query}" if parts.query else ""
        self._is_open = parts.scheme == "http"
        self._host, self._port = parts.hostname or "", parts.port
        self._context = None if self._is_open else ssl.create_default_context()
        self._headers = {"User-Agent": "ftbuild", "Accept-Encoding": "identity"}
        if address.user is not None:
            login = f"{address.user}:{address.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[http.client.HTTPConnection] = []

    def get(self, path: str, limit: int) -> Data | None:
        """Return an object, None if it is not there."""
        found: Data | None = self._ask("GET", path, lambda answer: _body(answer, limit))
        return found

    def size(self, path: str) -> int | None:
        """Return how many bytes an object has, None if it is not there."""
        found: int | None = self._ask("HEAD", path, _announced)
        return found

    def put(self, path: str, data: bytes, *, only_new: bool = False) -> bool:
        """Write an object; with `only_new` False if there is one already.

        A server that knows no `If-None-Match` on PUT writes it: who writes asks first.
        """
        extra = {"If-None-Match": "*"} if only_new else {}
        return self._ask("PUT", path, lambda _: True, data, extra) is not None

    def _ask(
        self,
        method: str,
        path: str,
        take: Callable[[http.client.HTTPResponse], Any],
        data: bytes | None = None,
        extra: dict[str, str] | None = None,
    ) -> Any:
        connection = self._connection()
        try:
            answer = self._send(connection, method, path, data, extra or {})
            status = answer.status
            if status == 200 or (method == "PUT" and status in (201, 204)):
                found = take(answer)
                self._leave(connection, answer)
                return found
            self._leave(connection, answer)
            if status in _NOT_THERE or (method == "PUT" and status in (412, 409)):
                if method == "PUT" and status != 412:
                    raise RemoteError(f"the server says {status}", forbids_writing=True)
                return None
            raise self._refusal(answer)
        except RemoteError:
            self._drop(connection)
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop(connection)
            raise self._trouble(error) from error

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        data: bytes | None,
        extra: dict[str, str],
    ) -> http.client.HTTPResponse:
        target = f"{self._prefix}/{path}{self._query}"
        headers = {**self._headers, **extra}
        for attempt in (1, 2):
            is_used = connection.sock is not None
            try:
                _request(connection, method, target, headers, data)
                return connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine):
                # A server may close a connection that was idle; a new one has no such excuse.
                connection.close()
                if not is_used or attempt == 2:
                    raise
        raise AssertionError

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            found = _Plain(self._host, self._port, self._context)
            self._local.connection = found
            with self._lock:
                self._connections.append(found)
        return found

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        """Close a connection whose state is not known; the next request opens it again."""
        with suppress(OSError):
            connection.close()

    def _leave(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
    ) -> None:
        if not _drain(answer):
            self._drop(connection)

    def _refusal(self, answer: http.client.HTTPResponse) -> RemoteError:
        reason = self._address.scrub(answer.reason[:_MAX_REASON])
        what = f"the server says {answer.status} {reason}".rstrip()
        if 300 <= answer.status < 400:
            what += ", a redirect, which is not followed"
        return RemoteError(
            what,
            is_temporary=answer.status in _TEMPORARY,
            forbids_writing=answer.status in _FORBIDDEN or answer.status in _FULL,
        )

    def _trouble(self, error: Exception) -> RemoteError:
        if isinstance(error, http.client.IncompleteRead):
            return RemoteError("an answer was cut short", is_temporary=True)
        if isinstance(error, http.client.RemoteDisconnected):
            return RemoteError("it closes the connection without an answer", is_temporary=True)
        if isinstance(error, http.client.BadStatusLine):
            return RemoteError("it does not speak HTTP", is_temporary=True)
        if isinstance(error, TimeoutError):
            return RemoteError("it does not answer in time", is_down=True)
        if isinstance(error, ssl.SSLError):
            return RemoteError(f"TLS failed: {error.reason}", is_down=True)
        if isinstance(error, socket.gaierror):
            return RemoteError("its name cannot be resolved", is_down=True)
        if isinstance(error, ConnectionRefusedError):
            return RemoteError("nothing listens there", is_down=True)
        text = getattr(error, "strerror", None) or type(error).__name__
        return RemoteError(self._address.scrub(str(text)), is_temporary=True)

    def settle(self) -> None:
        """A server answers a PUT when it has the bytes; more cannot be asked for."""

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            if isinstance(connection.sock, _Timed):
                connection.sock.shutdown()
            self._drop(connection)
        self._local = threading.local()


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    headers: dict[str, str],
    data: bytes | None,
) -> None:
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if data is not None:
        connection.putheader("Content-Length", str(len(data)))
        connection.putheader("Content-Type", "application/octet-stream")
    connection.endheaders()
    if data:
        view = memoryview(data)
        # A timeout of `sendall` is for all of it: in pieces it bounds the silence.
        for start in range(0, len(view), _BLOCK_BYTES):
            connection.send(view[start : start + _BLOCK_BYTES])


class _Plain(http.client.HTTPConnection):
    """A connection whose reading has a deadline that grows with what comes."""

    def __init__(self, host: str, port: int | None, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port or (443 if context else 80), timeout=CONNECT_S)
        self._context = context

    def connect(self) -> None:
        """Connect, and wrap the socket."""
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)
        self.sock.settimeout(STALL_S)
        # As much of a socket as http.client uses.
        self.sock = _Timed(self.sock)


class _Timed:
    """A socket, as far as `http.client` uses one, whose files have deadlines."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._readers = 0
        self._is_closed = False

    def sendall(self, data: Any) -> None:
        """Send all of it within the time of one silence."""
        self._sock.settimeout(STALL_S)
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what one answer is read from."""
        self._readers += 1
        return io.BufferedReader(_Reader(self._sock, self._reader_closed), 64 << 10)

    def _reader_closed(self) -> None:
        self._readers -= 1
        if self._is_closed and not self._readers:
            self._sock.close()

    def shutdown(self) -> None:
        """End what another thread is waiting for."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, but not under an answer that is still being read."""
        self._is_closed = True
        if not self._readers:
            self._sock.close()


class _Reader(io.RawIOBase):
    """Reads one answer, which must begin within `STALL_S` and then bring `MIN_BYTES_PER_S`."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None]) -> None:
        self._sock = sock
        self._on_close = on_close
        self._began = time.monotonic()
        self._got = 0

    def close(self) -> None:
        """Say that the answer is read."""
        if not self.closed:
            super().close()
            self._on_close()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come."""
        left = self._began + STALL_S + self._got / MIN_BYTES_PER_S - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        self._sock.settimeout(min(STALL_S, left))
        count = self._sock.recv_into(buffer)
        self._got += count
        return count


def _announced(answer: http.client.HTTPResponse) -> int:
    text = answer.headers.get("Content-Length", "")
    if not text.isdecimal():
        raise RemoteError("an answer does not say how long it is")
    return int(text)


def _body(answer: http.client.HTTPResponse, limit: int) -> Data:
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise RemoteError("an answer is compressed, which was not asked for")
    size = answer.length
    if size is None:
        return _unannounced(answer, limit)
    if size > limit:
        raise RemoteError(f"an answer has {size:,} bytes, not {limit:,}", is_wrong=True)
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = answer.readinto(view[got:])  # the reader below it keeps the time
        if not count:
            raise RemoteError("an answer was cut short", is_temporary=True)
        got += count
    return buffer


def _unannounced(answer: http.client.HTTPResponse, limit: int) -> Data:
    blocks, got = [], 0
    while block := answer.read1(_BLOCK_BYTES):
        blocks.append(block)
        got += len(block)
        if got > limit:
            raise RemoteError(f"an answer has more than {limit:,} bytes", is_wrong=True)
    return b"".join(blocks)


def _drain(answer: http.client.HTTPResponse) -> bool:
    """Read a short rest; say whether the connection can be used again."""
    is_short = answer.length is not None and answer.length <= _BLOCK_BYTES
    while is_short and answer.length and answer.read1(answer.length):
        pass
    is_at_end = is_short and not answer.length and not answer.will_close
    answer.close()  # http.client asks for that before the next request
    return is_at_end
