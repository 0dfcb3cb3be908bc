"""Remove what ftbuild-out holds of TARGET; without one, all of it.

The store keeps the artifacts, so `ftbuild make` brings them back without running anything.

Exit status:
  0 done; 2 the manifest or the command is wrong; 5 no permission.
"""

from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project


def arguments(parser: ArgumentParser) -> None:
    """Add what `clean` takes."""
    targets(parser.add_argument("targets", metavar="TARGET", nargs="*", help="a label"))


def run(options: Namespace) -> int:
    """Remove, and say what was removed."""
    with open_project(options) as project:
        removed = project.clean(options.targets)
    if options.json:
        terminal.print_json({"removed": removed})
    elif not options.quiet:
        for label in removed:
            print(f"removed {label} from ftbuild-out")
    return 0
