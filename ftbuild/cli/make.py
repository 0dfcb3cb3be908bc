"""Build each TARGET and all that it needs; without one, the project's default.

What an edit did not touch is reused. Progress goes to standard error; with --json one event
a line goes to standard output.

Exit status:
  0 all targets are up to date; 1 an action failed; 2 the manifest or the command is wrong;
  3 --locked, and FTBUILD.lock is out of date; 4 corrupt objects; 5 the environment;
  130, 143 interrupted (what was finished is kept).
"""

import sys
from argparse import ArgumentParser, Namespace

from ftbuild.cli import plan
from ftbuild.cli.complete import targets
from ftbuild.cli.flags import open_project
from ftbuild.cli.plain import Detail, JsonReporter, PlainReporter, Reporter, wants_table
from ftbuild.cli.terminal import use_color


def arguments(parser: ArgumentParser) -> None:
    """Add what `make` takes."""
    add = parser.add_argument
    targets(add("targets", metavar="TARGET", nargs="*", help="a label: NAME or //package:NAME"))
    targets(
        add(
            *("-B", "--force"),
            metavar="TARGET",
            action="append",
            default=[],
            help="run it even if it is fresh; can be given several times",
        )
    )


def run(options: Namespace) -> int:
    """Build the targets; with --dry-run show the plan."""
    if options.dry_run:
        return plan.show(options)
    with open_project(options) as project, _reporter(options) as reporter:
        result = project.make(
            options.targets,
            keep_going=options.keep_going,
            force=options.force,
            on_event=reporter,
        )
    return result.exit_code


def _reporter(options: Namespace) -> Reporter:
    if options.json:
        return JsonReporter()
    color = use_color(sys.stderr, options.color)
    if wants_table(options.progress) and not options.quiet:
        from ftbuild.cli.live import LiveReporter

        return LiveReporter(sys.stderr, color=color, is_verbose=options.verbose)
    return PlainReporter(sys.stderr, detail=_detail(options), color=color)


def _detail(options: Namespace) -> Detail:
    if options.quiet:
        return Detail.FAILURES
    if options.progress == "none":
        return Detail.SUMMARY
    return Detail.ALL if options.verbose else Detail.CHANGES
