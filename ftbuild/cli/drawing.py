"""Drawings of a report as SVG: lines over steps, a graph from left to right, bars over time.

Nothing in them runs or is fetched; colours are classes of the page's style sheet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

CHART_WIDTH, CHART_HEIGHT = 310, 120
_LEFT, _BELOW, _ABOVE = 62, 18, 8
_NODE_HEIGHT, _WAY_HEIGHT, _NODE_GAP, _COLUMN_GAP = 40, 8, 16, 56
_LETTER = 7.2
"""Width of a letter of the graph's font, a monospaced one of 12 px."""
_BAR_HEIGHT, _BAR_WIDTH, _LABEL_WIDTH = 20, 560, 220
_IDLE_SHARE = 0.04
"""How wide an idle time is drawn at most, of the time in which something ran."""


def chart(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """Return one curve with the bounds of its values and its last step."""
    low, high = min(values), max(values)
    first, last = steps[0], steps[-1]
    right, bottom = CHART_WIDTH - 8, CHART_HEIGHT - _BELOW

    def x(step: float) -> float:
        return _LEFT + (right - _LEFT) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return bottom - (bottom - _ABOVE) * ((value - low) / (high - low) if high > low else 0.5)

    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, values, strict=True))
    mark = f'<circle class="dot" cx="{x(last):.1f}" cy="{y(values[-1]):.1f}" r="2.5"/>'
    lines = [
        f'<svg class="chart" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" width="{CHART_WIDTH}" '
        f'height="{CHART_HEIGHT}" role="img">',
        f"<title>{escape(name)}: {values[0]:.6g} at step {first:g}, {values[-1]:.6g} at step "
        f"{last:g}, least {low:.6g}, largest {high:.6g}</title>",
        f'<path class="axis" d="M{_LEFT} {_ABOVE}V{bottom}H{right}"/>',
        f'<polyline class="curve" points="{points}"/>{mark}',
        _text(_LEFT - 4, _ABOVE + 8, f"{high:.3g}", "end"),
        _text(right, CHART_HEIGHT - 4, f"{last:g}", "end"),
        _text(_LEFT, CHART_HEIGHT - 4, f"{first:g}", "start"),
    ]
    if high > low:
        lines.append(_text(_LEFT - 4, bottom, f"{low:.3g}", "end"))
    return "\n".join([*lines, "</svg>"])


@dataclass(frozen=True)
class Box:
    """A node of a graph: two lines of text, and the section of the page it leads to."""

    name: str
    detail: str
    link: str


def graph(boxes: Sequence[Box], needs: Mapping[str, Sequence[str]]) -> str:
    """Return boxes, each right of those that it needs; `boxes` come in build order."""
    columns: dict[str, int] = {}
    for box in boxes:
        columns[box.name] = max((columns[n] + 1 for n in needs[box.name]), default=0)
    places, ways = _places(boxes, columns, needs)
    height = max(y + h for _, y, _, h in [*places.values(), *ways.values()]) + 1
    width = max(x + w for x, _, w, _ in places.values()) + 1
    lines = [
        f'<svg class="graph" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img"><title>what is made of what</title>'
    ]
    for box in boxes:
        for name in needs[box.name]:
            between = range(columns[name] + 1, columns[box.name])
            passed = [ways[name, column] for column in between]
            lines.append(_edge([places[name], *passed, places[box.name]]))
    lines += [_node(box, places[box.name]) for box in boxes]
    return "\n".join([*lines, "</svg>"])


_Rectangle = tuple[float, float, float, float]
"""Left, top, width and height."""
_Way = tuple[str, int]
"""Where the edges from a box pass a column, all of them together."""


def _places(
    boxes: Sequence[Box], columns: Mapping[str, int], needs: Mapping[str, Sequence[str]]
) -> tuple[dict[str, _Rectangle], dict[_Way, _Rectangle]]:
    """Place boxes, and the ways of edges past them, each near the middle of what it follows.

    Source: Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system
        structures", 1981: a dummy vertex in each layer that an edge passes.
    """
    places: dict[str, _Rectangle] = {}
    ways: dict[_Way, _Rectangle] = {}
    left = 1.0
    for column in range(max(columns.values()) + 1):
        members = [box for box in boxes if columns[box.name] == column]
        width = max(max(len(box.name), len(box.detail)) for box in members) * _LETTER + 20
        found: list[tuple[float, bool, Box | _Way]] = []
        for box in members:
            above = [_from(places, ways, n, column) for n in needs[box.name]]
            found.append((sum(above) / max(1, len(above)), True, box))
        passing = [n for box in boxes if columns[box.name] > column for n in needs[box.name]]
        for name in dict.fromkeys(passing):
            if columns[name] < column:
                found.append((_from(places, ways, name, column), False, (name, column)))
        top = 1.0
        for at, _, one in sorted(found, key=lambda each: each[:2]):
            height = _NODE_HEIGHT if isinstance(one, Box) else _WAY_HEIGHT
            top = max(top, at - height / 2)
            place = left, top, width, height
            if isinstance(one, Box):
                places[one.name] = place
            else:
                ways[one] = place
            top += height + _NODE_GAP
        left += width + _COLUMN_GAP
    return places, ways


def _from(
    places: Mapping[str, _Rectangle],
    ways: Mapping[_Way, _Rectangle],
    name: str,
    column: int,
) -> float:
    """Return the middle of where an edge from `name` comes from, one column before."""
    _, top, _, height = ways.get((name, column - 1)) or places[name]
    return top + height / 2


def _edge(stops: Sequence[_Rectangle]) -> str:
    parts: list[str] = []
    for (x, y, width, height), (to_x, to_y, _, to_height) in pairwise(stops):
        start, end, middle = y + height / 2, to_y + to_height / 2, to_x - _COLUMN_GAP / 2
        parts.append(f"L{x:.1f} {start:.1f}H{x + width:.1f}" if parts else "")
        parts[-1] = parts[-1] or f"M{x + width:.1f} {start:.1f}"
        parts.append(f"C{middle:.1f} {start:.1f} {middle:.1f} {end:.1f} {to_x:.1f} {end:.1f}")
    return f'<path class="edge" d="{"".join(parts)}"/>'


def _node(box: Box, place: _Rectangle) -> str:
    left, top, width, height = place
    return (
        f'<a href="#{escape(box.link)}"><rect class="node" x="{left:.1f}" y="{top:.1f}" '
        f'width="{width:.1f}" height="{height}" rx="5"/>'
        f"{_text(left + 10, top + 17, box.name, 'start', 'name')}"
        f"{_text(left + 10, top + 32, box.detail, 'start')}</a>"
    )


@dataclass(frozen=True)
class Bar:
    """What ran from `began` to `ended`, both in seconds since the epoch."""

    name: str
    detail: str
    began: float
    ended: float
    link: str


def timeline(bars: Sequence[Bar]) -> str:
    """Return a bar for each run, in the order of their beginnings; idle times are cut short."""
    bars = sorted(bars, key=lambda bar: (bar.began, bar.ended))
    scale = _Scale(bars)
    height = len(bars) * _BAR_HEIGHT
    width = _LABEL_WIDTH + _BAR_WIDTH + 90
    lines = [
        f'<svg class="timeline" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img"><title>when each ran</title>'
    ]
    for number, bar in enumerate(bars):
        top = number * _BAR_HEIGHT
        left, right = (_LABEL_WIDTH + scale.of(at) * _BAR_WIDTH for at in (bar.began, bar.ended))
        lines.append(
            f'<a href="#{escape(bar.link)}">{_text(_LABEL_WIDTH - 8, top + 14, bar.name, "end")}'
            f'<rect class="bar" x="{left:.1f}" y="{top + 3}" width="{max(1.5, right - left):.1f}" '
            f'height="{_BAR_HEIGHT - 6}" rx="2"/></a>'
            f"{_text(right + 6, top + 14, bar.detail, 'start')}"
        )
    return "\n".join([*lines, "</svg>"])


class _Scale:
    """Maps a time to 0 … 1; times in which nothing ran are no wider than a mark."""

    def __init__(self, bars: Sequence[Bar]) -> None:
        busy = [*_busy(bars)]
        mark = _IDLE_SHARE * max(1e-9, sum(ended - began for began, ended in busy))
        self._points: list[tuple[float, float]] = []
        at = 0.0
        for number, (began, ended) in enumerate(busy):
            if number:
                at += min(mark, began - busy[number - 1][1])
            self._points += [(began, at), (ended, at + ended - began)]
            at += ended - began
        self._width = at or 1.0

    def of(self, time: float) -> float:
        for (began, at), (ended, to) in pairwise(self._points):
            if began <= time <= ended:
                share = (time - began) / (ended - began) if ended > began else 0.0
                return (at + share * (to - at)) / self._width
        return 0.0


def _busy(bars: Sequence[Bar]) -> Iterator[tuple[float, float]]:
    """Yield the times in which something ran; `bars` are in the order of their beginnings."""
    began, ended = bars[0].began, bars[0].ended
    for bar in bars[1:]:
        if bar.began > ended:
            yield began, ended
            began = bar.began
        ended = max(ended, bar.ended)
    yield began, ended


def _text(x: float, y: float, text: str, anchor: str, style: str = "small") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
