"""Print the directory of the artifact of TARGET, and nothing else.

Exit status:
  0 done; 2 there is no such target, or it is not built.
"""

from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project


def arguments(parser: ArgumentParser) -> None:
    """Add what `path` takes."""
    targets(parser.add_argument("target", metavar="TARGET", help="NAME or //package:NAME"))


def run(options: Namespace) -> int:
    """Print the path."""
    with open_project(options) as project:
        path = project.path(options.target)
    if options.json:
        terminal.print_json({"label": options.target, "path": str(path)})
    else:
        # As it is: a path that is shown with other characters cannot be opened.
        print(path)
    return 0
