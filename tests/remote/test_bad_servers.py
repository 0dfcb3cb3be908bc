"""A server that lies in twenty-one ways, one that is down, slow, full, read-only: builds go on.

Each row says how often its fault fired. The table is what `docs/reliability.md` shows of part C.
"""

import gzip
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.remote import connection, guard
from remote.checkout import Checkout, checkout
from remote_kit import NGINX, Handler, free_port, nginx, serve
from store_kit import corrupt_blobs, records_without_bytes


@dataclass
class State:
    """The objects of a server, and how it behaves."""

    objects: dict[str, bytes] = field(default_factory=dict)
    lie: Callable[[Handler, bytes], None] | None = None
    writes: Callable[[Handler], None] | None = None
    fired: int = 0
    other_hits: int = 0
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def server(state: State) -> Iterator[str]:
    class Lying(Handler):
        def do_GET(self) -> None:
            data = state.objects.get(self.path)
            if not self.path.startswith(("/ac/", "/cas/")):
                state.other_hits += 1
                self.answer(200, b"secret")
            elif data is None:
                self.answer(404)
            elif state.lie is None or self.command == "HEAD":
                self.answer(200, data)
            else:
                state.fired += 1
                state.lie(self, data)

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            if state.writes is not None:
                state.fired += 1
                state.writes(self)
                return
            state.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(201)

    with serve(Lying) as url:
        try:
            yield url
        finally:
            state.over.set()


def raw(handler: Handler, head: str, data: bytes = b"") -> None:
    """Answer by hand, and close."""
    handler.wfile.write(f"HTTP/1.1 {head}\r\n\r\n".encode() + data)
    handler.close_connection = True


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def hang(state: State) -> Callable[[Handler, bytes], None]:
    return lambda handler, _: state.over.wait(60) and None


def dribble(state: State, *, in_head: bool) -> Callable[[Handler, bytes], None]:
    def answer(handler: Handler, data: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nX-Slow: " if in_head else b"HTTP/1.1 200 OK\r\n"
        handler.wfile.write(head + (b"" if in_head else b"Content-Length: 1000000\r\n\r\n"))
        handler.close_connection = True
        try:
            while not state.over.wait(0.05):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            return

    return answer


Lie = Callable[[State], Callable[[Handler, bytes], None]]

LIES: dict[str, Lie] = {
    "a flipped bit": lambda s: lambda h, d: h.answer(200, flipped(d)),
    "other bytes of the same length": lambda s: lambda h, d: h.answer(200, b"x" * len(d)),
    "cut short with its length": lambda s: (
        lambda h, d: raw(h, f"200 OK\r\nContent-Length: {len(d)}", d[:-1])
    ),
    "cut short without a length": lambda s: lambda h, d: raw(h, "200 OK", d[:-1]),
    "one byte too many": lambda s: lambda h, d: h.answer(200, d + b"x"),
    "empty": lambda s: lambda h, d: h.answer(200, b""),
    "204": lambda s: lambda h, d: h.answer(204),
    "206, a part": lambda s: lambda h, d: h.answer(206, d[:1]),
    "a login page": lambda s: lambda h, d: h.answer(200, b"<html>log in</html>"),
    "a wrong length": lambda s: lambda h, d: raw(h, f"200 OK\r\nContent-Length: {len(d) - 1}", d),
    "a length that is no number": lambda s: (
        lambda h, d: raw(h, "200 OK\r\nContent-Length: many", d[:-1])
    ),
    "compressed without being asked": lambda s: (
        lambda h, d: h.answer(200, gzip.compress(d), {"Content-Encoding": "gzip"})
    ),
    "endless": lambda s: lambda h, d: endless(h),
    "no HTTP": lambda s: lambda h, d: raw(h, "\x00\x00garbage"),
    "a redirect to another path": lambda s: (
        lambda h, d: h.answer(302, b"", {"Location": "/internal"})
    ),
    "500": lambda s: lambda h, d: h.answer(500, b"no"),
    "403": lambda s: lambda h, d: h.answer(403, b"no"),
    "closes at once": lambda s: lambda h, d: setattr(h, "close_connection", True),
    "hangs": hang,
    "dribbles its head": lambda s: dribble(s, in_head=True),
    "dribbles its body": lambda s: dribble(s, in_head=False),
}


ROWS = {
    "204": ("32", "a server that answers with something else"),
    "a login page": ("32", "a server that answers with something else"),
    "no HTTP": ("32", "a server that answers with something else"),
    "500": ("33", "a server that fails"),
    "403": ("33", "a server that refuses"),
    "hangs": ("34", "a server that hangs or dribbles"),
    "dribbles its head": ("34", "a server that hangs or dribbles"),
    "dribbles its body": ("34", "a server that hangs or dribbles"),
    "compressed without being asked": ("35", "a server that sends more than was asked for"),
    "endless": ("35", "a server that sends more than was asked for"),
    "a redirect to another path": ("43", "a server that redirects"),
}
"""The lies that have a line of their own in the fault table."""


def endless(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    handler.close_connection = True
    block = bytes(1 << 20)
    try:
        for _ in range(10_000):
            handler.wfile.write(block)
    except OSError:
        return


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict[str, bytes]]:
    """A built checkout, and what an honest server then has."""
    state = State()
    with server(state) as url:
        a = checkout(tmp_path_factory.mktemp("right") / "a", url)
        a.make()
    return a, dict(state.objects)


def assert_right(b: Checkout, a: Checkout) -> None:
    assert b.digests() == a.digests()
    assert corrupt_blobs(b.store) == []
    assert records_without_bytes(b.store) == []


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("of", ["ac", "cas"])
def test_lie_is_a_miss_and_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    right: tuple[Checkout, dict[str, bytes]],
    name: str,
    of: str,
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.6)
    a, honest = right
    state = State(dict(honest))
    lie = LIES[name](state)
    state.lie = lambda h, d: lie(h, d) if h.path.startswith(f"/{of}/") else h.answer(200, d)
    with server(state) as url:
        b = checkout(tmp_path / "b", url)
        began = time.monotonic()
        outcomes = b.make()
        assert time.monotonic() - began < 10
        state.over.set()
    assert outcomes["final"] == "built"
    assert state.fired > 0
    [warning] = b.warnings()
    assert warning.startswith(f"the remote `{url}` ")
    row, fault = ROWS.get(name, ("31", "a server that lies"))
    report(row, f"{fault}: {of}, {name}", fired=state.fired, bad=0)
    assert state.other_hits == 0
    assert_right(b, a)
    assert {p for p, d in state.objects.items() if honest.get(p) != d} <= {
        path
        for path in honest
        if path.startswith("/ac/")  # a record may have been sent anew
    }


def test_honest_server_is_believed(
    tmp_path: Path, right: tuple[Checkout, dict[str, bytes]]
) -> None:
    """The control of the rows above: without a lie nothing is built."""
    a, honest = right
    with server(State(dict(honest))) as url:
        b = checkout(tmp_path / "b", url)
        assert "built" not in b.make().values()
        assert b.warnings() == []
    assert_right(b, a)


WRITES: dict[str, tuple[Callable[[Handler], None], str]] = {
    "read-only": (lambda h: refuse(h, 405), "takes no results (the server says 405 Method Not"),
    "forbidden": (lambda h: refuse(h, 403), "takes no results (the server says 403 Forbidden)"),
    "full": (lambda h: refuse(h, 507), "takes no results (the server says 507 Insufficient"),
    "too large": (lambda h: refuse(h, 413), "takes no results (the server says 413"),
    "broken": (lambda h: refuse(h, 500), "did not take a result (the server says 500"),
    "busy": (lambda h: refuse(h, 503), "did not take a result (the server says 503"),
    "drops": (lambda h: setattr(h, "close_connection", True), "did not take a result ("),
}


def refuse(handler: Handler, status: int) -> None:
    handler.rfile.read(int(handler.headers["Content-Length"]))
    handler.answer(status)


@pytest.mark.parametrize("name", WRITES)
def test_server_that_takes_nothing_costs_one_warning(
    tmp_path: Path, right: tuple[Checkout, dict[str, bytes]], name: str
) -> None:
    a, _ = right
    state = State(writes=WRITES[name][0])
    with server(state) as url:
        b = checkout(tmp_path / "b", url)
        began = time.monotonic()
        assert set(b.make().values()) == {"built"}
        assert time.monotonic() - began < 15
    assert state.fired > 0
    assert any(WRITES[name][1] in w for w in b.warnings()), b.warnings()
    assert len(b.warnings()) == 1
    report("33", f"a server that takes nothing: {name}", fired=state.fired, bad=0)
    assert state.objects == {}
    assert_right(b, a)


def test_server_that_loses_what_it_takes_gives_no_record_without_blobs(
    tmp_path: Path, right: tuple[Checkout, dict[str, bytes]]
) -> None:
    """Cut at each request in turn: a record is there only if all its blobs are."""
    _, honest = right
    num_puts = len(honest)
    fired = 0
    for number in range(0, num_puts, 8):
        state = State()
        seen: list[str] = []

        def limited(handler: Handler, state: State = state, seen: list[str] = seen,
                    number: int = number) -> None:  # fmt: skip
            data = handler.rfile.read(int(handler.headers["Content-Length"]))
            seen.append(handler.path)
            if len(seen) <= number:
                state.objects[handler.path] = data
                handler.answer(201)
            else:
                handler.close_connection = True

        state.writes = limited
        with server(state) as url:
            checkout(tmp_path / f"b{number}", url).make()
        fired += len(seen) > number
        for path in state.objects:
            if path.startswith("/ac/"):
                assert blobs_of(state.objects, path) <= state.objects.keys()
    assert fired == len(range(0, num_puts, 8))
    report("38", "an upload is cut at a request", fired=fired, bad=0)


def blobs_of(objects: dict[str, bytes], path: str) -> set[str]:
    from remote_kit import TYPES

    result = TYPES["ActionResult"].FromString(objects[path])
    names = {f"/cas/{f.digest.hash}" for f in result.output_files if f.digest.size_bytes}
    for directory in result.output_directories:
        name = f"/cas/{directory.tree_digest.hash}"
        tree = TYPES["Tree"].FromString(objects.get(name, b""))
        names |= {name, *(f"/cas/{f.digest.hash}" for f in tree.root.files)}
    return names


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:{port}/x", "nothing listens there"),
        ("http://no-such-host.invalid/x", "its name cannot be resolved"),
        ("https://127.0.0.1:{port}/x", "nothing listens there"),
    ],
)
def test_no_server_costs_one_line(
    tmp_path: Path, right: tuple[Checkout, dict[str, bytes]], address: str, why: str
) -> None:
    a, _ = right
    url = address.format(port=free_port())
    b = checkout(tmp_path / "b", url)
    began = time.monotonic()
    assert set(b.make().values()) == {"built"}
    assert time.monotonic() - began < 10
    report("37", f"no server: {why}", fired=1, bad=0)
    assert b.warnings() == [f"the remote `{url}` cannot be used ({why}): going on without it"]
    assert_right(b, a)


@pytest.mark.fault("44", "a server that speaks no TLS")
def test_tls_is_verified(tmp_path: Path, right: tuple[Checkout, dict[str, bytes]]) -> None:
    with server(State()) as url:  # it speaks no TLS at all
        b = checkout(tmp_path / "b", url.replace("http:", "https:"))
        assert set(b.make().values()) == {"built"}
        [warning] = b.warnings()
        assert "cannot be used (TLS failed: " in warning


@pytest.mark.fault("45", "nginx that takes nothing above 10 kB")
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_that_only_reads_and_one_that_takes_nothing_large(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx") as full:
        a = checkout(tmp_path / "a", full.url)
        a.make()
    with nginx(tmp_path / "nginx", can_write=False) as mirror:
        b = checkout(tmp_path / "b", mirror.url)
        assert "built" not in b.make().values()
        assert b.warnings() == []
        assert b.make("big", force=("big",))["big"] == "built"
        assert b.warnings() == []  # the same result is there, so nothing has to be written
        (b.root / "raw.txt").write_text("other\n")
        b.make()
        [warning] = b.warnings()
        assert "takes no results (the server says 405 Not Allowed)" in warning
    with nginx(tmp_path / "small", max_body="10k") as small:
        c = checkout(tmp_path / "c", small.url)
        c.make()
        [warning] = c.warnings()
        assert "takes no results (the server says 413 " in warning


def test_after_a_few_failures_nobody_is_asked(
    tmp_path: Path, right: tuple[Checkout, dict[str, bytes]]
) -> None:
    state = State(lie=lambda h, d: h.answer(500))
    hits: list[str] = []
    state.objects = dict(right[1])
    original = state.lie
    assert original is not None

    def counted(handler: Handler, data: bytes) -> None:
        hits.append(handler.path)
        original(handler, data)

    state.lie = counted
    text = '[project]\nname = "many"\n' + "".join(
        f'[command.t{n}]\nrun = "echo {n} > $out/f"\n' for n in range(30)
    )
    with server(state) as url:
        a = checkout(tmp_path / "a", url)
        (a.root / "FTBUILD.toml").write_text(text)
        a.make(*(f"t{n}" for n in range(30)))
        state.lie = counted
        b = checkout(tmp_path / "b", url)
        (b.root / "FTBUILD.toml").write_text(text)
        hits.clear()
        assert set(b.make(*(f"t{n}" for n in range(30))).values()) == {"built"}
    assert len(hits) <= 3 * (5 + 8)  # five failures, and what eight threads had begun by then
    assert len(b.warnings()) == 1


def test_interrupt_does_not_wait_for_a_server_that_hangs(
    tmp_path: Path, right: tuple[Checkout, dict[str, bytes]]
) -> None:
    state = State(dict(right[1]))
    asked = threading.Event()

    def wait(handler: Handler, _: bytes) -> None:
        asked.set()
        state.over.wait(60)

    state.lie = wait
    with server(state) as url:
        b = checkout(tmp_path / "b", url)
        environment = {
            **os.environ,
            **b.environment,
            "FTBUILD_CACHE": str(b.store),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, "-m", "ftbuild", "make"]
        with subprocess.Popen(
            command, cwd=b.root, env=environment, stderr=subprocess.DEVNULL
        ) as process:
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(8) == 130  # STALL_S is 10


def test_canary_secrets_are_in_no_output(tmp_path: Path) -> None:
    state = State(lie=lambda h, d: h.answer(403), writes=lambda h: refuse(h, 403))
    seen: list[str | None] = []

    def note(handler: Handler) -> None:
        seen.append(handler.headers.get("Authorization"))
        refuse(handler, 403)

    state.writes = note
    with server(state) as url:
        address = url.replace("://", "://me:k4n4r1-1@") + "?sig=canary-2"
        b = checkout(tmp_path / "b", address, {"FTBUILD_REMOTE_TOKEN": "k4n4r1-3"})
        b.make()
        assert b.warnings() != []
        said = repr(b.events)
    assert seen
    assert all(header is not None and header.startswith("Basic ") for header in seen)
    assert "k4n4r1" not in said
    found = [
        path for path in tmp_path.rglob("*") if path.is_file() and b"k4n4r1" in path.read_bytes()
    ]
    assert found == []


def test_http_client_alone_would_take_a_cut_body(
    right: tuple[Checkout, dict[str, bytes]],
) -> None:
    """The control of the rows on length: the library by itself does not mind."""
    state = State(dict(right[1]))
    state.lie = lambda h, d: raw(h, "200 OK", d[:-1])
    path = next(iter(state.objects))
    with server(state) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", path)
        is_taken = connection.getresponse().read() == state.objects[path][:-1]
        report("31", "a server that lies: cut short", control_red=is_taken)
        assert is_taken
        connection.close()
