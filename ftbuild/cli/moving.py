"""What `push` and `pull` share: signs of progress, and the end told in lines or JSON."""

import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftbuild.cli import render, terminal
from ftbuild.view import Span

if TYPE_CHECKING:
    from ftbuild.transfer import Moved, Transfer

_TERMINAL_S, _ELSEWHERE_S = 0.2, 10.0
_STYLES = {"sent": "green", "fetched": "cyan", "different": "red", "missing": "yellow"}
_QUIET = ("present", "here")


class Watch:
    """Shows how far a transfer is: a changing line on a terminal, one now and then elsewhere."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._moving: Transfer | None = None
        self._is_over = threading.Event()
        self._on_terminal = terminal.is_terminal(sys.stderr)

    def begin(self, moving: "Transfer") -> None:
        """Take the transfer to watch."""
        self._moving, self._began = moving, time.monotonic()

    def show(self) -> None:
        """Print signs of life until the transfer is over; the body of a thread."""
        pause_s = _TERMINAL_S if self._on_terminal else _ELSEWHERE_S
        while not self._is_over.wait(pause_s):
            moving = self._moving
            if moving is not None and moving.total_bytes:
                rate = render.size(round(moving.done_bytes / (time.monotonic() - self._began)))
                done, total = render.size(moving.done_bytes), render.size(moving.total_bytes)
                text = f"{self._verb} {done} of {total}, {rate}/s"
                ends = "\x1b[K\r" if self._on_terminal else "\n"
                print(f"[ftbuild] {text}", end=ends, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Let the thread end, and clear its line."""
        self._is_over.set()
        if self._on_terminal:
            print("\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def watched(verb: str, options: Namespace) -> Iterator[Watch]:
    """Watch a transfer in a thread, unless the flags ask for silence."""
    watch = Watch(verb)
    is_silent = options.quiet or options.json or options.progress == "none"
    thread = threading.Thread(target=watch.show, name="progress", daemon=True)
    if not is_silent:
        thread.start()
    try:
        yield watch
    finally:
        watch.end()
        if thread.is_alive():
            thread.join()


def tell(text: str) -> None:
    """Print a warning."""
    terminal.say(f"warning: {text}")


def show(moving: "Transfer", options: Namespace, *, seconds: float, sent: int, got: int) -> None:
    """Print what became of each target, and one line for all."""
    if options.json:
        targets = [{"label": m.label, "outcome": m.outcome, "bytes": m.size} for m in moving.moved]
        terminal.print_json(
            {"targets": targets, "sent_bytes": sent, "fetched_bytes": got, "seconds": seconds}
        )
        return
    if options.quiet:
        return
    told = [m for m in moving.moved if options.verbose or m.outcome not in _QUIET]
    color = terminal.use_color(sys.stdout, options.color)
    terminal.write(terminal.table([_row(m) for m in told]), sys.stdout, color=color)
    print(_sentence(moving.moved, sent or got, seconds))


def _row(moved: "Moved") -> tuple[Span, ...]:
    size = render.size(moved.size) if moved.size else ""
    style = _STYLES.get(moved.outcome, "dim")
    return Span(moved.outcome, style), Span(moved.label, "bold"), Span(size)


def _sentence(moved: Sequence["Moved"], count: int, seconds: float) -> str:
    counts: dict[str, int] = {}
    for one in moved:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    shown = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    return f"{shown or 'nothing'}; {render.size(count)} in {render.duration(seconds)}"
