"""Events, verdicts and quantities as lines of text; what all reporters and commands share."""

from collections.abc import Iterator

from ftbuild.cli.failure import error_lines
from ftbuild.cli.terminal import Line, one_line, plain
from ftbuild.events import Finished, Progress, Summary, Warned
from ftbuild.plan import Reason, State
from ftbuild.view import Span

STATE_STYLES = {
    State.FRESH: "green",
    State.REMOTE: "cyan",
    State.STALE: "yellow",
    State.UNKNOWN: "dim",
}
OUTCOME_STYLES = {
    "built": "green",
    "fresh": "dim",
    "fetched": "cyan",
    "failed": "bold red",
    "skipped": "yellow",
}
# Of these the detail says all; of the other kinds the word is part of the sentence.
_SELF_EXPLAINING = ("new", "missing", "untrusted", "forced", "waits")


def duration(seconds: float) -> str:
    """Return a time as people say it: `0.18s`, `42s`, `14m02s`, `3h05m`."""
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count: int) -> str:
    """Return a number of bytes as people say it: `512 B`, `1.5 GB`."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def plural(count: int, noun: str) -> str:
    """Return `1 target`, `2 targets`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short(digest: str) -> str:
    """Return the beginning of a digest, enough to tell it from others by eye."""
    return f"sha256:{digest[:12]}…"


def reason_text(reason: Reason) -> str:
    """Return a reason as one sentence: ``attribute `epochs`: 1 → 2``."""
    is_whole = reason.kind in _SELF_EXPLAINING
    return one_line(reason.detail if is_whole else f"{reason.kind} {reason.detail}")


def reason_lines(reason: Reason, indent: str) -> Iterator[Line]:
    """Yield a reason and the lines that tell more of it: rows, old and new text."""
    yield plain(f"{indent}{reason_text(reason)}")
    for text in reason.lines:
        style = {"-": "red", "+": "green"}.get(text.lstrip()[:1], "")
        yield (Span(f"{indent}  "), Span(one_line(text), style))


def number(value: float) -> str:
    """Return a figure with four digits: `1.823`, `5123`, `0.0001`."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


_SHORT_NAMES = {"learning_rate": "lr", "tokens_per_s": "tok/s"}


def progress_text(event: Progress, elapsed_s: float) -> str:
    """Return `step 240/900, loss 1.823, lr 0.0001, tok/s 5123, ETA 8m12s`."""
    of = "" if event.steps is None else f"/{event.steps}"
    parts = [f"step {event.step}{of}"]
    for name, value in event.metrics.items():
        parts.append(f"{_SHORT_NAMES.get(name, one_line(name))} {number(value)}")
    eta_s = remaining_s(event, elapsed_s)
    if eta_s is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return ", ".join(parts)


def remaining_s(event: Progress | None, elapsed_s: float) -> float | None:
    """Return how long an action will still take if its steps stay as fast as they were."""
    if event is None or event.steps is None or event.step <= 0:
        return None
    return elapsed_s * max(0, event.steps - event.step) / event.step


def finished_line(event: Finished) -> Line:
    """Return `helper: built 14m02s (sha256:ab12…)`, for each outcome in its own form."""
    head = (Span(f"{event.label}: "), Span(event.outcome, OUTCOME_STYLES[event.outcome]))
    if event.outcome == "fresh":
        return (*head, Span(" (cut off)" if event.cut_off else ""))
    if event.outcome == "skipped":
        return (*head, Span(f" ({one_line(event.error)})" if event.error else ""))
    if event.outcome == "failed":
        return (*head, Span(f" after {duration(event.seconds)}"))
    tail = f" {duration(event.seconds)}"
    if event.fragments is not None:
        total, built = event.fragments
        tail += f", {built} of {plural(total, 'fragment')}"
    digest = f" ({short(event.digest)})" if event.digest else ""
    return (*head, Span(tail), Span(digest, "dim"))


def error_block(event: Finished) -> Iterator[Line]:
    """Yield the error of a failed action, and where all of its log is."""
    yield from error_lines(event.error or f"error: `{event.label}` failed")
    yield plain(f"  log: ftbuild log {event.label}", "dim")


def failure_lines(rendered: str) -> Iterator[Line]:
    """Yield a rendered error, indented below the line that it is about."""
    return ((Span("  "), *line) for line in error_lines(rendered))


def log_lines(event: Finished) -> Iterator[Line]:
    """Yield the end of a failed action's log.

    The bar keeps a line from beginning with what a CI runner takes for a command.
    """
    return ((Span("  | ", "dim"), Span(one_line(text))) for text in event.log_tail)


def warning_line(event: Warned) -> Line:
    """Return `warning: helper: …`."""
    about = f"{event.label}: " if event.label else ""
    return (Span("warning: ", "yellow"), Span(f"{about}{one_line(event.text)}"))


def summary_line(event: Summary) -> Line:
    """Return what was built, reused and cut off, and the time that this saved."""
    if event.built == event.fetched == event.failed == event.skipped == 0:
        fresh = plural(event.fresh, "target")
        return plain(f"nothing to do ({fresh} fresh, {event.seconds:.2f} s)")
    counts = [
        ("failed", event.failed, OUTCOME_STYLES["failed"]),
        ("skipped", event.skipped, OUTCOME_STYLES["skipped"]),
        ("built", event.built, ""),
        ("fetched", event.fetched, ""),
        ("reused", event.fresh - event.cut_off, ""),
        ("cut off", event.cut_off, ""),
    ]
    line: list[Span] = []
    for word, count, style in counts:
        if count or word == "built":
            line += [Span(", " if line else ""), Span(f"{word} {count}", style)]
            if word == "fetched" and event.fetched_bytes:
                line.append(Span(f" ({size(event.fetched_bytes)})"))
    line.append(Span(f" in {duration(event.seconds)}"))
    if event.saved_s >= 1:
        line.append(Span(f"; saved {duration(event.saved_s)}"))
    if event.sent_bytes:
        line.append(Span(f"; sent {size(event.sent_bytes)}"))
    return tuple(line)
