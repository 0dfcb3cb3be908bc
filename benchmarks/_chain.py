"""The three-step chain of the probes, built by one tool."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from _graph import Graph, Step
from _peers import Tool

CHAIN = (
    Step("clean", "clean", ("src/raw.txt",)),
    Step("loud", "loud", ("clean",)),
    Step("final", "final", ("loud",)),
)
COMMANDS = {"clean": "grep -v '^#' @in > @out", "loud": "tr a-z A-Z < @in > @out"}
FIRST = "# first\nhello\nworld\n"
LIMIT_S = 120


class Failed(Exception):
    """The probe does not hold; its text says what was seen instead."""


@dataclass
class Chain:
    """One tool with the three steps, in a directory of its own."""

    tool: Tool
    top: Path
    loud: str = COMMANDS["loud"]
    final: str = "cp @in @out"
    greeting: str = "good morning"

    @property
    def directory(self) -> Path:
        """Where the tool works."""
        return self.top / "project"

    @property
    def source(self) -> Path:
        """The only source."""
        return self.directory / "src/raw.txt"

    def start(self, text: str = FIRST) -> None:
        """Write the project, and whatever the tool asks for before its first build."""
        (self.directory / "src").mkdir(parents=True)
        (self.directory / ".home").mkdir()
        self.source.write_text(text)
        self.write()
        for command in self.tool.prepare:
            self.wait(self.spawn(command))

    def write(self) -> None:
        """Write the tool's build files."""
        every = {**COMMANDS, "loud": self.loud, "final": self.final}
        told = {kind: f"echo {kind} >> {self.top}/ran; {text}" for kind, text in every.items()}
        self.tool.write(Graph(told, CHAIN, filters=("clean", "loud", "final")), self.directory)

    def spawn(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        """Start `command` in a process group of its own."""
        environment = {**self.tool.variables(self.directory), "GREETING": self.greeting}
        with (self.top / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit code; whatever runs too long is killed."""
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Failed(f"still running after {LIMIT_S} s") from None

    def try_build(self) -> tuple[int, list[str]]:
        """Build; return the exit code and the steps that ran, in order."""
        (self.top / "ran").unlink(missing_ok=True)
        code = self.wait(self.spawn(self.tool.build))
        return code, self.ran()

    def ran(self) -> list[str]:
        """Return the steps that have run since the last build began."""
        told = self.top / "ran"
        return told.read_text().split() if told.exists() else []

    def build(self) -> list[str]:
        """Build and return the steps that ran.

        Raises:
            Failed: the build failed.
        """
        code, ran = self.try_build()
        if code:
            raise Failed(f"the build ended with {code}")
        return ran

    def path(self, step: str = "final") -> Path:
        """Return where the output of `step` is."""
        return self.tool.output(self.directory, step)

    def expect(self, text: str) -> None:
        """Hold the bytes of `final` against `text`."""
        found = self.path().read_text() if self.path().exists() else None
        if found != text:
            raise Failed(f"final is {found!r}, not {text!r}")

    def delete(self, step: str) -> None:
        """Delete the output of `step` in the workspace; ftbuild's is a link to a directory."""
        place = self.directory / self.tool.outputs / step
        place.unlink()

    def from_nothing(self) -> str:
        """Return what the tool makes of the same files without any state."""
        other = Chain(self.tool, self.top / "anew", self.loud, self.final, self.greeting)
        other.start(self.source.read_text())
        extra = self.directory / "extra.txt"
        if extra.exists():
            shutil.copy(extra, other.directory)
        other.build()
        return other.path().read_text()


def expect_ran(ran: list[str], wanted: list[str]) -> None:
    """Hold the steps that ran against those that had to."""
    if ran != wanted:
        raise Failed(f"ran {' '.join(ran) or 'nothing'}, not {' '.join(wanted) or 'nothing'}")


def rewrite(path: Path, text: str, *, shift_ns: int = 0) -> None:
    """Write `text` in place and give the file its old time, moved by `shift_ns`."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + shift_ns))


def started(tool: Tool, top: Path, **settings: str) -> Chain:
    """Return a chain that was built once, and is right."""
    chain = Chain(tool, top, **settings)
    chain.start()
    chain.build()
    time.sleep(0.05)  # an edit within one tick of the clock is another matter
    return chain
