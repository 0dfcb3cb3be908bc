"""Servers that lie, for files of the hub and of the web: nothing wrong is kept.

`Case` is a build that knows from the lock what the file is; `locking` one that has to find it out.
What came before a failure stays, and the next run asks for the rest.
"""

import hashlib
import json
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import file_server
from engine.space import Space
from file_server import COMMIT, Answer, FileServer, cut, honest, part, redirect, serve_model, whole
from ftbuild.events import Finished
from ftbuild.sources import download, server

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
CUT = 200_000
REST = f"bytes={CUT}-"
DIGEST = hashlib.sha256(DATA).hexdigest()
MODEL = {"config.json": b"{}", "model.safetensors": DATA, "tokenizer.json": b"a b"}
WEIGHTS = f"/org/toy/resolve/{COMMIT}/model.safetensors"
HUB = '[command.copy]\nrun = "cat $data/m* > $out/data"\nsrcs = { data = "hf:org/toy" }\n'
WEB = '[command.copy]\nrun = "cat $data > $out/data"\nsrcs = { data = "%s" }\n'
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def files() -> Iterator[FileServer]:
    with file_server.serving() as running:
        yield running


@contextmanager
def hub_at(url: str) -> Iterator[None]:
    """Be the hub for the client's library, which reads the environment once."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", "hf_secret")
        yield


class Case:
    """A target `copy` with one source, and the path of its large file."""

    def __init__(self, kind: str, space: Space, files: FileServer) -> None:
        self.space, self.files, self.kind = space, files, kind
        self.path = WEIGHTS if kind == "hub" else "/data.bin"
        self.spec = "hf:org/toy" if kind == "hub" else files.url + self.path
        serve_model(files, "org/toy", MODEL, ["model.safetensors"])
        files.gives("/data.bin", honest(DATA, etag='"a"'))
        space.manifest(HUB if kind == "hub" else WEB % self.spec)
        with space.open() as project:
            project.lock()
        self.forget()
        files.asked.clear()
        files.sent_bytes = 0

    def forget(self) -> None:
        """Remove what the lock has brought into the store, as on another machine."""
        blob = self.space.store / "v1" / "blobs" / DIGEST[:2] / DIGEST
        blob.unlink(missing_ok=True)

    def answers(self, *answers: Answer) -> None:
        self.files.gives(self.path, *answers)

    def built(self) -> bytes:
        assert self.space.make() == ["copy"]
        return (self.space.output("copy") / "data").read_bytes()

    def failed(self) -> tuple[int, str]:
        """Return exit code and message; nothing must be left of it but what can be gone on with."""
        result = self.space.build()
        [finished] = [event for event in self.space.events if isinstance(event, Finished)]
        assert not self.space.output("copy").exists()
        assert not list((self.space.store / "v1" / "actions").glob("*/*.json"))
        assert not (self.space.store / "v1" / "blobs" / DIGEST[:2] / DIGEST).exists()
        message = str(finished.error).replace(self.spec, "SPEC").replace(DIGEST, "DIGEST")
        return result.exit_code, message.replace(self.files.url, "URL")


@pytest.fixture(params=["hub", "web"])
def case(request: pytest.FixtureRequest, space: Space, files: FileServer) -> Iterator[Case]:
    with hub_at(files.url):
        yield Case(request.param, space, files)


def not_given(case: Case, why: str) -> tuple[int, str]:
    if case.kind == "web":
        return (
            5,
            f"error[E0451]: `SPEC` cannot be had\n  why: {why}\n"
            "  fix: open the address in a browser: is it there, and is the network?",
        )
    return (
        5,
        f"error[E0421]: the hub does not give `SPEC`\n  why: model.safetensors: {why}\n"
        "  fix: check the name and the network; for a private model set HF_TOKEN",
    )


def not_as_locked(why: str) -> tuple[int, str]:
    return (
        4,
        f"error[E0602]: `SPEC` is not what the lock says\n  why: {why}\n"
        "  fix: if the change upstream is meant: `ftbuild lock --upgrade 'SPEC'`, and "
        "`ftbuild plan` shows what that makes stale",
    )


# -- what breaks off


@pytest.mark.fault("31", "a source that breaks off")
@pytest.mark.parametrize("is_reset", [False, True])
def test_answer_that_breaks_off_is_gone_on_with_at_once(case: Case, is_reset: bool) -> None:
    case.answers(cut(DATA, CUT, is_reset=is_reset), honest(DATA))
    assert case.built() == DATA
    [first, second] = case.files.ranges(case.path)
    assert first is None
    # A reset throws away what the client had not read yet.
    assert second == REST or (is_reset and second is not None)


def test_next_run_goes_on_where_the_last_one_failed(case: Case) -> None:
    case.answers(cut(DATA, CUT), file_server.refusal(503))
    assert case.failed() == not_given(case, "the server says 503 Service Unavailable")
    case.answers(honest(DATA))
    case.files.asked.clear()
    case.files.sent_bytes = 0
    assert case.built() == DATA
    assert case.files.ranges(case.path) == [REST]
    assert case.files.sent_bytes == len(DATA) - CUT


def test_build_that_was_killed_goes_on_where_it_was(case: Case) -> None:
    reached = threading.Event()
    case.answers(file_server.held(DATA, CUT, reached))
    environment = {"HF_ENDPOINT": case.files.url, "NO_PROXY": "*"}
    process = case.space.start("make", env=environment)
    assert reached.wait(30)
    scratch = case.space.store / "v1" / "scratch"
    pause = threading.Event()
    while sum(path.stat().st_size for path in scratch.glob("*/part")) < CUT:
        assert not pause.wait(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    case.answers(honest(DATA))
    case.files.asked.clear()
    assert case.built() == DATA
    assert case.files.ranges(case.path) == [REST]


def test_server_without_ranges_gives_all_again(case: Case) -> None:
    case.answers(cut(DATA, CUT), whole(DATA))
    assert case.built() == DATA
    assert case.files.ranges(case.path) == [None, REST]


def test_truncation_again_and_again_is_an_error(case: Case) -> None:
    case.answers(cut(DATA, 1000))
    why = "300,000 bytes were announced and 1,000 came"
    assert case.failed() == not_given(case, why)
    assert case.files.ranges(case.path) == [None, "bytes=1000-", "bytes=1000-"]


def test_file_that_came_whole_before_a_kill_is_not_asked_for(case: Case) -> None:
    case.answers(cut(DATA, CUT), file_server.refusal(503))
    case.failed()
    [came] = (case.space.store / "v1" / "scratch").glob("*/part")
    came.write_bytes(DATA)
    case.files.asked.clear()
    assert case.built() == DATA
    assert case.files.ranges(case.path) == []


# -- what is not the file


@pytest.mark.fault("31", "a source with wrong bytes")
def test_wrong_bytes_are_refused(case: Case) -> None:
    case.answers(whole(OTHER))
    found = hashlib.sha256(OTHER).hexdigest()
    why = f"it has the sha256 {found} and should have DIGEST"
    assert case.failed() == not_as_locked(why)
    assert not list((case.space.store / "v1" / "scratch").glob("*/part"))


@pytest.mark.fault("31", "a source with a wrong size")
def test_wrong_size_is_refused_unread(case: Case) -> None:
    case.answers(file_server.announcing(10**15))
    why = "it has 1,000,000,000,000,000 bytes and should have 300,000"
    assert case.failed() == not_as_locked(why)


@pytest.mark.fault("32", "a source that gives a page")
def test_page_with_status_200_is_refused(case: Case) -> None:
    case.answers(whole(PAGE, kind="text/html; charset=utf-8"))
    assert case.failed() == not_as_locked("it has 57 bytes of a page and should have 300,000")


@pytest.mark.fault("35", "a source without end")
def test_body_without_end_is_refused_at_the_size_of_the_file(case: Case) -> None:
    case.answers(file_server.endless)
    assert case.failed() == not_as_locked("more than the 300,000 bytes came that it should have")


# -- what is the wrong rest


@pytest.mark.fault("31", "a source with a wrong range")
@pytest.mark.parametrize(
    "given",
    [
        "bytes 100000-299999/300000",
        f"bytes {CUT}-299999/400000",
        f"bytes {CUT}-199999/300000",
        f"bytes {CUT}-299999/*",
        "bytes */300000",
        "",
    ],
)
def test_wrong_range_makes_it_begin_anew(case: Case, given: str) -> None:
    case.answers(cut(DATA, CUT), part(DATA[CUT:], given), honest(DATA))
    assert case.built() == DATA
    assert case.files.ranges(case.path) == [None, REST, None]


def test_file_that_changed_between_the_parts_is_fetched_once_more(case: Case) -> None:
    rest = f"bytes {CUT}-299999/300000"
    case.answers(cut(OTHER, CUT), part(DATA[CUT:], rest), honest(DATA))
    assert case.built() == DATA
    assert case.files.ranges(case.path) == [None, REST, None]


def test_file_that_changed_for_good_is_fetched_once_more_and_refused(case: Case) -> None:
    case.answers(cut(DATA, CUT), honest(OTHER))
    found = hashlib.sha256(OTHER).hexdigest()
    assert case.failed() == not_as_locked(f"it has the sha256 {found} and should have DIGEST")
    assert case.files.ranges(case.path) == [None, REST, None]


@pytest.mark.fault("31", "a source with a part that nobody asked for")
def test_part_nobody_asked_for_is_refused(case: Case) -> None:
    case.answers(part(DATA, "bytes 0-299999/300000"))
    assert case.failed() == not_given(case, "the server says 206 Partial Content")


# -- who dawdles


@pytest.mark.parametrize("answer", [file_server.dripping, file_server.dripping_headers])
def test_server_that_drips_is_left(
    case: Case, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WAIT_S", 0.2)
    case.answers(answer)
    code, message = case.failed()
    assert (code, message) in (
        not_given(case, "it gives less than 65,536 bytes in 0.2 s"),
        not_given(case, "timed out"),
    )


# -- where it leads


def test_token_goes_to_the_hub_and_nowhere_else(space: Space, files: FileServer) -> None:
    with file_server.serving() as elsewhere, hub_at(files.url):
        case = Case("hub", space, files)
        there = elsewhere.gives("/blob", cut(DATA, CUT), honest(DATA))
        case.answers(redirect("/moved"))
        files.gives("/moved", redirect(there))
        assert case.built() == DATA
        assert {one.token for one in files.asked} == {"Bearer hf_secret"}
        assert [(one.token, one.range) for one in elsewhere.asked] == [(None, None), (None, REST)]


def test_token_is_not_sent_for_files_of_the_web(files: FileServer, space: Space) -> None:
    with hub_at(files.url):
        case = Case("web", space, files)
        assert case.built() == DATA
        assert {one.token for one in files.asked} == {None}


@pytest.mark.fault("43", "a source that redirects to no server")
@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("ftp://example.org/data", "it is redirected to ftp://example.org, an open connection"),
        (
            "file:///etc/passwd",
            "the server says 302 Found - Redirection to url 'file:///etc/passwd' is not allowed",
        ),
    ],
)
def test_redirect_to_no_server_is_refused(case: Case, to: str, why: str) -> None:
    case.answers(redirect(to))
    assert case.failed() == not_given(case, why)


@pytest.mark.fault("43", "a source that redirects in a circle")
def test_redirects_in_a_circle_end(case: Case) -> None:
    case.answers(redirect(case.path))
    code, message = case.failed()
    assert code == 5
    assert "why: " in message
    assert "the server says 302" in message


# -- before anything is known


def locking(space: Space, files: FileServer, *answers: Answer) -> str:
    url = files.gives("/data.bin", *answers)
    space.manifest(WEB % url)
    message = space.failed().replace(url, "SPEC").replace(files.url, "URL")
    assert not (space.root / "FTBUILD.lock").exists()
    assert not list((space.store / "v1" / "blobs").glob("*/*"))
    return message


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (whole(PAGE), "it gives an HTML page instead of the file"),
        (whole(b"\n<!-- proxy --> <HTML>"), "it gives an HTML page instead of the file"),
        (cut(DATA, 10), "300,000 bytes were announced and 10 came"),
        (
            file_server.unbounded(DATA),
            "it does not say how long the file is, so nothing tells whether all came",
        ),
        (
            file_server.announcing(2**41),
            "it has 2,199,023,255,552 bytes, more than 1,099,511,627,776",
        ),
        (file_server.refusal(401), "the server says 401 Unauthorized"),
    ],
)
def test_file_is_not_locked_by_what_a_server_gives_instead(
    space: Space, files: FileServer, answer: Answer, why: str
) -> None:
    assert locking(space, files, answer) == (
        f"exit 5\nerror[E0451]: `SPEC` cannot be had\n  why: {why}\n"
        "  fix: open the address in a browser: is it there, and is the network?"
    )


def test_compressed_answer_is_refused(space: Space, files: FileServer) -> None:
    def answer(handler: file_server.Handler) -> None:
        handler.head(200, {"Content-Length": "3", "Content-Encoding": "br"})
        handler.body(b"abc")

    assert "why: it is compressed (br), which was not asked for" in locking(space, files, answer)


def pinned(space: Space, files: FileServer, *answers: Answer) -> bytes:
    url = files.gives("/data.bin", *answers)
    space.manifest(WEB % url)
    assert space.make() == ["copy"]
    return (space.output("copy") / "data").read_bytes()


def test_rest_is_taken_only_of_the_file_that_the_tag_names(space: Space, files: FileServer) -> None:
    first = cut(OTHER, CUT, etag='"old"')
    assert pinned(space, files, first, honest(DATA, etag='"new"')) == DATA
    asked = [(one.range, one.if_range) for one in files.asked]
    assert asked == [(None, None), (REST, '"old"')]


def test_rest_of_another_file_is_not_taken(space: Space, files: FileServer) -> None:
    rest = part(DATA[CUT:], f"bytes {CUT}-299999/300000", etag='"new"')
    assert pinned(space, files, cut(OTHER, CUT, etag='"old"'), rest, honest(DATA)) == DATA
    assert files.ranges("/data.bin") == [None, REST, None]


@pytest.mark.parametrize("etag", [None, 'W/"old"'])
def test_file_without_a_strong_tag_begins_anew(
    space: Space, files: FileServer, etag: str | None
) -> None:
    assert pinned(space, files, cut(OTHER, CUT, etag=etag), honest(DATA)) == DATA
    assert files.ranges("/data.bin") == [None, None]


def test_locking_goes_on_where_the_last_run_failed(space: Space, files: FileServer) -> None:
    locking(space, files, cut(DATA, CUT, etag='"a"'), file_server.refusal(503))
    files.asked.clear()
    assert pinned(space, files, honest(DATA, etag='"a"')) == DATA
    assert files.ranges("/data.bin") == [REST]


def test_bytes_of_before_a_restart_of_the_machine_are_not_gone_on_with(
    space: Space, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    locking(space, files, cut(OTHER, CUT, etag='"a"'), file_server.refusal(503))
    files.asked.clear()
    monkeypatch.setattr(download, "_boot", lambda: "another")
    assert pinned(space, files, honest(DATA, etag='"a"')) == DATA
    assert files.ranges("/data.bin") == [None]


# -- a digest in the address


def test_digest_in_the_address_is_held(space: Space, files: FileServer) -> None:
    url = files.gives("/data.bin", whole(OTHER))
    space.manifest(WEB % f"{url}#sha256={DIGEST}")
    found = hashlib.sha256(OTHER).hexdigest()
    assert space.failed() == (
        f"exit 4\nerror[E0604]: `{url}#sha256={DIGEST}` is not the file that the address names\n"
        f"  why: it has the sha256 {found} and should have {DIGEST}\n"
        "  fix: if the change is meant, write its sha256 into the address"
    )


def test_digest_in_the_address_lets_it_be_redirected(space: Space, files: FileServer) -> None:
    with file_server.serving() as elsewhere:
        there = elsewhere.gives("/blob", whole(DATA))
        url = files.gives("/data.bin", redirect(there))
        space.manifest(WEB % f"{url}#sha256={DIGEST}")
        assert space.make() == ["copy"]
        space.manifest(WEB % url)
        assert f"why: it is redirected to {elsewhere.url}; if you trust that, name it" in (
            space.failed()
        )


def test_digest_that_is_none_is_refused(space: Space, files: FileServer) -> None:
    space.manifest(WEB % f"{files.url}/data.bin#sha256=abc")
    assert space.failed() == (
        "exit 2\nerror[E0450]: `#sha256=abc` is no digest\n"
        "  fix: write https://HOST/PATH#sha256=, with 64 hex digits in lower case"
    )


# -- what the hub says of its files


def hub_says(space: Space, files: FileServer, answer: Answer) -> str:
    serve_model(files, "org/toy", MODEL, ["model.safetensors"])
    files.gives("/api/models/org/toy/revision/main", answer)
    space.manifest(HUB)
    with hub_at(files.url):
        message = space.failed()
    assert not (space.root / "FTBUILD.lock").exists()
    return message


def said(**facts: object) -> Answer:
    one = {"rfilename": "config.json", "size": 2, "blobId": None, **facts}
    return whole(json.dumps({"sha": COMMIT, "siblings": [one]}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        whole(PAGE),
        whole(b"[" * 100_000),
        whole(b'{"sha": "main", "siblings": []}'),
        said(rfilename="../../../etc/passwd"),
        said(rfilename="/etc/passwd"),
        said(rfilename="a\\b"),
        said(size=-1),
        said(lfs={"sha256": "none", "size": 2}),
    ],
)
def test_listing_that_is_none_is_refused(space: Space, files: FileServer, answer: Answer) -> None:
    assert hub_says(space, files, answer) == (
        "exit 5\nerror[E0421]: the hub does not give `hf:org/toy`\n"
        "  why: what it answers is no list of files of a commit\n"
        "  fix: check the name and the network; for a private model set HF_TOKEN"
    )


def test_listing_without_end_is_refused(
    space: Space, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_ASKED_BYTES", 100_000)
    message = hub_says(space, files, file_server.endless)
    assert "why: it answers with more than 100,000 bytes" in message


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[]", "git names it {found}, and it should be {wanted}"),
        (PAGE, "it has 57 bytes of a page and should have 2"),
        (b"", "it has 0 bytes and should have 2"),
    ],
)
def test_small_file_that_is_not_what_the_listing_says(
    space: Space, files: FileServer, content: bytes, why: str
) -> None:
    serve_model(files, "org/toy", MODEL, ["model.safetensors"])
    kind = "text/html" if content == PAGE else None
    files.gives(f"/org/toy/resolve/{COMMIT}/config.json", whole(content, kind=kind))
    space.manifest(HUB)
    with hub_at(files.url):
        message = space.failed()
    names = {
        key: hashlib.sha1(b"blob 2\0" + data).hexdigest()
        for key, data in (("found", b"[]"), ("wanted", b"{}"))
    }
    assert message == (
        "exit 4\nerror[E0604]: `config.json` of `hf:org/toy` is not what the hub says of it\n"
        f"  why: {why.format(**names)}\n"
        "  fix: something between here and the hub changes what comes: a proxy, a mirror"
    )
    assert not (space.root / "FTBUILD.lock").exists()


def test_two_targets_fetch_a_file_once(space: Space, files: FileServer) -> None:
    case = Case("web", space, files)
    other = (WEB % case.spec).replace("command.copy", "command.b").replace("cat", "cat -u")
    space.manifest(WEB % case.spec + "\n" + other)
    assert sorted(space.make()) == ["b", "copy"]
    assert files.ranges("/data.bin") == [None]


def test_switch_of_the_hubs_own_client_is_heard(space: Space, files: FileServer) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    space.manifest(HUB)
    with hub_at(files.url), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "why: HF_HUB_OFFLINE is set" in space.failed()
    assert files.asked == []
