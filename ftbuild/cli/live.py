"""How `make` tells what happens on a terminal: a table that stays, finished lines above it."""

import threading
import time
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ftbuild.cli import render, terminal
from ftbuild.cli.terminal import Line
from ftbuild.events import Event, Finished, Planned, Progress, Started, Summary, Warned

_FRAME_S = 0.125


class LiveReporter:
    """A header with counts and ETA, and a row for each running target.

    Events only change what is known; one thread draws. So ten thousand finished targets cost
    ten thousand lines, not as many drawings of the table.
    """

    def __init__(self, stream: TextIO, *, color: bool, is_verbose: bool = False) -> None:
        self._console = Console(
            file=stream,
            force_terminal=True,
            no_color=not color,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._is_verbose = is_verbose
        self._lock = threading.Lock()
        self._planned: Planned | None = None
        self._outcomes: dict[str, str] = {}
        self._running: dict[str, tuple[Started, float]] = {}
        self._progress: dict[str, Progress] = {}
        self._warnings: list[Warned] = []
        self._unprinted: list[Line] = []
        self._began = time.monotonic()
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, get_renderable=self._table
        )
        self._is_over = threading.Event()
        self._drawer = threading.Thread(target=self._draw, name="table", daemon=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._drawer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._drawer.join()
        self._frame()
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take one event; the next frame shows it."""
        with self._lock:
            if isinstance(event, Planned):
                self._planned = event
            elif isinstance(event, Started):
                self._running[event.label] = (event, time.monotonic())
            elif isinstance(event, Progress):
                self._progress[event.label] = event
            elif isinstance(event, Warned):
                self._warnings.append(event)
            elif isinstance(event, Finished):
                self._finished(event)
            elif isinstance(event, Summary):
                self._unprinted += map(render.warning_line, self._warnings)
                self._unprinted.append(render.summary_line(event))

    def _finished(self, event: Finished) -> None:
        self._running.pop(event.label, None)
        self._progress.pop(event.label, None)
        self._outcomes[event.label] = event.outcome
        if event.outcome != "fresh" or event.cut_off or self._is_verbose:
            self._unprinted.append(render.finished_line(event))
        if event.outcome == "failed":
            self._unprinted += [*render.error_block(event), *render.log_lines(event)]

    def _draw(self) -> None:
        while not self._is_over.wait(_FRAME_S):
            self._frame()

    def _frame(self) -> None:
        """Print the lines that came up since the last frame, and the table below them."""
        with self._lock:
            lines, self._unprinted = self._unprinted, []
        if lines:
            self._console.print(*map(terminal.styled, lines), sep="\n", soft_wrap=True)
        self._live.refresh()

    def _table(self) -> Group:
        with self._lock:
            now = time.monotonic()
            table = Table.grid(padding=(0, 2, 0, 0))
            for _ in range(3):
                table.add_column(no_wrap=True, overflow="ellipsis")
            for label, (started, since) in self._running.items():
                table.add_row(*self._row(label, started, now - since))
            return Group(self._header(now), table)

    def _header(self, now: float) -> Text:
        if self._planned is None:
            return Text("looking at the targets", style="dim")
        outcomes = list(self._outcomes.values())
        parts = [f"{len(outcomes)}/{self._planned.total} targets"]
        for outcome, word in (("fresh", "reused"), ("fetched", "fetched"), ("failed", "failed")):
            if count := outcomes.count(outcome):
                parts.append(f"{count} {word}")
        parts += [f"{len(self._running)} running", render.duration(now - self._began)]
        if eta_s := self._eta_s(now, self._planned):
            parts.append(f"ETA {render.duration(eta_s)}")
        return Text(" · ".join(parts), style="bold", no_wrap=True, overflow="ellipsis")

    def _row(self, label: str, started: Started, elapsed_s: float) -> tuple[Text, ...]:
        name = Text(terminal.one_line(label), style="cyan")
        progress = self._progress.get(label)
        if progress is None:
            what = Text(terminal.one_line(started.reason or started.rule), style="dim")
        else:
            what = Text(render.progress_text(progress, elapsed_s))
        return name, Text(render.duration(elapsed_s)), what

    def _eta_s(self, now: float, planned: Planned) -> float | None:
        """Return the time that is left; None while a target runs that was never timed."""
        waiting = planned.expected.keys() - self._outcomes.keys() - self._running.keys()
        left_s = sum(planned.expected[label] for label in waiting)
        for label, (_, since) in self._running.items():
            elapsed_s = now - since
            rest_s = render.remaining_s(self._progress.get(label), elapsed_s)
            if rest_s is None and label not in planned.expected:
                return None
            if rest_s is None:
                rest_s = max(0.0, planned.expected[label] - elapsed_s)
            left_s += rest_s
        return left_s / planned.jobs
