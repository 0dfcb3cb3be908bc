"""Failures: how an action ended that gave nothing."""

import errno
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ftbuild.errors import ActionError, MachineError, Problem
from ftbuild.store import disk
from ftbuild.workers import Exit

_TAIL_LINES = 15


class Failed(ActionError):
    """An action failed; carries the last lines of its log."""

    def __init__(self, problems: Sequence[Problem], log_tail: Sequence[str]) -> None:
        super().__init__(problems[0].what)
        self.problems = tuple(problems)
        self.log_tail = tuple(log_tail)


class NoRoom(Failed):
    """An action failed because the disk of the store is full."""

    exit_code = MachineError.exit_code


def failed(problems: Sequence[Problem], log: str, kept: Path, root: str) -> Failed:
    """Return the error of an action, whose log is copied to `kept`; `root` is the store's.

    Where the disk of the store is full, that is what went wrong.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, kept)
    with open(log, encoding="utf-8", errors="replace") as file:
        tail = file.read().splitlines()[-_TAIL_LINES:]
    if disk.is_full(root):
        full = disk.machine_error(OSError(errno.ENOSPC, ""), root).problems[0]
        return NoRoom((replace(full, why=problems[0].what),), tail)
    return Failed(problems, tail)


def died(label: str, end: Exit) -> Problem:
    """Say how the process of an action ended that said nothing itself."""
    peak = f"its peak memory was {end.max_rss_bytes / 1e6:,.0f} MB"
    # A shell says so of a program that it ran.
    is_killed = end.status in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if end.status >= 0 and not is_killed:
        return Problem("E0701", f"`{label}` failed with exit status {end.status}")
    if is_killed:
        return Problem(
            "E0704",
            f"`{label}` was killed by SIGKILL",
            why=f"likely by the system for want of memory; {peak}",
            fix='lower its batch_size or max_length, or declare resources = { memory = "…" } so '
            "that less runs beside it",
        )
    name = signal.Signals(-end.status).name
    return Problem("E0704", f"`{label}` was ended by {name}", why=peak)
