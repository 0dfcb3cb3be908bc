"""Show what TARGET is made of, as a tree; without one, what the default is made of.

Exit status:
  0 done; 2 the manifest or the command is wrong.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ftbuild.cli import terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line
from ftbuild.view import Span

if TYPE_CHECKING:
    from ftbuild.graph import Target

FORMATS = ("text", "mermaid", "dot", "json")


def arguments(parser: ArgumentParser) -> None:
    """Add what `graph` takes."""
    targets(parser.add_argument("targets", metavar="TARGET", nargs="*", help="a label"))
    parser.add_argument("--format", choices=FORMATS, default="text", help="text is the default")


def run(options: Namespace) -> int:
    """Print the graph in the format asked for."""
    with open_project(options) as project:
        wanted = project.resolve(options.targets)
        found = project.graph.closure(wanted)
    if options.json or options.format == "json":
        terminal.print_json({"targets": [_as_json(target) for target in found]})
    elif options.format == "mermaid":
        print("\n".join(_mermaid(found)))
    elif options.format == "dot":
        print("\n".join(_dot(found)))
    else:
        color = terminal.use_color(sys.stdout, options.color)
        terminal.write(_tree(found, wanted), sys.stdout, color=color)
    return 0


def _needs(target: "Target") -> list[str]:
    return list(dict.fromkeys(edge.label for edge in target.edges))


def _as_json(target: "Target") -> dict[str, object]:
    return {
        "label": target.label,
        "rule": target.rule,
        "kind": target.kind,
        "inputs": [
            {"attribute": edge.field, "label": edge.label, "part": edge.part}
            for edge in target.edges
        ],
    }


def _mermaid(found: Sequence["Target"]) -> Iterator[str]:
    """Yield a flowchart; a label's own characters could end a node, so nodes have numbers."""
    numbers = {target.label: index for index, target in enumerate(found)}
    yield "flowchart LR"
    for target in found:
        yield f'  t{numbers[target.label]}["{target.label}<br/>{target.rule}"]'
    for target in found:
        for label in _needs(target):
            yield f"  t{numbers[label]} --> t{numbers[target.label]}"


def _dot(found: Sequence["Target"]) -> Iterator[str]:
    yield "digraph ftbuild {"
    yield "  rankdir=LR;"
    yield "  node [shape=box];"
    for target in found:
        yield f'  "{target.label}" [label="{target.label}\\n{target.rule}"];'
    for target in found:
        yield from (f'  "{label}" -> "{target.label}";' for label in _needs(target))
    yield "}"


def _tree(found: Sequence["Target"], wanted: Sequence[str]) -> Iterator[Line]:
    """Yield a tree below each wanted target that no other wanted one needs.

    What is needed twice is taken apart once, so that the text grows with the edges, not with
    the paths. No recursion: a chain may be ten thousand targets long.
    """
    by_label = {target.label: target for target in found}
    needed = {label for target in found for label in _needs(target)}
    roots = [label for label in wanted if label not in needed]
    shown: set[str] = set()
    stack = [(label, "", "") for label in reversed(roots)]
    while stack:
        label, branch, indent = stack.pop()
        target = by_label[label]
        needs = _needs(target)
        is_repeated = label in shown and bool(needs)
        note = " (above)" if is_repeated else ""
        yield (Span(branch, "dim"), Span(label, "bold"), Span(f" {target.rule}{note}", "dim"))
        if is_repeated:
            continue
        shown.add(label)
        for place, below in reversed(list(enumerate(needs, start=1))):
            is_last = place == len(needs)
            inner = indent + ("   " if is_last else "│  ")
            stack.append((below, indent + ("└─ " if is_last else "├─ "), inner))
