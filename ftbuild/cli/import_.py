"""Start a project in this folder (or in -C DIR) from a configuration of Axolotl or LLaMA-Factory.

FILE is the YAML file that a training is started with. FTBUILD.toml is written, so that it trains
the same, and checked; paths in FILE are taken as seen from this folder. A note is printed for each
key that has no counterpart, means something else, or needs a look.

Exit status:
  0 done; 2 FILE cannot be imported, FTBUILD.toml is there, or what was written does not check;
  5 no permission.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ftbuild.cli import render, terminal
from ftbuild.cli.flags import directory_of, open_project
from ftbuild.cli.init import project_name
from ftbuild.errors import ManifestError, Place, UsageError

if TYPE_CHECKING:
    from ftbuild.importing import Foreign


def arguments(parser: ArgumentParser) -> None:
    """Add what `import` takes."""
    parser.add_argument("file", metavar="FILE", help="a YAML file of Axolotl or LLaMA-Factory")


def run(options: Namespace) -> int:
    """Convert, write, check, and say what there is to know."""
    from ftbuild.importing import convert
    from ftbuild.registry import Registry

    directory = directory_of(options)
    path = directory / "FTBUILD.toml"
    if path.exists():
        raise UsageError(
            f"`{path}` is already there",
            code="E0023",
            fix="choose another folder: `ftbuild -C DIR import FILE`",
        )
    foreign = convert(Path(options.file), directory, project_name(directory), Registry(directory))
    if not options.dry_run:
        with path.open("x", encoding="utf-8") as file:
            file.write(foreign.text)
    _say(foreign, options)
    if options.dry_run:
        return 0
    return _check(options)


def _say(foreign: "Foreign", options: Namespace) -> None:
    notes = list(foreign.notes())
    tables = foreign.imported.tables
    if options.json:
        terminal.print_json(
            {
                "tool": foreign.tool,
                "default": foreign.imported.default,
                "tables": [
                    {"rule": t.rule, "name": t.name, "attributes": t.attributes} for t in tables
                ],
                "notes": [
                    {"key": key, "line": place.line, "column": place.column, "text": text}
                    for place, key, text in notes
                ],
            }
        )
    elif not options.quiet:
        wrote = "would write" if options.dry_run else "wrote"
        count = render.plural(len(tables), "target")
        print(f"{wrote} FTBUILD.toml: {count} from a file of {foreign.tool}")
        for place, key, text in notes:
            about = f"`{key}`: " if key else ""
            print(terminal.one_line(f"{place.path}{_numbers(place)}: {about}{text}"))


def _numbers(place: Place) -> str:
    return "" if place.line is None else f":{place.line}:{place.column}"


def _check(options: Namespace) -> int:
    try:
        with open_project(options) as project:
            graph = project.check()
    except ManifestError:
        if not options.json:
            terminal.say("FTBUILD.toml is written, but does not check yet:")
        raise
    if not options.json and not options.quiet:
        terminal.say(f"checked {render.plural(len(graph.targets), 'target')}: all is well")
        terminal.say("next: ftbuild plan, then ftbuild make")
    return 0
