"""A server of files on loopback, honest unless a test tells it how to lie.

Each path has a list of answers, taken one a request; the last one stays. What was asked, with
which headers, and how many bytes of a body were sent is written down.
"""

import hashlib
import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[["Handler"], None]
COMMIT = "c" * 40


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    range: str | None
    if_range: str | None
    token: str | None


@dataclass
class FileServer:
    """What is served, and what was asked."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent_bytes: int = 0
    """Of bodies, since the start of the test."""
    is_ending: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over: what never ends, ends."""

    def gives(self, path: str, *answers: Answer) -> str:
        """Answer `path` so, and return its address."""
        self.answers[path] = list(answers)
        return self.url + path

    def ranges(self, path: str) -> list[str | None]:
        """Return which bytes of a path were asked for, a request each."""
        return [one.range for one in self.asked if one.path == path]

    def next_answer(self, path: str) -> Answer:
        """Return what the next request for a path gets."""
        left = self.answers.get(path)
        if left is None:
            return refusal(404)
        return left.pop(0) if len(left) > 1 else left[0]


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    files: FileServer

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        get = self.headers.get
        self.files.asked.append(Asked(path, get("Range"), get("If-Range"), get("Authorization")))
        with suppress(OSError):  # the client had enough
            self.files.next_answer(path)(self)

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Send the status and the headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.wfile.write(data)
        self.files.sent_bytes += len(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run a server while the block lasts."""
    files = FileServer()
    handler = type("Bound", (Handler,), {"files": files})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        files.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield files
        finally:
            files.is_ending.set()
            running.shutdown()
            thread.join()


def whole(data: bytes, *, etag: str | None = None, kind: str | None = None) -> Answer:
    """All of it, whatever was asked."""
    return lambda handler: _send(handler, data, 200, {}, etag, kind)


def honest(data: bytes, *, etag: str | None = None) -> Answer:
    """What RFC 9110 asks for: the range, if the file is still the one that is meant."""

    def answer(handler: Handler) -> None:
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        if asked is None or condition not in (None, etag):
            _send(handler, data, 200, {}, etag, None)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            _send(handler, b"", 416, {"Content-Range": f"bytes */{len(data)}"}, etag, None)
            return
        given = f"bytes {start}-{len(data) - 1}/{len(data)}"
        _send(handler, data[start:], 206, {"Content-Range": given}, etag, None)

    return answer


def part(data: bytes, given: str, *, etag: str | None = None) -> Answer:
    """These bytes as the answer to a range, with this `Content-Range`."""
    return lambda handler: _send(handler, data, 206, {"Content-Range": given}, etag, None)


def cut(data: bytes, after: int, *, etag: str | None = None, is_reset: bool = False) -> Answer:
    """The first bytes of it, then the end of the connection or its reset."""

    def answer(handler: Handler) -> None:
        headers = {"Content-Length": str(len(data))} | ({"ETag": etag} if etag else {})
        handler.head(200, headers)
        handler.body(data[:after])
        if is_reset:
            handler.wfile.flush()
            no_linger = struct.pack("ii", 1, 0)  # close() sends RST
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            handler.connection.close()

    return answer


def announcing(size: int) -> Answer:
    """Headers that promise `size` bytes, and none of them."""
    return lambda handler: handler.head(200, {"Content-Length": str(size)})


def endless(handler: Handler) -> None:
    """Chunks until the client goes."""
    handler.head(200, {"Transfer-Encoding": "chunked"})
    chunk = b"x" * 1000
    while not handler.files.is_ending.is_set():
        handler.body(b"%x\r\n%s\r\n" % (len(chunk), chunk))


def unbounded(data: bytes) -> Answer:
    """A body of which nothing says where it ends."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Connection": "close"})
        handler.body(data)

    return answer


def dripping(handler: Handler) -> None:
    """A byte now and then, never all."""
    handler.head(200, {"Content-Length": "300000"})
    while not handler.files.is_ending.wait(0.02):
        handler.body(b"x")


def dripping_headers(handler: Handler) -> None:
    """A header that does not end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.files.is_ending.wait(0.02):
        handler.wfile.write(b"x")


def silent(handler: Handler) -> None:
    """Nothing at all."""
    handler.files.is_ending.wait(30)


def held(data: bytes, after: int, reached: threading.Event) -> Answer:
    """The first bytes, and then nothing until the test is over."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Content-Length": str(len(data))})
        handler.body(data[:after])
        handler.wfile.flush()
        reached.set()
        handler.files.is_ending.wait(30)

    return answer


def redirect(to: str) -> Answer:
    """Another address."""
    return lambda handler: handler.head(302, {"Location": to, "Content-Length": "0"})


def refusal(status: int, headers: dict[str, str] | None = None) -> Answer:
    """No."""
    return lambda handler: handler.head(status, {"Content-Length": "0", **(headers or {})})


def _send(
    handler: Handler,
    data: bytes,
    status: int,
    headers: dict[str, str],
    etag: str | None,
    kind: str | None,
) -> None:
    found = {"Content-Length": str(len(data)), **headers}
    if etag is not None:
        found["ETag"] = etag
    if kind is not None:
        found["Content-Type"] = kind
    handler.head(status, found)
    handler.body(data)


def listing(name: str, files: dict[str, bytes], large: Sequence[str]) -> Answer:
    """What the hub says of a repository at `COMMIT`."""
    siblings = []
    for path, data in files.items():
        git_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        one: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_id}
        if path in large:
            one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        siblings.append(one)
    found = {"id": name, "sha": COMMIT, "siblings": siblings}
    return whole(json.dumps(found).encode(), kind="application/json")


def serve_model(
    server: FileServer, name: str, files: dict[str, bytes], large: Sequence[str]
) -> None:
    """Be the hub for one model at `main`."""
    server.gives(f"/api/models/{name}/revision/main", listing(name, files, large))
    for path, data in files.items():
        server.gives(f"/{name}/resolve/{COMMIT}/{path}", honest(data))
