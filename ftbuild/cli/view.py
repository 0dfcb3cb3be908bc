"""Printing a `View`: what `inspect` and `diff` have in common."""

import sys
from argparse import ArgumentParser, Namespace

from ftbuild.cli import terminal
from ftbuild.view import View


def html_flag(parser: ArgumentParser) -> None:
    """Add `--html`."""
    parser.add_argument("--html", action="store_true", help="print one HTML page")


def show(view: View, options: Namespace, *, title: str) -> None:
    """Print the view for a person, as a page with --html, or its data with --json."""
    if options.json:
        terminal.print_json(view.data)
        return
    if options.html:
        from ftbuild.cli.page import page

        sys.stdout.write(page(view, title))
        return
    color = terminal.use_color(sys.stdout, options.color)
    terminal.write(view.lines, sys.stdout, color=color)
