"""Say what changed since TARGET was last built, down to the attribute, row or library.

Shows the chain from what changed up to TARGET. Builds nothing.

Exit status:
  0 done; 2 the manifest or the command is wrong.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

from ftbuild.cli import render, terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line, plain
from ftbuild.plan import State, Verdict
from ftbuild.view import Span


def arguments(parser: ArgumentParser) -> None:
    """Add what `why` takes."""
    targets(parser.add_argument("target", metavar="TARGET", help="NAME or //package:NAME"))
    parser.add_argument("--all", action="store_true", help="show the fresh targets below it too")


def run(options: Namespace) -> int:
    """Print the chain of causes."""
    with open_project(options) as project:
        verdicts = project.why(options.target, everything=options.all).verdicts
    if options.json:
        terminal.print_json({"targets": [_as_json(verdict) for verdict in verdicts]})
        return 0
    if not options.all and all(verdict.state is State.FRESH for verdict in verdicts):
        lines: Iterator[Line] = iter([plain(f"{options.target} is fresh: nothing changed")])
    else:
        lines = _lines(verdicts)
    terminal.write(lines, sys.stdout, color=terminal.use_color(sys.stdout, options.color))
    return 0


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "label": verdict.label,
        "rule": verdict.rule,
        "state": verdict.state.value,
        "key": verdict.key,
        "reasons": [
            {"kind": r.kind, "detail": r.detail, "lines": list(r.lines)} for r in verdict.reasons
        ],
        "seconds": verdict.seconds,
    }


def _lines(verdicts: Sequence[Verdict]) -> Iterator[Line]:
    for verdict in verdicts:
        state = Span(f" is {verdict.state.value}", render.STATE_STYLES[verdict.state])
        yield (Span(verdict.label, "bold"), state)
        for reason in verdict.reasons:
            yield from render.reason_lines(reason, "  ")
