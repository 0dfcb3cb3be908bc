"""What happens in a build, as typed records: the command line and the log read only these.

In their order: one `Planned`; for each target `Started` (only if it runs), any number of
`Progress` and `Warned`, one `Finished`; last one `Summary`. `to_json` gives the line of
`make --json`, whose field names are a contract with other tools.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ftbuild.errors import Place

Outcome = Literal["built", "fresh", "fetched", "failed", "skipped"]


@dataclass(frozen=True)
class Planned:
    """The build is about to begin."""

    total: int
    """How many targets it looks at, fresh ones too."""
    jobs: int
    expected: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the last run by label, of the targets that may run; unknown ones are absent."""


@dataclass(frozen=True)
class Started:
    """An action begins to run."""

    label: str
    rule: str
    reason: str = ""
    """The first cause, in one line: `attribute epochs: 1 -> 2`."""


@dataclass(frozen=True)
class Waiting:
    """Another build runs the very same action; its result will be taken."""

    label: str


@dataclass(frozen=True)
class Progress:
    """How far a running action is."""

    label: str
    step: int
    steps: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Such as `loss`, `learning_rate`, `tokens_per_s`."""


@dataclass(frozen=True)
class Warned:
    """An action says something that the user should read at the end of the build."""

    label: str | None
    """None where it concerns no single target."""
    text: str


@dataclass(frozen=True)
class Sending:
    """The build is done, and results are still being sent to a remote store."""

    results: int


@dataclass(frozen=True)
class Finished:
    """A target is done with, in one of five ways."""

    label: str
    outcome: Outcome
    key: str | None = None
    digest: str | None = None
    """The output's tree; None where there is none: failed, skipped."""
    seconds: float = 0.0
    fragments: tuple[int, int] | None = None
    """All, and those that were built; None where the rule does not work in fragments."""
    cut_off: bool = False
    """Fresh by early cutoff: something below it ran and gave the same bytes."""
    error: str | None = None
    """Of a failed or skipped target: the rendered error; why it was skipped."""
    where: Place | None = None
    """The place in a file that the error names."""
    log_tail: tuple[str, ...] = ()
    """The last lines that a failed action wrote."""


@dataclass(frozen=True)
class Summary:
    """The build is over; counts of targets."""

    built: int
    fresh: int
    """Those cut off among them."""
    fetched: int
    failed: int
    skipped: int
    cut_off: int
    seconds: float
    saved_s: float
    """What the fresh and fetched targets cost when they were built."""
    fetched_bytes: int = 0
    sent_bytes: int = 0


Event = Planned | Started | Waiting | Progress | Warned | Finished | Sending | Summary
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing: for callers who only want the result."""


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as `make --json` prints it; events of no single target have label null."""
    name = type(event).__name__.lower()
    if isinstance(event, Finished):
        return _finished(event)
    if isinstance(event, Progress):
        rest: dict[str, Any] = {
            "step": event.step,
            "steps": event.steps,
            # A loss can be NaN, for which JSON has no form.
            "metrics": {k: v if math.isfinite(v) else None for k, v in event.metrics.items()},
        }
    elif isinstance(event, Planned):
        rest = {"total": event.total, "jobs": event.jobs}
    elif isinstance(event, Started):
        rest = {"rule": event.rule, "reason": event.reason}
    elif isinstance(event, Warned):
        rest = {"text": event.text}
    else:
        rest = {**vars(event)}
    return {"event": name, "label": getattr(event, "label", None), **rest}


def _finished(event: Finished) -> dict[str, Any]:
    """Return a `finished` line; what does not apply to the target is left out."""
    line: dict[str, Any] = {
        "event": "finished",
        "label": event.label,
        "outcome": event.outcome,
        "key": event.key,
        "digest": event.digest,
        "seconds": event.seconds,
    }
    if event.fragments is not None:
        total, built = event.fragments
        line["fragments"] = {"total": total, "built": built}
    if event.cut_off:
        line["cut_off"] = True
    if event.error is not None:
        line["error"] = event.error
    if event.where is not None:
        line["where"] = {
            "path": event.where.path,
            "line": event.where.line,
            "column": event.where.column,
        }
    if event.log_tail:
        line["log_tail"] = list(event.log_tail)
    return line
