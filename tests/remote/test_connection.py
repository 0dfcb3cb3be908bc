"""HTTP/1.1 by hand: heads as `http.client` reads them, bodies in all forms, requests in a row."""

import io
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftbuild.remote import address, connection
from ftbuild.remote.backend import RemoteError, Want
from ftbuild.remote.connection import Connection, NotHttp
from ftbuild.remote.web import Web


@contextmanager
def talking(*turns: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a server that has one turn for each connection; give its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for turn in turns:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                turn(peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        assert not thread.is_alive()


def read_requests(peer: socket.socket, count: int) -> bytes:
    came = b""
    while came.count(b"\r\n\r\n") < count:
        block = peer.recv(1 << 16)
        assert block
        came += block
    return came


def saying(answers: bytes, requests: int = 1) -> Callable[[socket.socket], None]:
    def turn(peer: socket.socket) -> None:
        read_requests(peer, requests)
        peer.sendall(answers)

    return turn


@contextmanager
def asking(port: int, scheme: str = "http") -> Iterator[Web]:
    found = Web(address.parse(f"{scheme}://127.0.0.1:{port}/x", Path("/")))
    try:
        yield found
    finally:
        found.close()


@contextmanager
def served(*turns: Callable[[socket.socket], None]) -> Iterator[Web]:
    with talking(*turns) as port, asking(port) as web:
        yield web


def ok(body: bytes, *fields: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *fields))
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!"


def test_objects_asked_in_a_row_come_in_their_order() -> None:
    answers = ok(b"one") + GONE + ok(b"") + ok(b"four" * 100_000)
    with served(saying(answers, requests=4)) as web:
        found = web.get_all([Want(f"cas/{n}", 400_000) for n in range(4)])
    assert found == [b"one", None, b"", b"four" * 100_000]


def test_sizes_asked_in_a_row() -> None:
    heads = [ok(b"x" * size).partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for size in (3, 0, 7)]
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\n"
    with (
        talking(saying(heads[0] + missing + heads[1] + heads[2], requests=4)) as port,
        asking(port) as web,
    ):
        assert web.sizes(["a", "b", "c", "d"]) == [3, None, 0, 7]


def test_server_that_closes_in_between_is_asked_for_the_rest() -> None:
    last = ok(b"two", "Connection: close")
    with served(saying(ok(b"one") + last, 3), saying(ok(b"three"))) as web:
        found = web.get_all([Want(name, 9) for name in ("a", "b", "c")])
    assert found == [b"one", b"two", b"three"]


def test_idle_connection_that_was_closed_is_opened_again_once() -> None:
    with served(saying(ok(b"one")), saying(ok(b"two"))) as web:
        assert web.get("a", 9) == b"one"
        assert web.get("b", 9) == b"two"
    with (
        talking(saying(b"")) as port,
        asking(port) as web,
        pytest.raises(RemoteError, match="without an answer"),
    ):
        web.get("a", 9)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n"
        b"0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"abc0123456789"),
        b"HTTP/1.0 200 OK\r\n\r\nabc0123456789",
        ok(b"abc0123456789", "X: " + "y" * 60_000),
        b"HTTP/1.1 200\r\ncontent-length:13\r\n\r\nabc0123456789",
    ],
)
def test_body_in_each_form(answer: bytes) -> None:
    with served(saying(answer)) as web:
        assert web.get("a", 13) == b"abc0123456789"
    with (
        served(saying(answer)) as web,
        pytest.raises(RemoteError, match="12"),
    ):
        web.get("a", 12)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        b"\x00garbage\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(answer: bytes) -> None:
    with (
        served(saying(answer)) as web,
        pytest.raises(RemoteError, match="does not speak HTTP"),
    ):
        web.get("a", 100)


def test_heads_are_read_as_the_standard_library_reads_them() -> None:
    for head in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive",
        b"HTTP/1.1 503 Busy  now\r\nContent-Length: 0\r\nConnection: CLOSE",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked",
        b"HTTP/1.0 200 OK\r\nContent-Length: 7",
        b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: Keep-Alive",
        b"HTTP/1.1 200 OK\r\nContent-Length: many",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9",
    ):
        ours, theirs = connection._parse(head), standard(head)
        assert (ours.status, ours.reason.strip()) == (theirs.status, theirs.reason)
        assert (ours.length, ours.is_chunked) == (theirs.length, bool(theirs.chunked))
        assert ours.is_last is bool(theirs.will_close)


class _Whole:
    """A socket of which all has come."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def standard(head: bytes) -> HTTPResponse:
    answer = HTTPResponse(_Whole(head + b"\r\n\r\n"), method="GET")  # type: ignore[arg-type]
    answer.begin()
    return answer


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_heads(noise: bytes) -> None:
    for head in (noise, b"HTTP/1.1 200 OK\r\n" + noise):
        try:
            found = connection._parse(head)
        except NotHttp:
            continue
        if b"\n" not in noise.replace(b"\r\n", b"") and b"\r" not in noise.replace(b"\r\n", b""):
            try:
                theirs = standard(head)
            except HTTPException:
                continue
            assert found.status == theirs.status


def test_silence_and_dribble_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    over = threading.Event()

    def silent(peer: socket.socket) -> None:
        read_requests(peer, 1)
        over.wait(10)

    def dribbling(peer: socket.socket) -> None:
        read_requests(peer, 1)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while not over.wait(0.02):
                peer.sendall(b"x")
        except OSError:
            return

    for turn in (silent, dribbling):
        over.clear()
        with served(turn) as web:
            with pytest.raises(RemoteError, match="in time") as caught:
                web.get("a", 1_000_000)
            over.set()
        assert caught.value.is_down


def test_server_that_takes_nothing_in_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    over = threading.Event()
    with served(lambda peer: over.wait(10) and None) as web:
        with pytest.raises(RemoteError, match="in time"):
            web.put("a", bytes(64 << 20))
        over.set()


def test_another_thread_can_end_the_waiting() -> None:
    asked, over = threading.Event(), threading.Event()

    def silent(peer: socket.socket) -> None:
        read_requests(peer, 1)
        asked.set()
        over.wait(10)

    with served(silent) as it:
        failed: list[Exception] = []

        def ask() -> None:
            try:
                it.get("a", 9)
            except RemoteError as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(10)
        it.close()
        thread.join(5)
        assert not thread.is_alive()
        over.set()
    assert len(failed) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    path = tmp_path / "it.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=it"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key -out certificate"
    subprocess.run(command.split(), check=True, capture_output=True, cwd=tmp_path)
    path.write_text((tmp_path / "key").read_text() + (tmp_path / "certificate").read_text())
    return path


def test_tls_brings_the_same_and_keeps_the_same_time(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    body = os.urandom(3_000_000)

    def turn(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as secured:
            read_requests(secured, 2)
            secured.sendall(ok(body) + ok(b"two"))
            read_requests(secured, 1)
            over.wait(10)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with talking(turn) as port, asking(port, "https") as it:
        assert it.get_all([Want("a", 3_000_000), Want("b", 3)]) == [body, b"two"]
        monkeypatch.setattr(connection, "STALL_S", 0.3)
        with pytest.raises(RemoteError, match="in time"):
            it.get("c", 9)
        over.set()


@pytest.mark.fault("44", "a certificate that nobody vouches for")
def test_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[bytes] = []

    def turn(peer: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(peer, server_side=True) as secured:
            asked.append(secured.recv(100))

    refused = pytest.raises(RemoteError, match="TLS failed")
    with talking(turn) as port, asking(port, "https") as it, refused:
        it.get("a", 9)
    assert asked in ([], [b""])


def test_connection_says_whether_it_is_open() -> None:
    with talking(saying(ok(b"x"))) as port:
        found = Connection("127.0.0.1", port, None)
        assert not found.is_open
        found.send(b"GET / HTTP/1.1\r\n\r\n")
        assert found.is_open
        assert found.body(found.answer(), 1) == b"x"
        found.close()
        assert not found.is_open
