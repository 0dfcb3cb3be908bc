"""What `make` prints where there is no terminal."""

import io
import threading

import pytest

from ftbuild.cli.plain import Detail, PlainReporter, annotation
from ftbuild.errors import Place
from ftbuild.events import Event, Finished, Progress, Started, Summary, Warned

BUILD: list[Event] = [
    Finished("smol", "fresh"),
    Started("chats", "dataset", "data/chats.jsonl changed"),
    Progress("chats", 1, 2),
    Warned("chats", "row 3 is empty"),
    Finished("chats", "built", digest="a" * 64, seconds=1.5),
    Finished("tokens", "fresh", cut_off=True),
    Started("helper", "sft"),
    Finished(
        "helper",
        "failed",
        seconds=2.0,
        error="error[E0801]: no trainable token\n  --> data/chats.jsonl:7",
        where=Place("data/chats.jsonl", 7),
        log_tail=("loading", "::error::boom"),
    ),
    Finished("merged", "skipped", error="needs `helper`, which failed"),
    Summary(1, 2, 0, 1, 1, cut_off=1, seconds=3.5, saved_s=60.0),
]
FAILURE = """\
error[E0801]: no trainable token
  --> data/chats.jsonl:7
  log: ftbuild log helper
  the end of the log of helper:
  | loading
  | ::error::boom
"""
WARNING = "warning: chats: row 3 is empty\n"
SUMMARY = "failed 1, skipped 1, built 1, reused 1, cut off 1 in 3.50s; saved 1m00s\n"
CHANGES = f"""\
[ftbuild] chats: started (data/chats.jsonl changed)
[ftbuild] chats: built 1.50s (sha256:aaaaaaaaaaaa…)
[ftbuild] tokens: fresh (cut off)
[ftbuild] helper: started
[ftbuild] helper: failed after 2.00s
{FAILURE}[ftbuild] merged: skipped (needs `helper`, which failed)
{WARNING}{SUMMARY}"""
FAILED = "[ftbuild] helper: failed after 2.00s\n"


def printed(detail: Detail) -> str:
    stream = io.StringIO()
    with PlainReporter(stream, detail=detail) as reporter:
        for event in BUILD:
            reporter(event)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("TF_BUILD", raising=False)


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        (Detail.FAILURES, FAILED + FAILURE + WARNING),
        (Detail.SUMMARY, FAILED + FAILURE + WARNING + SUMMARY),
        (Detail.CHANGES, CHANGES),
        (Detail.ALL, "[ftbuild] smol: fresh\n" + CHANGES),
    ],
)
def test_each_level_tells_more(detail: Detail, expected: str) -> None:
    assert printed(detail) == expected


def test_on_github_a_failure_is_annotated_and_its_log_is_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert printed(Detail.SUMMARY) == (
        FAILED
        + "error[E0801]: no trainable token\n"
        + "  --> data/chats.jsonl:7\n"
        + "  log: ftbuild log helper\n"
        + "::error file=data/chats.jsonl,line=7,title=ftbuild%3A helper failed"
        + "::error[E0801]: no trainable token%0A  --> data/chats.jsonl:7\n"
        + "::group::the end of the log of helper\n"
        + "  | loading\n"
        + "  | ::error::boom\n"
        + "::endgroup::\n"
        + WARNING
        + SUMMARY
    )


def test_an_annotation_cannot_be_broken_out_of() -> None:
    event = Finished(
        "helper", "failed", error="100%\n::set-env::x\r", where=Place("a,b:c%.toml", None)
    )
    assert annotation(event) == (
        "::error file=a%2Cb%3Ac%25.toml,line=1,title=ftbuild%3A helper failed"
        "::100%25%0A::set-env::x^M"
    )


class Heard(io.StringIO):
    """Tells when a sign of life was printed."""

    def __init__(self) -> None:
        super().__init__()
        self.beat = threading.Event()

    def write(self, text: str) -> int:
        if "still running" in text:
            self.beat.set()
        return super().write(text)


def test_a_long_action_gives_signs_of_life_with_its_progress() -> None:
    stream = Heard()
    with PlainReporter(stream, detail=Detail.CHANGES, heartbeat_s=0.01) as reporter:
        reporter(Started("helper", "sft"))
        reporter(Progress("helper", 5, None, {"loss": 2.5}))
        assert stream.beat.wait(timeout=30)
        reporter(Finished("helper", "built", digest="b" * 64, seconds=1.0))
        after = len(stream.getvalue())
    lines = stream.getvalue()[:after].splitlines()
    assert lines[0] == "[ftbuild] helper: started"
    assert lines[1].startswith("[ftbuild] helper: still running, 0.")
    assert lines[1].endswith("s, step 5, loss 2.5")
    assert lines[-1] == "[ftbuild] helper: built 1.00s (sha256:bbbbbbbbbbbb…)"
    # Nothing runs any more, so nothing more was said.
    assert stream.getvalue()[after:] == ""
