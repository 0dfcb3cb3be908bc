"""Check the machine, the project and the store, and say what to do about what is wrong.

Exit status:
  0 nothing is wrong, or only warnings; 2 the manifest is wrong; 5 something has to be mended.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftbuild.cli import terminal
from ftbuild.cli.flags import open_project
from ftbuild.cli.terminal import Line
from ftbuild.view import Span

if TYPE_CHECKING:
    from ftbuild.doctor import Finding

_STYLES = {"ok": "green", "warn": "yellow", "error": "bold red"}
_ENVIRONMENT_EXIT = 5


def arguments(parser: ArgumentParser) -> None:
    """Add what `doctor` takes: nothing of its own."""


def run(options: Namespace) -> int:
    """Print all findings."""
    with open_project(options) as project:
        findings = project.doctor()
    if options.json:
        found = [{"level": f.level, "what": f.what, "fix": f.fix} for f in findings]
        terminal.print_json({"findings": found})
    else:
        color = terminal.use_color(sys.stdout, options.color)
        for finding in findings:
            if not options.quiet or finding.level != "ok":
                terminal.write(_lines(finding), sys.stdout, color=color)
    return _ENVIRONMENT_EXIT if any(f.level == "error" for f in findings) else 0


def _lines(finding: "Finding") -> Iterator[Line]:
    yield (Span(f"{finding.level:5}", _STYLES[finding.level]), Span(f"  {finding.what}"))
    if finding.fix:
        yield (Span("       fix: ", "green"), Span(finding.fix))
