"""Tally: what came of the targets of one build, counted for its last line."""

import time
from dataclasses import dataclass, field

from ftbuild import events


@dataclass
class Tally:
    """Counts of targets, and the time that what is known saved."""

    exit_code: int = 0
    """Of the worst failure; 0 while there is none."""
    cut_off: int = 0
    saved_s: float = 0.0
    _counts: dict[events.Outcome, int] = field(
        default_factory=lambda: dict.fromkeys(("built", "fresh", "fetched", "failed", "skipped"), 0)
    )
    _began: float = field(default_factory=time.monotonic)

    def count(self, outcome: events.Outcome, saved_s: float = 0.0) -> None:
        """Count a target; `saved_s` is what it did not cost now."""
        self._counts[outcome] += 1
        self.saved_s += saved_s

    @property
    def has_failed(self) -> bool:
        """Say whether any target failed."""
        return self._counts["failed"] > 0

    def summary(self, fetched_bytes: int) -> events.Summary:
        """Return the last event of the build."""
        return events.Summary(
            **self._counts,
            cut_off=self.cut_off,
            seconds=time.monotonic() - self._began,
            saved_s=self.saved_s,
            fetched_bytes=fetched_bytes,
        )
