"""A server of Bazel's HTTP cache protocol as a remote store: bazel-remote, nginx with WebDAV.

    GET, HEAD, PUT  URL/cas/<sha256>  URL/ac/<key>

Nothing that a server says is believed. What comes is bounded in number and time, must be as
many bytes as were announced, is taken as it is (no compression) and from nowhere else (no
redirects).
"""

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from ftbuild.remote.address import Address
from ftbuild.remote.backend import Data, RemoteError, Want
from ftbuild.remote.connection import Answer, Closed, Connection, NotHttp

_MAX_REASON = 200

_NOT_THERE = (404, 410)
_FORBIDDEN = (401, 403, 405, 501)
_FULL = (413, 507)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")
_Take = Callable[[Connection, Answer, int], T]
"""Reads what follows a head; the number says the how manieth request it answers."""


class Web:
    """One server, with a connection for each thread."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.name = address.name
        self._address = address
        parts = urlsplit(address.url)
        self._prefix, self._query = parts.path, f"?{parts.query}" if parts.query else ""
        self._context = None if parts.scheme == "http" else ssl.create_default_context()
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._context else 80)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"Host: {shown}:{parts.port}" if parts.port else f"Host: {shown}"]
        lines += ["User-Agent: ftbuild", "Accept-Encoding: identity"]
        if address.user is not None:
            login = f"{address.user}:{address.password or ''}".encode()
            lines.append(f"Authorization: Basic {base64.b64encode(login).decode()}")
        elif token:
            lines.append(f"Authorization: Bearer {token}")
        self._fields = "".join(f"{line}\r\n" for line in lines)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._is_over = False

    def get(self, path: str, limit: int) -> Data | None:
        """Return an object, None if it is not there."""
        return self.get_all([Want(path, limit)])[0]

    def get_all(self, wants: Sequence[Want]) -> list[Data | None]:
        """Return objects, None for each that is not there."""

        def take(connection: Connection, answer: Answer, number: int) -> Data:
            if answer.encoding != "identity":
                raise RemoteError("an answer is compressed, which was not asked for")
            return connection.body(answer, wants[number].limit)

        return self._ask("GET", [want.path for want in wants], take)

    def size(self, path: str) -> int | None:
        """Return how many bytes an object has, None if it is not there."""
        return self.sizes([path])[0]

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return how many bytes each object has, None for each that is not there."""
        return self._ask("HEAD", paths, _announced)

    def put(self, path: str, data: bytes, *, only_new: bool = False) -> bool:
        """Write an object; with `only_new` False if there is one already.

        A server that knows no `If-None-Match` on PUT writes it: who writes asks first.
        """
        extra = "If-None-Match: *\r\n" if only_new else ""
        extra += f"Content-Type: application/octet-stream\r\nContent-Length: {len(data)}\r\n"
        return self._ask("PUT", [path], _nothing, data=data, extra=extra)[0] is not None

    def _ask(
        self,
        method: str,
        paths: Sequence[str],
        take: _Take[T],
        *,
        data: bytes = b"",
        extra: str = "",
    ) -> list[T | None]:
        """Send requests and return what `take` makes of each answer, None for what is not there."""
        connection = self._connection()
        with connection.busy:
            try:
                return self._ask_on(connection, method, paths, take, data, extra)
            except RemoteError:
                connection.close()
                raise
            except (OSError, Closed, NotHttp, ValueError) as error:
                connection.close()
                raise self._trouble(error) from error
            finally:
                if self._is_over:
                    connection.close()

    def _ask_on(
        self,
        connection: Connection,
        method: str,
        paths: Sequence[str],
        take: _Take[T],
        data: bytes,
        extra: str,
    ) -> list[T | None]:
        found: list[T | None] = []
        while len(found) < len(paths):
            is_fresh = not connection.is_open
            before = len(found)
            try:
                connection.send(self._head(method, paths[before:], extra), data)
                self._take_all(connection, method, len(paths), take, found)
            except (Closed, ConnectionError, ssl.SSLEOFError):
                # A server may close a connection that was idle; a new one has no such excuse.
                if is_fresh and len(found) == before:
                    raise
                connection.close()
        return found

    def _head(self, method: str, paths: Sequence[str], extra: str) -> bytes:
        end = f"{self._query} HTTP/1.1\r\n{self._fields}{extra}\r\n"
        return "".join(f"{method} {self._prefix}/{path}{end}" for path in paths).encode()

    def _take_all(
        self, connection: Connection, method: str, count: int, take: _Take[T], found: list[T | None]
    ) -> None:
        """Read answers, until all are here or the server closes the connection in good order."""
        while len(found) < count:
            answer = connection.answer()
            status = answer.status
            if status == 200 or (method == "PUT" and status in (201, 204)):
                found.append(take(connection, answer, len(found)))
                is_usable = method != "PUT" or connection.skip(answer)
            else:
                is_usable = method == "HEAD" or connection.skip(answer)
                if status not in ((412,) if method == "PUT" else _NOT_THERE):
                    raise self._refusal(answer, method)
                found.append(None)
            if answer.is_last or not is_usable:
                connection.close()
                return

    def _connection(self) -> Connection:
        found: Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = Connection(self._host, self._port, self._context)
            self._local.connection = found
            with self._lock:
                self._connections.append(found)
        return found

    def _refusal(self, answer: Answer, method: str) -> RemoteError:
        status = answer.status
        if method == "PUT" and status in (*_NOT_THERE, 409):
            return RemoteError(f"the server says {status}", forbids_writing=True)
        reason = self._address.scrub(answer.reason[:_MAX_REASON])
        what = f"the server says {status} {reason}".rstrip()
        if 300 <= status < 400:
            what += ", a redirect, which is not followed"
        return RemoteError(
            what,
            is_temporary=status in _TEMPORARY,
            forbids_writing=status in _FORBIDDEN or status in _FULL,
        )

    def _trouble(self, error: Exception) -> RemoteError:
        if isinstance(error, Closed):
            return RemoteError("it closes the connection without an answer", is_temporary=True)
        if isinstance(error, NotHttp):
            return RemoteError(f"it does not speak HTTP ({error})", is_temporary=True)
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
        """Close all connections, those at once that a thread waits for."""
        self._is_over = True
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.shutdown()
            if connection.busy.acquire(blocking=False):  # else its thread closes it
                connection.close()
                connection.busy.release()
        self._local = threading.local()


def _announced(_: Connection, answer: Answer, __: int) -> int:
    if answer.length is None:
        raise RemoteError("an answer does not say how long it is")
    return answer.length


def _nothing(_: Connection, __: Answer, ___: int) -> bool:
    return True
