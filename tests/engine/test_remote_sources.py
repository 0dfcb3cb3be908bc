"""Files from the web and from buckets: pinned by content, believed in nothing."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.space import Space
from ftbuild.digest import hash_bytes
from ftbuild.errors import FtbuildError
from ftbuild.events import Finished
from ftbuild.sources import download, web
from ftbuild.sources import server as server_module
from remote_kit import s3

COPY = '[command.copy]\nrun = "cat $data > $out/data"\nsrcs = { data = "%s" }\n'
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """A server on loopback that answers as a test wants."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def gives(self, path: str, content: bytes, *, length: int | None = None) -> str:
        """Answer `path` with `content`, announced as `length` bytes."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content) if length is None else length))
            handler.end_headers()
            handler.wfile.write(content)

        self.answers[path] = answer
        return self.url + path

    def redirects(self, path: str, to: str) -> str:
        """Answer `path` with another address."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", to)
            handler.end_headers()

        self.answers[path] = answer
        return self.url + path

    def streams(self, path: str, released: threading.Event) -> str:
        """Answer `path` with bytes that do not end before the client has gone."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.protocol_version = "HTTP/1.1"
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            try:
                while not released.is_set():
                    handler.wfile.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            except OSError:
                pass

        self.answers[path] = answer
        return self.url + path


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            answer = found.answers.get(self.path)
            if answer is None:
                self.send_error(404)
            else:
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        found.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield found
        running.shutdown()
        thread.join()


def copied(space: Space) -> bytes:
    return (space.root / "ftbuild-out" / "copy" / "data").read_bytes()


def fetch(url: str, directory: Path) -> list[tuple[str, int, str]]:
    directory.mkdir(exist_ok=True)
    room = nullcontext(directory)
    pin = web.resolve(url, lambda _: room, lambda path: hash_bytes(path.read_bytes()))
    return [(file.path, file.size, file.sha256) for file in pin.files]


def failure(url: str, directory: Path) -> str:
    with pytest.raises(FtbuildError) as caught:
        fetch(url, directory)
    return caught.value.render().replace(url, "URL")


def test_file_of_the_web_is_pinned_by_its_content(space: Space, server: Server) -> None:
    url = server.gives("/rows.jsonl.gz?v=1", b"one")
    space.manifest(COPY % url)
    assert space.make() == ["copy"]
    assert copied(space) == b"one"
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    lock = (space.root / "FTBUILD.lock").read_text()
    assert f'path = "file.jsonl.gz"\nsize = 3\nsha256 = "{digest}"' in lock
    server.gives("/rows.jsonl.gz?v=1", b"two")
    assert space.make() == []
    assert server.asked == ["/rows.jsonl.gz?v=1"]
    with space.open() as project:
        project.lock(upgrade=(url,))
    assert space.make() == ["copy"]
    assert copied(space) == b"two"


def test_other_bytes_than_the_lock_says_are_refused(
    space: Space, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.gives("/data", b"one")
    space.manifest(COPY % url)
    space.make()
    server.gives("/data", b"lie")
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "another store"))
    assert space.build().exit_code == 4
    (failed,) = [event for event in space.events if isinstance(event, Finished)]
    assert str(failed.error).startswith(f"error[E0602]: `{url}` is not what the lock says")


def test_files_of_several_places_are_one_source(space: Space, server: Server) -> None:
    space.write("a.txt", "a")
    url = server.gives("/b.txt", b"b")
    space.manifest(
        '[command.copy]\nrun = "cat $data/*/* > $out/data; cd $data; echo */* > $out/names"\n'
        f'srcs = {{ data = ["{url}", "a.txt"] }}\n'
    )
    space.make()
    assert copied(space) == b"ba"
    names = (space.root / "ftbuild-out" / "copy" / "names").read_text()
    assert names == "00000/file.txt 00001/file.txt\n"


def test_redirect_within_the_host_is_followed(server: Server, tmp_path: Path) -> None:
    server.gives("/new.csv", b"one")
    url = server.redirects("/old.csv", "/new.csv")
    assert fetch(url, tmp_path) == [("file.csv", 3, hash_bytes(b"one"))]


@pytest.mark.fault("43", "a source that redirects to another host")
def test_redirect_to_another_host_is_refused(server: Server, tmp_path: Path) -> None:
    url = server.redirects("/data", "http://localhost:1/data")
    assert failure(url, tmp_path) == (
        "error[E0451]: `URL` cannot be had\n"
        "  why: it is redirected to http://localhost:1; if you trust that, name it\n"
        "  fix: open the address in a browser: is it there, and is the network?"
    )


@pytest.mark.fault("34", "a source without end")
def test_stream_without_end_is_bounded_in_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 100_000)
    released = threading.Event()
    message = failure(server.streams("/data", released), tmp_path)
    released.set()
    assert "why: more than 100,000 bytes came" in message


@pytest.mark.fault("34", "a source without end")
def test_stream_without_end_is_bounded_in_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_S", 0.1)
    released = threading.Event()
    began = time.monotonic()
    message = failure(server.streams("/data", released), tmp_path)
    released.set()
    assert "why: it takes too long" in message
    assert time.monotonic() - began < 10


@pytest.mark.fault("34", "a source that says nothing")
def test_server_that_says_nothing_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "WAIT_S", 0.1)
    monkeypatch.setattr(download, "PAUSES_S", ())
    released = threading.Event()
    server.answers["/data"] = lambda _: released.wait(10) and None
    message = failure(server.url + "/data", tmp_path)
    released.set()
    assert "why: timed out" in message


def test_absent_file_is_an_error(server: Server, tmp_path: Path) -> None:
    assert "why: the server says 404 Not Found" in failure(server.url + "/absent", tmp_path)


@pytest.mark.fault("44", "a source whose address is not safe")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/data", "would come over an open connection"),
        ("https://me:secret@example.org/data", "holds a user or a password"),
    ],
)
def test_address_that_is_not_safe_is_refused(url: str, message: str, tmp_path: Path) -> None:
    found = failure(url, tmp_path)
    assert found.startswith("error[E0450]")
    assert message in found
    assert "secret" not in found


def test_bucket_files_are_pinned_and_a_pattern_is_sorted(space: Space) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/b.jsonl": b"b", "/bucket/a.jsonl": b"a", "/bucket/c.txt": b"c"})
    space.manifest(
        '[command.copy]\nrun = "cat $data/* > $out/data"\n'
        'srcs = { data = "memory://bucket/*.jsonl" }\n'
    )
    assert space.make() == ["copy"]
    assert copied(space) == b"ab"
    memory.pipe("/bucket/a.jsonl", b"A")
    assert space.make() == []
    with space.open() as project:
        project.lock(upgrade=("memory://bucket/*.jsonl",))
    assert space.make() == ["copy"]
    assert copied(space) == b"Ab"
    memory.rm("/bucket", recursive=True)


def test_bucket_address_of_nothing_is_an_error(space: Space) -> None:
    pytest.importorskip("fsspec")
    space.manifest(COPY % "memory://none/*.jsonl")
    with pytest.raises(FtbuildError) as caught:
        space.build()
    assert caught.value.problems[0].code == "E0461"
    assert "why: nothing is there: the pattern matches no file" in caught.value.render()


S3_ROWS = {"team/rows/b.jsonl": b"b\n", "team/rows/a.jsonl": b"a\n" * 800_000}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real S3 server with two files, reached by the environment."""
    with s3() as environment:
        put_in_s3(monkeypatch, environment)
        yield


def put_in_s3(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    import obstore
    from obstore.store import from_url

    store = from_url("s3://team", client_options={"allow_http": True})
    for path, content in S3_ROWS.items():
        obstore.put(store, path.removeprefix("team/"), content, use_multipart=False)


def failure_of(space: Space, address: str) -> str:
    space.manifest(COPY % address)
    with pytest.raises(FtbuildError) as caught:
        space.build()
    found = caught.value.render()
    assert "a-canary-secret" not in found
    return found


@pytest.mark.usefixtures("bucket")
def test_files_of_s3_are_pinned_until_asked_for_anew(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.manifest(
        '[command.copy]\nrun = "cat $data/* > $out/data"\n'
        'srcs = { data = "s3://team/rows/*.jsonl" }\n'
    )
    assert space.make() == ["copy"]
    assert copied(space) == b"a\n" * 800_000 + b"b\n"
    lock = (space.root / "FTBUILD.lock").read_text()
    assert (
        f'path = "00001.jsonl"\nsize = 2\nsha256 = "{hash_bytes(b"b" + chr(10).encode())}"' in lock
    )
    monkeypatch.setitem(S3_ROWS, "team/rows/b.jsonl", b"B\n")
    put_in_s3(monkeypatch, {})
    assert space.make() == []
    with space.open() as project:
        project.lock(upgrade=("s3://team/rows/*.jsonl",))
    assert space.make() == ["copy"]
    assert copied(space).endswith(b"a\nB\n")


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("s3://team/rows/c.jsonl", "nothing is there: rows/c.jsonl"),
        ("s3://team/rows/*.csv", "nothing is there: the pattern matches no file"),
        (
            "s3://absent/rows.jsonl",
            "the server says NoSuchBucket: The specified bucket does not exist",
        ),
        (
            "s3://absent/*.jsonl",
            "the server says NoSuchBucket: The specified bucket does not exist",
        ),
    ],
)
def test_what_s3_has_not_is_an_error(space: Space, address: str, why: str) -> None:
    assert failure_of(space, address) == (
        f"error[E0461]: `{address}` cannot be had\n"
        f"  why: {why}\n"
        "  fix: check the address and your credentials"
    )


def test_s3_that_refuses_the_credentials_is_an_error(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3(open_calls=1 + len(S3_ROWS)) as environment:
        put_in_s3(monkeypatch, environment)
        found = failure_of(space, "s3://team/rows/a.jsonl")
    assert found.startswith("error[E0461]: `s3://team/rows/a.jsonl` cannot be had\n")
    assert "  fix: give credentials that may read it, for S3 in AWS_ACCESS_KEY_ID and" in found


def test_address_of_a_library_that_is_missing_names_it(space: Space) -> None:
    found = failure_of(space, "oci://bucket/rows.jsonl")
    assert "fix: pip install 'ftbuild[remote,fsspec]', or fsspec and its library for" in found
