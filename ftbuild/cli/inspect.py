"""Show the artifact of TARGET as a person wants it: rows, tokens, tensors, metrics.

In tokens, what is trained on has a colour and what is masked has none.

Exit status:
  0 done; 1 the artifact cannot be shown; 2 the manifest or the command is wrong.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.view import show


def arguments(parser: ArgumentParser) -> None:
    """Add what `inspect` takes."""
    targets(parser.add_argument("target", metavar="TARGET", help="NAME or //package:NAME"))
    parser.add_argument("--row", metavar="N", type=_row, help="one row; the first is 0")


def _row(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"`{text}` is not a row number")
    return int(text)


def run(options: Namespace) -> int:
    """Print the artifact, or one row of it."""
    with open_project(options) as project:
        view = project.inspect(options.target, options.row)
    show(view, options)
    return 0
