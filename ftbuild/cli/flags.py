"""The flags of every command, and the way from them to an opened project.

Flags beat the environment. Only what can change no result may come from the environment:
FTBUILD_JOBS, FTBUILD_COLOR, FTBUILD_PROGRESS.
"""

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from ftbuild.cli.main import COMMANDS
from ftbuild.errors import UsageError
from ftbuild.wording import nearest

if TYPE_CHECKING:
    from ftbuild.project import Project
    from ftbuild.registry import Registry

COLORS = ("auto", "always", "never")
PROGRESS = ("auto", "plain", "tty", "none")

_Formatter = RawDescriptionHelpFormatter
_EXIT = """exit status:
  0 done; 1 an action failed; 2 the manifest or the command is wrong; 3 a difference;
  4 corrupt objects; 5 the environment; 70 a bug of ftbuild; 130, 143 interrupted"""


class _Parser(ArgumentParser):
    """Raises what is wrong with a command line instead of ending the process."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **settings)
        self.color = False  # Python 3.14 would colour the help whatever --color says

    def error(self, message: str) -> NoReturn:
        raise UsageError(
            message, code="E0020", fix=f"`{self.prog} --help` lists what the command takes"
        )


def run_command(name: str | None, args: list[str]) -> int:
    """Parse `args` for the command `name` and run it; without one, show the help."""
    if name == "help":
        name, args = (args[0], ["--help"]) if args else (None, ["--help"])
    if name is None:
        return _top(args)
    if name not in COMMANDS:
        raise UsageError(f"there is no command `{name}`", code="E0001", fix=_did_you_mean(name))
    module = module_of(name)
    parser = command_parser(name, module)
    options, unknown = parser.parse_known_intermixed_args(args)
    if unknown:
        raise UsageError(
            f"`ftbuild {name}` does not take `{unknown[0]}`",
            code="E0020",
            fix=f"`ftbuild {name} --help` lists what it takes",
        )
    return int(module.run(from_environment(options)))


def module_of(name: str) -> ModuleType:
    """Return the module of a command: that of its name, with `_` after a word of Python."""
    return import_module(f"ftbuild.cli.{name}_" if iskeyword(name) else f"ftbuild.cli.{name}")


def _did_you_mean(name: str) -> str:
    close = nearest(name, COMMANDS)
    return f"did you mean `ftbuild {close}`?" if close else "`ftbuild --help` lists the commands"


def _top(args: list[str]) -> int:
    """Show the help: on standard output if it was asked for."""
    if any(arg in ("-V", "--version") for arg in args):
        from ftbuild import __version__

        print(f"ftbuild {__version__}")
        return 0
    asked = any(arg in ("-h", "--help") for arg in args)
    top_parser().print_help(sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def top_parser() -> ArgumentParser:
    """Return the parser of what stands before a command; its help lists all commands."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = _Parser(
        prog="ftbuild",
        usage="ftbuild [-C DIR] COMMAND [ARGUMENT ...]",
        description=f"Build fine-tuned language models.\n\ncommands:\n{commands}",
        epilog=_EXIT,
    )
    add_global_flags(parser)
    parser.add_argument("-V", "--version", action="store_true", help="print `ftbuild X.Y.Z`")
    return parser


def command_parser(name: str, module: Any) -> ArgumentParser:
    """Return the parser of one command; its help is the module's docstring."""
    description, _, status = (module.__doc__ or "").strip().partition("\n\nExit status:")
    parser = _Parser(
        prog=f"ftbuild {name}",
        description=description,
        epilog=f"exit status:{status}" if status else None,
    )
    module.arguments(parser)
    # Made before the flags of every command are there, which would bury the command's own.
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip()
    add_global_flags(parser)
    return parser


def add_global_flags(parser: ArgumentParser) -> None:
    """Add the flags that every command takes, before and after its name."""
    group = parser.add_argument_group("flags of every command")
    add = group.add_argument
    add("-C", dest="directory", metavar="DIR", action="append", help="work in DIR")
    add("--json", action="store_true", help="print JSON for other tools")
    add("-j", "--jobs", metavar="N", type=_jobs, help="run up to N actions at once")
    add("-k", "--keep-going", action="store_true", help="after a failure build what still can be")
    add("-n", "--dry-run", action="store_true", help="change nothing; say what would be done")
    add("--locked", action="store_true", help="refuse to change FTBUILD.lock")
    add("--frozen", action="store_true", help="take FTBUILD.lock as it is; look nothing up")
    add("--offline", action="store_true", help="use no network")
    add("--profile", metavar="NAME", help="lay the tables of [profile.NAME] over the targets")
    add(
        "--set",
        dest="overrides",
        metavar="TARGET.ATTRIBUTE=VALUE",
        action="append",
        default=[],
        help="set one attribute; can be given several times",
    )
    add("-q", "--quiet", action="store_true", help="say only what went wrong")
    add("-v", "--verbose", action="store_true", help="say more: fresh targets, reasons")
    add("--color", choices=COLORS, help="auto: if the output is a terminal")
    add("--progress", choices=PROGRESS, help="auto: a table on a terminal, lines elsewhere")
    add("--debug", action="store_true", help="show tracebacks")


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        # argparse puts the flag's name before the message.
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"`{text}` is not a number of jobs")
    return int(text)


def from_environment(options: Namespace) -> Namespace:
    """Fill in what no flag said from FTBUILD_JOBS, FTBUILD_COLOR and FTBUILD_PROGRESS."""
    if options.jobs is None and (jobs := os.environ.get("FTBUILD_JOBS")):
        if not jobs.isdecimal() or int(jobs) < 1:
            raise _bad_variable("FTBUILD_JOBS", jobs, "a whole number from 1")
        options.jobs = int(jobs)
    options.color = options.color or _one_of("FTBUILD_COLOR", COLORS)
    options.progress = options.progress or _one_of("FTBUILD_PROGRESS", PROGRESS)
    return options


def _one_of(variable: str, choices: Sequence[str]) -> str:
    value = os.environ.get(variable) or choices[0]
    if value not in choices:
        raise _bad_variable(variable, value, f"one of {', '.join(choices)}")
    return value


def _bad_variable(variable: str, value: str, expected: str) -> UsageError:
    return UsageError(
        f"the environment variable {variable} is `{value}`",
        code="E0021",
        fix=f"unset it, or make it {expected}",
    )


def directory_of(options: Namespace) -> Path:
    """Return the folder that the command works in.

    Raises:
        UsageError: there is no such folder.
    """
    directory = Path(*(options.directory or ["."]))
    if not directory.is_dir():
        raise UsageError(f"there is no folder `{directory}`", code="E0022", fix="check `-C`")
    return directory


@contextmanager
def open_project(options: Namespace) -> Iterator["Project"]:
    """Open the project around the folder, with the flags' profile, overrides and limits."""
    from ftbuild.project import Project

    if options.locked and options.frozen:
        raise UsageError(
            "`--locked` and `--frozen` exclude each other",
            code="E0020",
            fix="--locked asks that FTBUILD.lock is up to date; --frozen does not ask",
        )
    project = Project.open(
        directory_of(options),
        profile=options.profile,
        overrides=options.overrides,
        locked=options.locked,
        frozen=options.frozen,
        offline=options.offline,
        jobs=options.jobs,
    )
    try:
        yield project
    finally:
        project.close()


def open_registry(options: Namespace) -> "Registry":
    """Return the rules that the project around the folder can use; outside of one, all packs'."""
    from ftbuild import manifest
    from ftbuild.errors import ManifestError
    from ftbuild.registry import Registry

    directory = directory_of(options)
    try:
        root = manifest.find_root(directory)
    except ManifestError:
        return Registry(directory)
    return Registry(root, manifest.load(root).project.rules)
