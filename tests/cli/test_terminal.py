"""Nothing that a row or a child holds acts on a terminal or on a CI runner."""

import io
import json

import pytest

from ftbuild.cli import terminal
from ftbuild.view import Span

PAYLOADS = [
    ("\x1b[2J", "^[[2J"),  # clear the screen
    ("\x1b]0;title\x07", "^[]0;title^G"),
    ("\x1b]8;;file:///etc\x1b\\x", "^[]8;;file:///etc^[\\x"),
    ("50%\r100%", "50%^M100%"),
    ("a\x08b", "a^Hb"),
    ("\x00", "^@"),
    ("\x7f", "^?"),
    ("\x9b31m", "<U+009B>31m"),  # CSI as one character of C1
    ("\x85", "<U+0085>"),
    ("\u202eevil", "<U+202E>evil"),
    ("\u2066", "<U+2066>"),
    ("\u2028", "<U+2028>"),
    ("name\udcff", "name\\xff"),
    ("\ud800", "<U+D800>"),
]


@pytest.mark.fault("57", "characters that act on a terminal")
@pytest.mark.parametrize(("text", "shown"), PAYLOADS)
def test_characters_that_act_are_shown(text: str, shown: str) -> None:
    assert terminal.visible(text) == shown


def test_text_of_people_is_left_alone() -> None:
    text = "Grüße, 你好, 🙂\n\tline two ~ {x} [bold]"
    assert terminal.visible(text) == text


def test_one_line_has_no_line_feed_and_no_tab() -> None:
    assert terminal.one_line("a\nb\tc") == "a^Jb c"


@pytest.mark.fault("57", "commands to a CI runner")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::set-output name=x::1", "\\::set-output name=x::1"),
        ("  ::error::no", "  \\::error::no"),
        ("one\n::stop-commands::x", "one\n\\::stop-commands::x"),
        ("see ##[command]rm", "see #\\#[command]rm"),
        ("##vso[task.setvariable]x", "#\\#vso[task.setvariable]x"),
        ("std::vector ## heading", "std::vector ## heading"),
    ],
)
def test_a_runner_takes_no_line_for_a_command(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert terminal.neutral(text) == shown
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.delenv("TF_BUILD", raising=False)
    assert terminal.neutral(text) == text


def test_json_is_ascii_without_a_command_and_means_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"text": "##[group]x ##vso[a]b \x1b[2J\x9b1m\x7f é ###", "n": [1, 2.5, None]}
    terminal.print_json(value)
    line = capsys.readouterr().out
    assert line == (
        '{"text": "#\\u0023[group]x #\\u0023vso[a]b \\u001b[2J\\u009b1m\\u007f \\u00e9 #\\u0023#"'
        ', "n": [1, 2.5, null]}\n'
    )
    assert json.loads(line) == value


def test_lines_without_colour_are_their_text() -> None:
    stream = io.StringIO()
    line = (Span("a\x1b[1m", "red"), Span("[bold]b[/bold]", "green"))
    terminal.write([line], stream, color=False)
    assert stream.getvalue() == "a^[[1m[bold]b[/bold]\n"


def test_colour_comes_from_the_style_alone_and_long_lines_are_not_broken() -> None:
    stream = io.StringIO()
    terminal.write([(Span("x" * 300, "red"), Span("[bold]\x1b[2J"))], stream, color=True)
    assert stream.getvalue() == f"\x1b[31m{'x' * 300}\x1b[0m[bold]^[[2J\n"


@pytest.mark.parametrize(
    ("choice", "variables", "wanted"),
    [
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {}, False),
        ("auto", {"FORCE_COLOR": "1"}, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
    ],
)
def test_flags_beat_variables_and_no_color_beats_force_color(
    choice: str, variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.use_color(io.StringIO(), choice) is wanted


def test_table_aligns_by_columns_of_the_terminal_and_pads_no_last_cell() -> None:
    rows = [
        (Span("fresh"), Span("日本"), Span("")),
        (Span("unknown"), Span("ab"), Span("why")),
        (Span("x"), Span("abcde"), Span("y\nz")),
    ]
    texts = ["".join(span.text for span in line) for line in terminal.table(rows)]
    assert texts == ["fresh    日本", "unknown  ab     why", "x        abcde  y^Jz"]
    assert terminal.table([]) == []
