"""Printing a `View`: what `inspect` and `diff` have in common."""

import sys
from argparse import Namespace

from ftbuild.cli import terminal
from ftbuild.view import View


def show(view: View, options: Namespace) -> None:
    """Print the view for a person, or its data with --json."""
    if options.json:
        terminal.print_json(view.data)
        return
    color = terminal.use_color(sys.stdout, options.color)
    terminal.write(view.lines, sys.stdout, color=color)
