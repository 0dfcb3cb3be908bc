"""The drawings of a report: where things stand, read back from the SVG."""

import re
from xml.etree import ElementTree

from ftbuild.cli.drawing import Bar, Box, chart, graph, timeline

Rectangle = tuple[float, float, float, float]


def _rectangles(svg: str) -> dict[str, Rectangle]:
    """Return left, top, right and bottom of each rectangle by the first text beside it."""
    found = {}
    for link in ElementTree.fromstring(svg).iter("a"):
        rectangle, text = link.find("rect"), link.find("text")
        assert rectangle is not None
        assert text is not None
        assert text.text is not None
        x, y, width, height = (float(rectangle.attrib[n]) for n in ("x", "y", "width", "height"))
        found[text.text] = x, y, x + width, y + height
    return found


def test_a_chart_spans_its_frame_from_first_to_last_and_from_least_to_largest() -> None:
    svg = ElementTree.fromstring(chart("loss", [1, 2, 5], [8.0, 2.0, 4.0]))
    line = svg.find("polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    (left, top), (second, bottom), (right, middle) = points
    assert (second - left) / (right - left) == 0.25
    assert abs((bottom - middle) / (bottom - top) - 1 / 3) < 0.01
    assert [t.text for t in svg.iter("text")] == ["8", "5", "1", "2"]
    title = svg.findtext("title")
    assert title == "loss: 8 at step 1, 4 at step 5, least 2, largest 8"


def test_a_single_or_a_constant_value_is_drawn_in_the_middle() -> None:
    for steps, values in (([3], [0.5]), ([1, 2], [7.0, 7.0])):
        line = ElementTree.fromstring(chart("x", steps, values)).find("polyline")
        assert line is not None
        heights = {p.split(",")[1] for p in line.attrib["points"].split()}
        assert heights == {"55.0"}  # between 8 and 102


NEEDS = {
    "base": [],
    "rows": [],
    "ids": ["rows", "base"],
    "one": ["base", "ids"],
    "two": ["base", "one", "ids"],
    "all": ["base", "two"],
}


def test_each_box_stands_right_of_what_it_needs_and_none_over_another() -> None:
    svg = graph([Box(name, "rule", f"s-{name}") for name in NEEDS], NEEDS)
    boxes = _rectangles(svg)
    assert boxes.keys() == NEEDS.keys()
    for name, below in NEEDS.items():
        assert all(boxes[other][2] < boxes[name][0] for other in below)
    for name, (left, top, right, bottom) in boxes.items():
        for other, (x, y, to_x, to_y) in boxes.items():
            assert name == other or right < x or to_x < left or bottom < y or to_y < top


def test_a_long_edge_passes_between_boxes() -> None:
    svg = graph([Box(name, "rule", f"s-{name}") for name in NEEDS], NEEDS)
    boxes = _rectangles(svg)
    edges = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter("path")]
    assert len(edges) == sum(map(len, NEEDS.values()))
    passes = [m for d in edges for m in re.findall(r"L([\d.]+) ([\d.]+)H([\d.]+)", d)]
    # Of base to one a column is passed, of base to two two, to all three; of ids to two one.
    assert len(passes) == 7
    # Those of one box go together, so they are in four places.
    assert len(set(passes)) == 4
    for start, height, end in (map(float, found) for found in passes):
        for left, top, right, bottom in boxes.values():
            assert end < left or right < start or not top <= height <= bottom


def test_idle_times_of_days_are_cut_and_durations_keep_their_proportion() -> None:
    day = 86_400.0
    bars = [
        Bar("late", "30s", 10 * day, 10 * day + 30, "c"),
        Bar("first", "20s", 100, 120, "a"),
        Bar("beside", "10s", 105, 115, "b"),
    ]
    found = _rectangles(timeline(bars))
    assert [*found] == ["first", "beside", "late"]
    widths = {name: right - left for name, (left, _, right, _) in found.items()}
    assert abs(widths["late"] / widths["first"] - 1.5) < 0.01
    assert abs(widths["first"] / widths["beside"] - 2) < 0.02
    gap = found["late"][0] - found["first"][2]
    assert 0 < gap < 0.05 * (found["late"][2] - found["first"][0])


def test_what_took_no_time_has_a_bar_all_the_same() -> None:
    [(left, _, right, _)] = _rectangles(timeline([Bar("x", "0.00s", 5, 5, "a")])).values()
    assert right - left == 1.5


def test_names_are_text() -> None:
    for svg in (
        chart("<b>&", [1], [1]),
        graph([Box("<b>&", '"', "s")], {"<b>&": []}),
        timeline([Bar("<b>&", '"', 0, 1, "s")]),
    ):
        assert "<b>" not in svg
        ElementTree.fromstring(svg)
