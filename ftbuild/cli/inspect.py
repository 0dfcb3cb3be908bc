"""Show the artifact of TARGET as a person wants it: rows, tokens, tensors, metrics.

In tokens, what is trained on has a colour and what is masked has none; at the end of a step
stands whether it is right. `--html > page.html` keeps it as a page.

Exit status:
  0 done; 1 the artifact cannot be shown; 2 the manifest or the command is wrong.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.view import html_flag, show


def arguments(parser: ArgumentParser) -> None:
    """Add what `inspect` takes."""
    targets(parser.add_argument("target", metavar="TARGET", help="NAME or //package:NAME"))
    parser.add_argument("--row", metavar="N", type=_row, help="one row; the first is 0")
    html_flag(parser)


def _row(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"`{text}` is not a row number")
    return int(text)


def run(options: Namespace) -> int:
    """Print the artifact, or one row of it."""
    with open_project(options) as project:
        view = project.inspect(options.target, options.row)
    row = "" if options.row is None else f", row {options.row}"
    show(view, options, title=f"{options.target}{row}")
    return 0
