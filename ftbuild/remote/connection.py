"""One connection to a server: as much of HTTP/1.1 as a cache needs (RFC 9112).

Several requests may be sent before the first answer is read, which saves a round trip for each
of thousands of small objects. Nothing that comes is believed: heads are short and well formed,
bodies bounded, and all of it in time, which grows with what has come. A body is read into its
own buffer by few system calls, most of them outside of Python's lock. `http.client` has neither
those bounds nor that speed: it parses a head in 0.2 ms, this in 0.02.
"""

import errno
import re
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from ftbuild.remote.backend import Data, RemoteError

CONNECT_S = 5.0
STALL_S = 10.0
"""The longest silence of a server, and the time that any answer may take to begin."""
MIN_BYTES_PER_S = 16 << 10

_BLOCK_BYTES = 1 << 20
_BUFFER_BYTES = 64 << 10
_MAX_INTERIM = 8
_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([^\r\n]*))?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")


class Answer(NamedTuple):
    """The head of an answer."""

    status: int
    reason: str
    length: int | None
    """Of the body; None where only its end tells."""
    is_chunked: bool
    encoding: str
    is_last: bool
    """The server closes the connection after it."""


class NotHttp(Exception):
    """What came is no answer of HTTP/1."""


class Closed(Exception):
    """The server closed the connection where an answer should have begun."""


class Connection:
    """One connection, opened with the first request; for one thread, but for `shutdown`."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._host, self._port = host, port
        self._context = context
        self.busy = threading.Lock()
        """Held by the thread that uses it."""
        self._socket: socket.socket | None = None
        # Without TLS the kernel collects a whole body.
        self._flags = 0 if context else socket.MSG_WAITALL
        self._came = bytearray()
        self._began = 0.0
        self._moved = 0

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as this side knows."""
        return self._socket is not None

    def send(self, head: bytes, data: bytes = b"") -> None:
        """Send requests, or one with a body.

        Raises:
            OSError: the server cannot be reached, or does not take it in time.
        """
        if self._socket is None:
            self._connect()
        self._restart()
        for part in (head, data):
            view = memoryview(part)
            while view:
                view = view[self._send(view[:_BLOCK_BYTES]) :]

    def _connect(self) -> None:
        found = socket.create_connection((self._host, self._port), timeout=CONNECT_S)
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                found = self._context.wrap_socket(found, server_hostname=self._host)
            else:
                # The kernel keeps the time: then one call reads a whole body.
                found.settimeout(None)
        except BaseException:
            found.close()
            raise
        self._socket = found
        self._came.clear()

    def _send(self, view: memoryview) -> int:
        try:
            count = self._ready(socket.SO_SNDTIMEO).send(view)
        except BlockingIOError:
            raise TimeoutError("too slow") from None
        self._moved += count
        return count

    def _receive(self, view: memoryview) -> int:
        """Read into `view`, all of it if that is to be had in time; 0 at the end."""
        ready = self._ready(socket.SO_RCVTIMEO)
        try:
            count = ready.recv_into(view, len(view), self._flags)
        except BlockingIOError:
            raise TimeoutError("too slow") from None
        self._moved += count
        return count

    def _ready(self, option: int) -> socket.socket:
        """Return the socket, which will wait no longer than is left."""
        found = self._socket
        if found is None:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        left = self._began + STALL_S + self._moved / MIN_BYTES_PER_S - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        left = min(STALL_S, left)
        if self._context is not None:
            found.settimeout(left)
        else:
            whole = int(left)
            timeval = struct.pack("@ll", whole, max(1, int((left - whole) * 1e6)))
            found.setsockopt(socket.SOL_SOCKET, option, timeval)
        return found

    def _restart(self) -> None:
        """Start the time that something may take."""
        self._began, self._moved = time.monotonic(), 0

    def answer(self) -> Answer:
        """Return the head of the next answer.

        Raises:
            Closed: there is none, not a byte of it.
            NotHttp: it is none.
            OSError: it does not come, or not in time.
        """
        self._restart()
        for _ in range(_MAX_INTERIM):
            found = _parse(self._head())
            if found.status >= 200:
                return found
        raise NotHttp("it only announces answers")

    def _head(self) -> bytes:
        while (end := self._came.find(_END)) < 0:
            if len(self._came) > _BUFFER_BYTES:
                raise NotHttp("the head of an answer is too long")
            self._more()
        head = bytes(self._came[:end])
        del self._came[: end + len(_END)]
        return head

    def _more(self) -> None:
        """Read what has come, for a head."""
        try:
            block = self._ready(socket.SO_RCVTIMEO).recv(_BUFFER_BYTES)
        except BlockingIOError:
            raise TimeoutError("too slow") from None
        if not block:
            if self._came:
                raise NotHttp("the head of an answer is cut short")
            raise Closed
        self._moved += len(block)
        self._came += block

    def body(self, answer: Answer, limit: int) -> Data:
        """Return the body of the answer that was read last.

        Raises:
            RemoteError: it is longer than `limit`, or shorter than announced.
            NotHttp: it is not in the form that was announced.
            OSError: it does not come in time.
        """
        if answer.is_chunked:
            return self._chunked(limit)
        if answer.length is None:
            return self._until_the_end(limit)
        if answer.length > limit:
            raise RemoteError(
                f"an answer has {answer.length:,} bytes, not {limit:,}", is_wrong=True
            )
        return self._exactly(answer.length)

    def _exactly(self, size: int) -> bytearray:
        got = min(size, len(self._came))
        if got == size:
            whole = self._came[:size]
            del self._came[:size]
            return whole
        whole = bytearray(size)
        view = memoryview(whole)
        view[:got] = self._came[:got]
        del self._came[:got]
        while got < size:
            count = self._receive(view[got:])
            if not count:
                raise RemoteError("an answer was cut short", is_temporary=True)
            got += count
        return whole

    def _until_the_end(self, limit: int) -> Data:
        whole, self._came = self._came, bytearray()
        block = bytearray(_BUFFER_BYTES)
        while len(whole) <= limit and (count := self._receive(memoryview(block))):
            whole += block[:count]
        if len(whole) > limit:
            raise RemoteError(f"an answer has more than {limit:,} bytes", is_wrong=True)
        return whole

    def _chunked(self, limit: int) -> Data:
        whole = bytearray()
        while size := self._chunk_size():
            if len(whole) + size > limit:
                raise RemoteError(f"an answer has more than {limit:,} bytes", is_wrong=True)
            whole += self._exactly(size)
            if self._line():
                raise NotHttp("a piece of an answer has no end")
        while self._line():  # trailers
            pass
        return whole

    def _chunk_size(self) -> int:
        match = _CHUNK.fullmatch(self._line())
        if match is None:
            raise NotHttp("a piece of an answer has no length")
        return int(match[1], 16)

    def _line(self) -> bytes:
        while (end := self._came.find(b"\r\n")) < 0:
            if len(self._came) > _BUFFER_BYTES:
                raise NotHttp("a line is too long")
            self._more()
        line = bytes(self._came[:end])
        del self._came[: end + 2]
        return line

    def skip(self, answer: Answer) -> bool:
        """Read a short body past; False where the connection is not worth that."""
        if answer.is_chunked or answer.length is None or answer.length > _BLOCK_BYTES:
            return False
        self._exactly(answer.length)
        return not answer.is_last

    def close(self) -> None:
        """Close it; the next request opens it again."""
        found, self._socket = self._socket, None
        self._came.clear()
        if found is not None:
            with suppress(OSError):
                found.close()

    def shutdown(self) -> None:
        """End what its thread is waiting for; may be called by another."""
        found = self._socket
        if found is not None:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)


def _parse(head: bytes) -> Answer:
    first, *lines = head.split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise NotHttp("no status line")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if not colon or not name or name != name.strip():
            raise NotHttp("a line of a head is no field")
        if name == b"content-length" and fields.get(name, value) != value:
            raise NotHttp("an answer has two lengths")
        fields[name] = value
    status = int(match[2])
    coding = fields.get(b"transfer-encoding", b"").lower()
    if coding not in (b"", b"chunked"):
        raise NotHttp("an answer is coded in an unknown way")
    has_none = status in (204, 304)
    length = 0 if has_none else _length(fields.get(b"content-length"))
    is_chunked = bool(coding) and not has_none
    persists = fields.get(b"connection", b"").lower()
    is_last = persists == b"close" if match[1] == b"1" else persists != b"keep-alive"
    return Answer(
        status,
        (match[3] or b"").decode("latin-1"),
        None if is_chunked else length,
        is_chunked,
        fields.get(b"content-encoding", b"identity").decode("latin-1").lower(),
        is_last or (length is None and not is_chunked),
    )


def _length(text: bytes | None) -> int | None:
    """Return the announced length; what is no number announces nothing."""
    return int(text) if text is not None and re.fullmatch(rb"[0-9]{1,18}", text) else None
