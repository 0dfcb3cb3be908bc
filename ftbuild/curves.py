"""Curves: the metrics of a run over its steps, in few enough points for a record."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_POINTS = 256
"""Of a curve; beyond it every second point goes, as often as is needed."""
MAX_CURVES = 32


@dataclass
class _Curve:
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    count: int = 0
    stride: int = 1
    last: tuple[int, float] = (0, 0.0)

    def add(self, step: int, value: float) -> None:
        if self.count % self.stride == 0:
            if len(self.steps) == MAX_POINTS:
                del self.steps[1::2], self.values[1::2]
                self.stride *= 2
            if self.count % self.stride == 0:
                self.steps.append(step)
                self.values.append(value)
        self.count += 1
        self.last = step, value

    def to_plain(self) -> list[list[float]]:
        """Return steps and values; the last point is always there."""
        if self.steps[-1] == self.last[0]:
            return [[*self.steps], [*self.values]]
        return [[*self.steps, self.last[0]], [*self.values, self.last[1]]]


class Curves:
    """The metrics that one run has reported so far."""

    def __init__(self) -> None:
        self._curves: dict[str, _Curve] = {}

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the values of one step; one that is not finite leaves a gap."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                continue
            if name not in self._curves and len(self._curves) == MAX_CURVES:
                continue
            self._curves.setdefault(name, _Curve()).add(step, float(f"{value:.6g}"))

    def to_plain(self) -> dict[str, list[list[float]]]:
        """Return for each metric its steps and its values, at most `MAX_POINTS` + 1 of each."""
        return {name: curve.to_plain() for name, curve in self._curves.items()}
