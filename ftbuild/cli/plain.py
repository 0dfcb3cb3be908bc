"""How `make` tells what happens where there is no terminal: lines, or JSON for other tools."""

import os
import sys
import threading
import time
from enum import IntEnum
from types import TracebackType
from typing import Protocol, Self, TextIO

from ftbuild.cli import render, terminal
from ftbuild.cli.terminal import Line
from ftbuild.events import (
    Event,
    Finished,
    Progress,
    Sending,
    Started,
    Summary,
    Waiting,
    Warned,
    to_json,
)
from ftbuild.view import Span

_HEARTBEAT_S = 60.0  # CI systems end a job that is silent for ten minutes


class Reporter(Protocol):
    """Takes the events of one build, from any thread, and shows them."""

    def __call__(self, event: Event) -> None:
        """Show one event."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop threads and leave the terminal as it was."""


class JsonReporter:
    """One JSON object a line on standard output."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Print one event."""
        with self._lock:
            terminal.print_json(to_json(event))


class Detail(IntEnum):
    """How much `make` tells; each level tells what those below it do, and more."""

    FAILURES = 0
    """And warnings."""
    SUMMARY = 1
    CHANGES = 2
    ALL = 3
    """Fresh targets too."""


class PlainReporter:
    """One line for each change, with a stable prefix; a sign of life every minute."""

    def __init__(
        self,
        stream: TextIO,
        *,
        detail: Detail,
        color: bool = False,
        heartbeat_s: float = _HEARTBEAT_S,
    ) -> None:
        self._stream = stream
        self._color = color
        self._detail = detail
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._since: dict[str, float] = {}
        self._progress: dict[str, Progress] = {}
        self._warnings: list[Warned] = []
        self._is_over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        if self._detail >= Detail.CHANGES:
            self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._heart.is_alive():
            self._heart.join()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        with self._lock:
            if isinstance(event, Started):
                self._started(event)
            elif isinstance(event, Progress):
                self._progress[event.label] = event
            elif isinstance(event, Waiting):
                self._waiting(event)
            elif isinstance(event, Finished):
                self._finished(event)
            elif isinstance(event, Warned):
                self._warnings.append(event)
            elif isinstance(event, Sending):
                self._sending(event)
            elif isinstance(event, Summary):
                self._summary(event)

    def _started(self, event: Started) -> None:
        self._since[event.label] = time.monotonic()
        if self._detail >= Detail.CHANGES:
            reason = f" ({terminal.one_line(event.reason)})" if event.reason else ""
            self._line((Span(f"{event.label}: started{reason}"),))

    def _waiting(self, event: Waiting) -> None:
        if self._detail >= Detail.CHANGES:
            self._line((Span(f"{event.label}: waits for another build that runs it"),))

    def _sending(self, event: Sending) -> None:
        if self._detail >= Detail.CHANGES:
            self._line((Span(f"sending {render.plural(event.results, 'result')}"),))

    def _finished(self, event: Finished) -> None:
        self._since.pop(event.label, None)
        self._progress.pop(event.label, None)
        is_failure = event.outcome == "failed"
        is_plain_fresh = event.outcome == "fresh" and not event.cut_off
        wanted = Detail.ALL if is_plain_fresh else Detail.CHANGES
        if is_failure or self._detail >= wanted:
            self._line(render.finished_line(event))
        if is_failure:
            self._failure(event)

    def _failure(self, event: Finished) -> None:
        self._write(*render.error_block(event))
        on_github = bool(os.environ.get("GITHUB_ACTIONS"))
        if on_github:
            print(annotation(event), file=self._stream)
        if event.log_tail:
            title = f"the end of the log of {event.label}"
            print(f"::group::{title}" if on_github else f"  {title}:", file=self._stream)
            self._write(*render.log_lines(event))
            if on_github:
                print("::endgroup::", file=self._stream)
        self._stream.flush()

    def _summary(self, event: Summary) -> None:
        self._write(*map(render.warning_line, self._warnings))
        if self._detail >= Detail.SUMMARY:
            self._write(render.summary_line(event))

    def _line(self, line: Line) -> None:
        self._write((Span("[ftbuild] ", "dim"), *line))

    def _write(self, *lines: Line) -> None:
        terminal.write(lines, self._stream, color=self._color)
        self._stream.flush()

    def _beat(self) -> None:
        while not self._is_over.wait(self._heartbeat_s):
            with self._lock:
                for label, since in self._since.items():
                    elapsed_s = time.monotonic() - since
                    text = f"{label}: still running, {render.duration(elapsed_s)}"
                    if label in self._progress:
                        text += f", {render.progress_text(self._progress[label], elapsed_s)}"
                    self._line((Span(text),))


def annotation(event: Finished) -> str:
    """Return the line by which GitHub shows a failure at its place in the file."""
    fields = {"title": f"ftbuild: {event.label} failed"}
    if event.where is not None:
        fields = {"file": event.where.path, "line": str(event.where.line or 1), **fields}
    shown = ",".join(f"{name}={_escaped(text, ',:')}" for name, text in fields.items())
    return f"::error {shown}::{_escaped(event.error or 'failed')}"


def _escaped(text: str, more: str = "") -> str:
    text = terminal.visible(text)
    for character in "%\r\n" + more:  # the percent sign first, or it would escape the escapes
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def wants_table(progress: str) -> bool:
    """Say whether `make` shows a live table: `--progress tty`, or auto on a terminal."""
    if progress != "auto":
        return progress == "tty"
    return terminal.is_terminal(sys.stderr) and not os.environ.get("CI")
