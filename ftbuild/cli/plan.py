"""Say of each target that TARGET needs whether it is fresh, stale or unknown, and why.

`unknown`: something below it is stale, so what it will be made of is not known yet. The last
column is what the last run took. Builds nothing.

Exit status:
  0 done; 2 the manifest or the command is wrong; 3 --exit-code, and there is work to do.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftbuild.cli import render, terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line
from ftbuild.plan import State, Verdict
from ftbuild.view import Span

_PENDING_EXIT = 3
_SHOWN_REASONS = 2


def arguments(parser: ArgumentParser) -> None:
    """Add what `plan` takes."""
    targets(
        parser.add_argument(
            "targets", metavar="TARGET", nargs="*", help="a label: NAME or //package:NAME"
        )
    )
    parser.add_argument("--exit-code", action="store_true", help="exit 3 if there is work to do")


def run(options: Namespace) -> int:
    """Show the plan; with --exit-code say by the exit code whether there is work."""
    return show(options, tells_pending=options.exit_code)


def show(options: Namespace, *, tells_pending: bool = False) -> int:
    """Print the plan for `options.targets`, as `make --dry-run` does too."""
    with open_project(options) as project:
        verdicts = project.plan(options.targets).verdicts
        for text in project.warnings:
            terminal.say(f"warning: {text}")
    if options.json:
        terminal.print_json({"targets": [_as_json(verdict) for verdict in verdicts]})
    else:
        color = terminal.use_color(sys.stdout, options.color)
        terminal.write(_lines(verdicts), sys.stdout, color=color)
    is_pending = any(verdict.state is not State.FRESH for verdict in verdicts)
    return _PENDING_EXIT if tells_pending and is_pending else 0


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "label": verdict.label,
        "rule": verdict.rule,
        "state": verdict.state.value,
        "key": verdict.key,
        "reasons": [{"kind": r.kind, "detail": r.detail} for r in verdict.reasons],
    }


def _lines(verdicts: Sequence[Verdict]) -> list[Line]:
    rows = []
    for verdict in verdicts:
        cost = ""
        if verdict.state is not State.FRESH and verdict.seconds is not None:
            cost = f"~{render.duration(verdict.seconds)}"
        rows.append(
            (
                Span(verdict.state.value, render.STATE_STYLES[verdict.state]),
                Span(verdict.label, "bold"),
                Span(_reasons(verdict)),
                Span(cost, "dim"),
            )
        )
    return terminal.table(rows)


def _reasons(verdict: Verdict) -> str:
    texts = [render.reason_text(reason) for reason in verdict.reasons]
    more = len(texts) - _SHOWN_REASONS
    shown = "; ".join(texts[:_SHOWN_REASONS])
    return f"{shown}; {more} more" if more > 0 else shown
