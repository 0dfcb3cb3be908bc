"""Print the log of the last run of TARGET.

On a terminal control characters are shown, not obeyed; elsewhere the text is as it was written.

Exit status:
  0 done; 2 there is no such target, or it never ran here.
"""

import sys
from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project


def arguments(parser: ArgumentParser) -> None:
    """Add what `log` takes."""
    targets(parser.add_argument("target", metavar="TARGET", help="NAME or //package:NAME"))


def run(options: Namespace) -> int:
    """Print the log."""
    with open_project(options) as project:
        text = project.log(options.target)
    if options.json:
        terminal.print_json({"label": options.target, "log": text})
        return 0
    if sys.stdout.isatty():
        text = terminal.visible(text)
    sys.stdout.write(terminal.neutral(text))
    return 0
