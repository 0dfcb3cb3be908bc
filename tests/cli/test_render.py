"""Events and quantities in words."""

import pytest

from ftbuild.cli import render
from ftbuild.cli.terminal import Line
from ftbuild.events import Finished, Progress, Summary, Warned
from ftbuild.plan import Reason


def text(line: Line) -> str:
    return "".join(span.text for span in line)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00s"),
        (0.184, "0.18s"),
        (9.994, "9.99s"),
        (9.996, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (842.0, "14m02s"),
        (3599.6, "1h00m"),
        (11_100.0, "3h05m"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert render.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_500_000_000, "1.5 GB"),
        (999_960, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert render.size(count) == shown


def test_summary_says_built_reused_cut_off_and_saved() -> None:
    summary = Summary(5, 5, 0, 0, 0, cut_off=2, seconds=190.2, saved_s=720.0)
    assert text(render.summary_line(summary)) == (
        "built 5, reused 3, cut off 2 in 3m10s; saved 12m00s"
    )


def test_summary_begins_with_what_failed() -> None:
    summary = Summary(0, 1, 2, 1, 3, cut_off=0, seconds=1.0, saved_s=0.2)
    assert text(render.summary_line(summary)) == (
        "failed 1, skipped 3, built 0, fetched 2, reused 1 in 1.00s"
    )


def test_summary_of_nothing_to_do() -> None:
    summary = Summary(0, 31, 0, 0, 0, cut_off=0, seconds=0.184, saved_s=900.0)
    assert text(render.summary_line(summary)) == "nothing to do (31 targets fresh, 0.18 s)"
    one = Summary(0, 1, 0, 0, 0, cut_off=0, seconds=0.0, saved_s=0.0)
    assert text(render.summary_line(one)) == "nothing to do (1 target fresh, 0.00 s)"


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (
            Finished("helper", "built", digest="ab12" * 16, seconds=842.0),
            "helper: built 14m02s (sha256:ab12ab12ab12…)",
        ),
        (
            Finished("chat_tokens", "built", digest="c" * 64, seconds=0.5, fragments=(8, 1)),
            "chat_tokens: built 0.50s, 1 of 8 fragments (sha256:cccccccccccc…)",
        ),
        (Finished("polite", "fresh", cut_off=True), "polite: fresh (cut off)"),
        (Finished("polite", "fresh"), "polite: fresh"),
        (
            Finished("polite", "skipped", error="needs `helper`, which failed"),
            "polite: skipped (needs `helper`, which failed)",
        ),
        (Finished("helper", "failed", seconds=3.0, error="x"), "helper: failed after 3.00s"),
    ],
)
def test_finished_lines(event: Finished, shown: str) -> None:
    assert text(render.finished_line(event)) == shown


def test_progress_has_short_names_and_an_eta_from_the_steps_so_far() -> None:
    metrics = {"loss": 1.82345, "learning_rate": 1e-4, "tokens_per_s": 5123.4}
    shown = render.progress_text(Progress("helper", 240, 900, metrics), elapsed_s=240.0)
    assert shown == "step 240/900, loss 1.823, lr 0.0001, tok/s 5123, ETA 11m00s"


def test_progress_without_an_end_has_no_eta() -> None:
    assert render.progress_text(Progress("x", 7, None), elapsed_s=9.0) == "step 7"
    assert render.progress_text(Progress("x", 0, 5), elapsed_s=9.0) == "step 0/5"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (Reason("attribute", "`epochs`: 1 → 2"), "attribute `epochs`: 1 → 2"),
        (Reason("source", "a\nb changed"), "source a^Jb changed"),
        (Reason("waits", "waits for `chats`"), "waits for `chats`"),
        (Reason("new", "never built here"), "never built here"),
    ],
)
def test_reasons_are_sentences(reason: Reason, shown: str) -> None:
    assert render.reason_text(reason) == shown


def test_rows_of_a_reason_stand_below_it_and_cannot_act() -> None:
    reason = Reason("source", "data/x.jsonl changed", ("line 3, `text`", "- old\x1b[2J", "+ new"))
    lines = list(render.reason_lines(reason, "  "))
    assert [text(line) for line in lines] == [
        "  source data/x.jsonl changed",
        "    line 3, `text`",
        "    - old^[[2J",
        "    + new",
    ]
    assert [line[-1].style for line in lines] == ["", "", "red", "green"]


def test_a_failure_shows_its_error_and_where_the_log_is() -> None:
    event = Finished("helper", "failed", error="error[E0700]: it broke\n  fix: mend it")
    assert [text(line) for line in render.error_block(event)] == [
        "error[E0700]: it broke",
        "  fix: mend it",
        "  log: ftbuild log helper",
    ]


def test_lines_of_a_log_begin_with_a_bar() -> None:
    event = Finished("helper", "failed", log_tail=("::set-output::x", "b\r"))
    assert [text(line) for line in render.log_lines(event)] == ["  | ::set-output::x", "  | b^M"]


def test_a_warning_is_one_line() -> None:
    assert text(render.warning_line(Warned("helper", "a\nb"))) == "warning: helper: a^Jb"
