"""Read every FTBUILD.toml of the workspace and type-check all targets. Builds nothing.

With --json the problems go to standard output.

Exit status:
  0 all is well; 2 something is wrong, and all of it is shown.
"""

from argparse import ArgumentParser, Namespace

from ftbuild.cli import render, terminal
from ftbuild.cli.flags import open_project
from ftbuild.errors import ManifestError, Problem


def arguments(parser: ArgumentParser) -> None:
    """Add what `check` takes: nothing of its own."""


def run(options: Namespace) -> int:
    """Check, and say what was found."""
    try:
        with open_project(options) as project:
            graph = project.check()
    except ManifestError as e:
        if not options.json:
            raise
        terminal.print_json({"problems": [_as_json(problem) for problem in e.problems]})
        return e.exit_code
    if options.json:
        terminal.print_json({"problems": []})
    elif not options.quiet:
        packages = len({target.package for target in graph.targets.values()})
        count = render.plural(len(graph.targets), "target")
        print(f"{count} in {render.plural(packages, 'package')}: all is well")
    return 0


def _as_json(problem: Problem) -> dict[str, object]:
    place = problem.where
    where = place and {"path": place.path, "line": place.line, "column": place.column}
    return {
        "code": problem.code,
        "what": problem.what,
        "where": where,
        "why": problem.why,
        "fix": problem.fix,
    }
