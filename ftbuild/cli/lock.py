"""Write FTBUILD.lock: what sources, libraries and rules resolved to.

What is in the lock stays as it is, but for what no target needs any more. --upgrade NAME looks
one thing up anew: a library, a source, or a target with its sources; --upgrade alone everything.
With --check nothing is written, and the exit status says whether it would be.

Exit status:
  0 done; 2 the manifest or the command is wrong; 3 --check or --locked, and the lock is out
  of date; 5 a needed network is down.
"""

import sys
from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line
from ftbuild.errors import UsageError
from ftbuild.view import Span

_OUT_OF_DATE_EXIT = 3
_EVERYTHING = ""


def arguments(parser: ArgumentParser) -> None:
    """Add what `lock` takes."""
    parser.add_argument(
        "--upgrade",
        metavar="NAME",
        action="append",
        nargs="?",
        const=_EVERYTHING,
        default=[],
        help="look NAME up anew, or without NAME everything; can be given several times",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 3 if it would")


def run(options: Namespace) -> int:
    """Write the lock, or check it, and print the lines that differ."""
    if options.frozen:
        raise UsageError(
            "`lock --frozen` would do nothing", code="E0020", fix="`--check` asks, `lock` writes"
        )
    is_check = options.check or options.locked or options.dry_run
    names = [name for name in options.upgrade if name != _EVERYTHING]
    with open_project(options) as project:
        changes = project.lock(names, upgrade_all=_EVERYTHING in options.upgrade, check=is_check)
    if options.json:
        terminal.print_json({"changes": changes})
    elif not options.quiet:
        color = terminal.use_color(sys.stdout, options.color)
        lines = [_line(text) for text in changes] or [(Span("FTBUILD.lock is up to date"),)]
        terminal.write(lines, sys.stdout, color=color)
    return _OUT_OF_DATE_EXIT if changes and (options.check or options.locked) else 0


def _line(change: str) -> Line:
    what, colon, how = change.rpartition(": ")
    return (Span(what + colon), Span(how, "yellow"))
