"""Write FTBUILD.lock: what sources, libraries and rules resolved to.

What is in the lock stays as it is; --upgrade resolves NAME, a source or a library, anew.

Exit status:
  0 done; 2 the manifest or the command is wrong; 3 --check or --locked, and the lock is out
  of date; 5 a needed network is down.
"""

import sys
from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import plain

_OUT_OF_DATE_EXIT = 3


def arguments(parser: ArgumentParser) -> None:
    """Add what `lock` takes."""
    parser.add_argument(
        "--upgrade",
        metavar="NAME",
        action="append",
        default=[],
        help="resolve NAME anew; can be given several times",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 3 if it would")


def run(options: Namespace) -> int:
    """Write the lock, or check it, and print the lines that differ."""
    is_check = options.check or options.locked or options.dry_run
    with open_project(options) as project:
        changes = project.lock(options.upgrade, check=is_check)
    if options.json:
        terminal.print_json({"changes": changes})
    elif not options.quiet:
        styles = {"-": "red", "+": "green"}
        lines = [plain(text, styles.get(text[:1], "")) for text in changes]
        color = terminal.use_color(sys.stdout, options.color)
        terminal.write(lines or [plain("FTBUILD.lock is up to date")], sys.stdout, color=color)
    return _OUT_OF_DATE_EXIT if changes and (options.check or options.locked) else 0
