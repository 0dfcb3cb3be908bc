"""The live table, on a real terminal."""

import contextlib
import os
import pty
import re
import select
import subprocess
import time

import pytest

from cli.toy import Toy

SLOW = '''\

class SlowInputs(Inputs):
    """What to wait for."""

    text: File
    """The text."""
    go: Source
    """A file; where it lies a named pipe lies too, and the rule waits for it."""


class SlowParams(Params):
    """None."""


@rule(output=File)
def slow(ctx: Context, inputs: SlowInputs, params: SlowParams) -> None:
    """Report a step, then wait until the test has seen it."""
    ctx.progress(1, 4, loss=0.5, learning_rate=1e-4, tokens_per_s=5123.0)
    with open(inputs.go.files[0].path.read_text()) as pipe:
        pipe.read()
    (ctx.out / "text.txt").write_text("done\\n")
'''


@pytest.fixture
def slow(toy: Toy) -> Toy:
    """The toy project with a target that runs until the test lets it go on."""
    os.mkfifo(toy.root / "pipe")
    toy.write("go.txt", str(toy.root / "pipe"))
    toy.write("rules/text.py", (toy.root / "rules/text.py").read_text() + SLOW)
    manifest = (toy.root / "FTBUILD.toml").read_text()
    toy.write("FTBUILD.toml", manifest + '[slow.last]\ntext = "shout"\ngo = "go.txt"\n')
    return toy


class Terminal:
    """A pseudo-terminal with a process in it, whose controlling terminal it is."""

    def __init__(self, toy: Toy, *args: str, **variables: str) -> None:
        self._main, side = pty.openpty()
        # A session's leader gets the first terminal that it opens as its controlling one.
        shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(side)]
        self._process = subprocess.Popen(
            [*shell, *toy.command(*args)],
            cwd=toy.root,
            env=toy.environment | {"TERM": "xterm-256color", **variables},
            start_new_session=True,
        )
        # Its own end stays open until the process has opened the other side.
        self._side = side
        self._deadline = time.monotonic() + 60
        self.text = ""

    def read_until(self, pattern: str) -> None:
        """Read until the text matches, or fail after a minute."""
        while not re.search(pattern, self.text):
            self._read()

    def press(self, key: bytes) -> None:
        """Send a key as the keyboard does."""
        os.write(self._main, key)

    def read_to_the_end(self) -> int:
        """Read until the process is gone; return its exit code."""
        while self._process.poll() is None:
            if select.select([self._main], [], [], 0.05)[0]:
                self._read()
        os.close(self._side)
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open
            while block := os.read(self._main, 65536):
                self.text += block.decode()
        os.close(self._main)
        return self._process.returncode

    def _read(self) -> None:
        ready, _, _ = select.select([self._main], [], [], 30)
        if not ready or time.monotonic() > self._deadline:
            self._process.kill()
            pytest.fail(self.text)
        self.text += os.read(self._main, 65536).decode()


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`: what was erased is gone."""
    lines, row, column = [""], 0, 0
    for code, letter, plain in re.findall(r"\x1b\[([?\d;]*)([a-zA-Z])|([^\x1b])", text):
        if plain == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif plain == "\r":
            column = 0
        elif plain:
            lines[row] = lines[row][:column].ljust(column) + plain + lines[row][column + 1 :]
            column += 1
        elif letter == "A":
            row = max(0, row - int(code or 1))
        elif letter == "K":
            assert code == "2", code
            lines[row] = ""
        else:
            assert letter in "mhl", (code, letter)
    return [line for line in lines if line]


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_table_with_counts_and_a_row_for_each_running_target(slow: Toy) -> None:
    terminal = Terminal(slow, "make", "last")
    terminal.read_until(r"step 1/4")
    frame = without_codes(terminal.text)
    assert re.search(r"3/4 targets · 1 running · [\d.]+s · ETA [\d.]+s", frame)
    assert re.search(
        r"last  [\d.]+s  step 1/4, loss 0\.5, lr 0\.0001, tok/s 5123, ETA [\d.]+s", frame
    )
    (slow.root / "pipe").write_text("go")
    assert terminal.read_to_the_end() == 0
    times = re.compile(r"[\d.]+s( \(sha256:[0-9a-f]{12}…\))?$")
    assert [times.sub("T", line) for line in screen(terminal.text)] == [
        "lines: built T",
        "calm: built T",
        "shout: built T",
        "last: built T",
        "built 4 in T",
    ]
    # The cursor was hidden while the table stood there, and is back.
    assert terminal.text.rfind("\x1b[?25h") > terminal.text.rfind("\x1b[?25l") >= 0


def test_an_interrupt_leaves_the_terminal_as_it_was(slow: Toy) -> None:
    terminal = Terminal(slow, "make", "last")
    terminal.read_until(r"step 1/4")
    terminal.press(b"\x03")  # what Ctrl-C sends
    assert terminal.read_to_the_end() == 130
    assert "error[E0702]: interrupted; finished targets are kept" in without_codes(terminal.text)
    assert terminal.text.rfind("\x1b[?25h") > terminal.text.rfind("\x1b[?25l") >= 0
    assert "Traceback" not in terminal.text


def test_what_a_child_wrote_cannot_act_on_the_terminal(toy: Toy) -> None:
    toy.write("data/raw.txt", "BOOM\n")
    terminal = Terminal(toy, "make")
    assert terminal.read_to_the_end() == 1
    assert "\x1b[2J" not in terminal.text
    assert "| about to fail^[[2J" in without_codes(terminal.text)


@pytest.mark.parametrize(
    ("args", "variables"),
    [
        (["--progress", "plain"], {}),
        ([], {"CI": "true"}),
        ([], {"TERM": "dumb"}),
        ([], {"FTBUILD_PROGRESS": "plain"}),
    ],
)
def test_lines_instead_of_a_table(toy: Toy, args: list[str], variables: dict[str, str]) -> None:
    terminal = Terminal(toy, "make", *args, **variables)
    assert terminal.read_to_the_end() == 0
    assert "\x1b[?25l" not in terminal.text
    assert "[ftbuild] shout: built" in without_codes(terminal.text)


def test_no_color_keeps_the_table_without_colours(toy: Toy) -> None:
    terminal = Terminal(toy, "make", NO_COLOR="1")
    assert terminal.read_to_the_end() == 0
    colours = re.findall(r"\x1b\[(?:\d+;)*3\d(?:;\d+)*m", terminal.text)
    assert colours == []
    assert "\x1b[?25l" in terminal.text


def test_a_plan_on_a_terminal_has_colours(toy: Toy) -> None:
    terminal = Terminal(toy, "plan", "lines")
    assert terminal.read_to_the_end() == 0
    assert terminal.text == "\x1b[33mstale\x1b[0m  \x1b[1mlines\x1b[0m  never built here\r\n"
