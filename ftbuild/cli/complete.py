"""What a shell completes: commands, flags, and the labels of the project's targets."""

import argparse
from collections.abc import Iterable
from typing import Any

from ftbuild.cli import flags
from ftbuild.cli.main import COMMANDS
from ftbuild.errors import FtbuildError


def targets(action: argparse.Action) -> None:
    """Let the values of `action` be completed with the labels of targets."""
    action.completer = labels  # type: ignore[attr-defined]  # argcomplete reads it


def labels(parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """Return the labels of the project around the folder; none if its manifest is wrong."""
    options = argparse.Namespace(
        directory=getattr(parsed_args, "directory", None),
        profile=getattr(parsed_args, "profile", None),
        overrides=[],
        locked=False,
        frozen=False,
        offline=True,
        jobs=None,
    )
    try:
        with flags.open_project(options) as project:
            graph = project.graph
            return [*graph.targets, *(f for f in graph.families if f not in graph.targets)]
    except FtbuildError:
        return []


def complete() -> None:
    """Answer the shell and end the process, if a shell is asking."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="ftbuild")
    flags.add_global_flags(parser)
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        # Suppressed, or the defaults behind the command would hide a `-C` before it.
        command = commands.add_parser(name, help=summary, argument_default=argparse.SUPPRESS)
        flags.module_of(name).arguments(command)
        flags.add_global_flags(command)
    argcomplete.autocomplete(parser)
