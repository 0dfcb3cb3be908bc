"""List all targets of the workspace: label, rule, kind, tags and description.

Exit status:
  0 done; 2 the manifest or the command is wrong.
"""

import sys
from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.cli.flags import open_project
from ftbuild.view import Span


def arguments(parser: ArgumentParser) -> None:
    """Add what `targets` takes."""
    parser.add_argument("--tag", metavar="TAG", help="only those with this tag")


def run(options: Namespace) -> int:
    """Print the targets in build order."""
    with open_project(options) as project:
        found = [
            target
            for target in project.check().targets.values()
            if options.tag is None or options.tag in target.tags
        ]
    if options.json:
        terminal.print_json(
            {
                "targets": [
                    {
                        "label": target.label,
                        "rule": target.rule,
                        "kind": target.kind,
                        "description": target.description,
                        "tags": list(target.tags),
                    }
                    for target in found
                ]
            }
        )
        return 0
    rows = [
        (
            Span(target.label, "bold"),
            Span(target.rule, "cyan"),
            Span(target.kind),
            Span(" ".join(target.tags), "yellow"),
            Span(target.description, "dim"),
        )
        for target in found
    ]
    color = terminal.use_color(sys.stdout, options.color)
    terminal.write(terminal.table(rows), sys.stdout, color=color)
    return 0
