"""Print one HTML page about TARGET: its graph, when each part of it ran, curves, samples, lineage.

`ftbuild report > report.html`; without a TARGET of the default targets. The page needs nothing
else: no script, no network. With --json what it shows, without samples.

Exit status:
  0 done; 2 the manifest or the command is wrong, or TARGET is not built.
"""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import TYPE_CHECKING, Any

from ftbuild.cli import drawing, render, terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.page import document, listing
from ftbuild.errors import FtbuildError
from ftbuild.kinds import Dataset, Tokens

if TYPE_CHECKING:
    from ftbuild.lineage import Step
    from ftbuild.project import Project
    from ftbuild.view import View

_SAMPLED = frozenset({Dataset.kind, Tokens.kind})
_ROWS = 3
_LINES_SHOWN = 24
_VIEWERS = 2
"""Processes that read artifacts at once."""

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; }
h2 { margin-top: 2.5rem; }
h3 { margin: 2rem 0 .3rem; }
pre { font-size: 13px; padding: .6rem .8rem; background: #8881; border-radius: 5px; }
table { border-collapse: collapse; }
td, th { padding: .1rem 1.2rem .1rem 0; text-align: left; vertical-align: top; }
th { font-size: 13px; font-weight: normal; opacity: .75; white-space: nowrap; }
td, code { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: 13px; }
svg { font: 12px ui-monospace, monospace; }
svg text { fill: currentColor; }
svg .small { opacity: .75; font-size: 11px; }
svg .axis, svg .edge { fill: none; stroke: currentColor; opacity: .4; }
svg .curve { fill: none; stroke: #0969da; stroke-width: 1.5; }
svg .dot, svg .bar { fill: #0969da; }
svg .node { fill: #0969da1a; stroke: #0969da; }
.warning { color: #9a6700; }
"""


def arguments(parser: ArgumentParser) -> None:
    """Add what `report` takes."""
    targets(parser.add_argument("targets", metavar="TARGET", nargs="*", help="a label"))


def run(options: Namespace) -> int:
    """Print the page."""
    with open_project(options) as project:
        labels = project.resolve(options.targets)
        steps: dict[str, Step] = {}
        for label in labels:
            steps.update((step.label, step) for step in project.lineage(label))
        if options.json:
            terminal.print_json({"steps": [_plain(step) for step in steps.values()]})
            return 0
        views = _views(project, [*steps.values()])
        title = ", ".join(options.targets) or project.workspace.name
    body = "\n".join(_sections([*steps.values()], views))
    sys.stdout.write(document(title, f"{body}\n", _STYLE))
    return 0


def _plain(step: "Step") -> dict[str, Any]:
    from ftbuild import lineage

    [plain] = lineage.to_plain([step])
    provenance = {} if step.record is None else step.record.provenance
    return plain | {name: provenance.get(name) for name in ("facts", "curves", "warnings")}


def _views(project: "Project", steps: Sequence["Step"]) -> dict[tuple[str, int | None], "View"]:
    """Return how the artifacts look, and the first rows of those that have some."""
    asked: list[tuple[str, int | None]] = [(step.label, None) for step in steps]
    asked += [(step.label, row) for step in steps if step.kind in _SAMPLED for row in range(_ROWS)]

    def look(one: tuple[str, int | None]) -> "View | None":
        try:
            return project.inspect(*one)
        except FtbuildError:  # not here any more, of a kind without a viewer, or fewer rows
            return None

    with ThreadPoolExecutor(_VIEWERS) as pool:
        found = zip(asked, pool.map(look, asked), strict=True)
        return {one: view for one, view in found if view is not None}


def _sections(
    steps: Sequence["Step"], views: Mapping[tuple[str, int | None], "View"]
) -> Iterator[str]:
    links = {step.label: f"step-{number}" for number, step in enumerate(steps)}
    yield f'<div class="wide">{_graph(steps, links)}</div>'
    bars = [*_bars(steps, links)]
    if bars:
        yield f'<h2>When each ran</h2>\n<div class="wide">{drawing.timeline(bars)}</div>'
    yield "<h2>Step by step</h2>"
    for step in reversed(steps):
        yield f'<h3 id="{links[step.label]}">{_text(step.label)}</h3>'
        yield from _step(step)
        if (view := views.get((step.label, None))) is not None:
            yield _folded(view)
        for row in range(_ROWS):
            if (view := views.get((step.label, row))) is not None:
                yield f"<p>row {row}</p>\n{listing(view.lines)}"


def _folded(view: "View") -> str:
    """Return the lines of an artifact; what is long opens with a click."""
    if len(view.lines) <= _LINES_SHOWN:
        return listing(view.lines)
    return f"<details><summary>{len(view.lines)} lines</summary>{listing(view.lines)}</details>"


def _graph(steps: Sequence["Step"], links: Mapping[str, str]) -> str:
    boxes = [
        drawing.Box(terminal.one_line(step.label), _rule_of(step), links[step.label])
        for step in steps
    ]
    shown = {step.label: box.name for step, box in zip(steps, boxes, strict=True)}
    needs = {
        shown[step.label]: [*dict.fromkeys(shown[label] for label in step.inputs.values())]
        for step in steps
    }
    return drawing.graph(boxes, needs)


def _rule_of(step: "Step") -> str:
    return step.kind if step.record is None else str(step.record.document["rule"])


def _bars(steps: Sequence["Step"], links: Mapping[str, str]) -> Iterator[drawing.Bar]:
    for step in steps:
        if step.record is None or "finished_at" not in step.record.provenance:
            continue
        seconds = float(step.record.provenance.get("seconds", 0.0))
        ended = float(step.record.provenance["finished_at"])
        yield drawing.Bar(
            terminal.one_line(step.label),
            render.duration(seconds),
            ended - seconds,
            ended,
            links[step.label],
        )


def _step(step: "Step") -> Iterator[str]:
    record = step.record
    if record is None:
        yield '<p class="warning">there is no record of it any more</p>'
        return
    provenance = record.provenance
    for warning in provenance.get("warnings", ()):
        yield f'<p class="warning">warning: {_text(warning)}</p>'
    yield _table(_facts(step))
    curves = {name: curve for name, curve in provenance.get("curves", {}).items() if curve[0]}
    if curves:
        figures = [_figure(name, *curve) for name, curve in curves.items()]
        yield '<div class="curves">' + "\n".join(figures) + "</div>"
    params = [(name, json.dumps(v, ensure_ascii=False)) for name, v in _params(step).items()]
    if params:
        yield f"<details><summary>attributes</summary>{_table(params)}</details>"


def _params(step: "Step") -> dict[str, Any]:
    return {} if step.record is None else dict(step.record.document["params"])


def _figure(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    said = name if len(values) == 1 else f"{name}: {values[0]:.4g} → {values[-1]:.4g}"
    drawn = drawing.chart(terminal.one_line(name), steps, values)
    return f"<figure>{drawn}<figcaption>{_text(said)}</figcaption></figure>"


def _facts(step: "Step") -> Iterator[tuple[str, str]]:
    from ftbuild.lineage import source_files

    record = step.record
    assert record is not None
    document, provenance = record.document, record.provenance
    version = document.get("version")
    code = f"version {version}" if version else f"code {str(document.get('source'))[:12]}"
    yield "rule", f"{document['rule']}, {code}"
    yield "digest", str(step.digest)
    yield "key", str(record.key)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(provenance.get("finished_at", 0)))
    peak = provenance.get("max_rss_bytes")
    memory = f", {render.size(int(peak))} of memory" if peak else ""
    yield "built", f"{when}, in {render.duration(provenance.get('seconds', 0.0))}{memory}"
    yield "size", f"{render.size(record.tree.size)} in {len(record.tree.entries)} files"
    if record.signature is not None:
        yield "signed by", record.signature.public
    for name, label in step.inputs.items():
        yield name, label
    for name, digest in source_files(record):
        spec = step.specs.get(name.partition("/")[0], {}).get("one")
        yield "source", f"{spec if isinstance(spec, str) else name}  {render.short(digest)}"
    for spec, revision in step.pins.items():
        yield "revision", f"{spec} at {revision}"
    libraries = ", ".join(f"{name} {found}" for name, found in document["libraries"].items())
    if libraries:
        yield "libraries", libraries
    for name, value in provenance.get("facts", {}).items():
        yield name, json.dumps(value, ensure_ascii=False)


def _table(rows: "Iterator[tuple[str, str]] | Sequence[tuple[str, str]]") -> str:
    lines = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _text(text: str) -> str:
    return escape(terminal.visible(text))
