"""Compare two artifacts: rows, tokens, tensors, metrics.

A and B are targets of one kind; TARGET@previous is the build of TARGET before the last one.

Exit status:
  0 done, whether they differ or not; 1 they cannot be compared; 2 the manifest or the
  command is wrong.
"""

from argparse import ArgumentParser, Namespace

from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.view import html_flag, show


def arguments(parser: ArgumentParser) -> None:
    """Add what `diff` takes."""
    targets(parser.add_argument("a", metavar="A", help="a label, or LABEL@previous"))
    targets(parser.add_argument("b", metavar="B", help="the same"))
    html_flag(parser)


def run(options: Namespace) -> int:
    """Print what differs."""
    with open_project(options) as project:
        view = project.diff(options.a, options.b)
    show(view, options, title=f"{options.a} and {options.b}")
    return 0
