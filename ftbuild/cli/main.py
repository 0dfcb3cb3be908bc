# PYTHON_ARGCOMPLETE_OK
"""The command `ftbuild`: find the command's name, run its module, turn what happens into a code.

Start-up counts here: this module imports only what Python has loaded anyway, a build with
nothing to do ends before any parser is made, and only the chosen command's module is loaded.
"""

import io
import os
import sys
from collections.abc import Iterator

COMMANDS = {
    "make": "build targets and what they need",
    "plan": "say what make would do: fresh, stale or unknown, and why",
    "why": "say what changed since a target was last built",
    "graph": "show how targets depend on each other",
    "targets": "list the targets",
    "rules": "list the rules, or the attributes of one",
    "schema": "print the JSON Schema of FTBUILD.toml, for editors",
    "check": "read and type-check every FTBUILD.toml; build nothing",
    "inspect": "show an artifact: rows, tokens, tensors, metrics",
    "diff": "compare two artifacts, or two builds of one",
    "verify": "run actions again in a clean place and compare bit for bit",
    "lock": "write FTBUILD.lock",
    "push": "send what is built to the remote store",
    "pull": "fetch what others have built from the remote store",
    "keys": "make the key pair with which records are signed",
    "log": "print the log of a target's last run",
    "provenance": "tell what an artifact follows from, down to its sources",
    "report": "print one HTML page about a target: graph, curves, samples, lineage",
    "path": "print the directory of a target's artifact",
    "init": "start a project in this folder",
    "import": "start a project from a configuration of Axolotl or LLaMA-Factory",
    "clean": "remove ftbuild-out; the store keeps its objects",
    "gc": "remove from the store what is old or too much",
    "doctor": "check the machine, the project and the store",
    "completion": "print what makes a shell complete commands and targets",
}
# Flags that take a value, for finding the command's name without a parser.
VALUED = frozenset({"-C", "-j", "--jobs", "--profile", "--set", "--color", "--progress"})
# With any other flag a build with nothing to do has more to say or to check than one line.
_FAST = VALUED | {"-k", "--keep-going", "-q", "--quiet", "--offline"}

_COLLECT_AFTER = 50_000
"""New containers between two garbage collections. A graph is hundreds of thousands of them, none
of which is garbage; at Python's 700 looking at them again and again is a tenth of a start."""


def app(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    if "_ARGCOMPLETE" in os.environ:
        from ftbuild.cli.complete import complete

        complete()
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except BaseException as error:
        from ftbuild.cli.failure import report

        return report(error, args)


def _run(args: list[str]) -> int:
    if args in (["--version"], ["-V"]):
        from ftbuild import __version__

        print(f"ftbuild {__version__}")
        return 0
    name, rest = split(args)
    if name == "make" and (done := _nothing_to_do(rest)) is not None:
        return done
    import gc

    from ftbuild.cli.flags import run_command

    gc.set_threshold(_COLLECT_AFTER)
    return run_command(name, rest)


def _prepare_streams() -> None:
    """Let everything be printed, whatever the encoding, and to streams that were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `2>&-`: else the next file opened would be taken for the stream
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper):
            # A path or a row may hold what the terminal's encoding has no form for.
            stream.reconfigure(errors="backslashreplace")


def split(args: list[str]) -> tuple[str | None, list[str]]:
    """Return the command's name and all other arguments, those before it too."""
    for index, flag, _ in walk(args):
        if flag == "":
            return args[index], args[:index] + args[index + 1 :]
    return None, args


def walk(args: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield index, flag and value of each argument; a word is the value of flag ``""``."""
    index = 0
    while index < len(args):
        arg, start = args[index], index
        index += 1
        if arg == "--":
            yield from ((i, "", args[i]) for i in range(index, len(args)))
            return
        if not arg.startswith("-") or arg == "-":
            yield start, "", arg
            continue
        for flag, value in _flags(arg):
            if flag in VALUED and value is None and index < len(args):
                value, index = args[index], index + 1
            yield start, flag, value or ""


def _flags(arg: str) -> Iterator[tuple[str, str | None]]:
    """Yield the flags in one argument: `--set=x`, `-kj4`."""
    if arg.startswith("--"):
        name, equals, value = arg.partition("=")
        yield name, value if equals else None
        return
    for place, letter in enumerate(arg[1:], start=2):
        if f"-{letter}" in VALUED:
            yield f"-{letter}", arg[place:] or None
            return
        yield f"-{letter}", None


def _nothing_to_do(args: list[str]) -> int | None:
    """Return 0 if all targets are certainly fresh, None if that has to be found out."""
    found = list(walk(args))
    if any(flag and flag not in _FAST for _, flag, _ in found) or not _are_sound(found):
        return None
    from ftbuild.fastpath import try_fast

    directory = os.path.join("", *(value for _, flag, value in found if flag == "-C"))
    names = [value for _, flag, value in found if flag == ""]
    profile = next((value for _, flag, value in reversed(found) if flag == "--profile"), None)
    overrides = [value for _, flag, value in found if flag == "--set"]
    fresh = try_fast(directory or ".", names, profile, overrides)
    if fresh is None:
        return None
    count, seconds = fresh
    if not any(flag in ("-q", "--quiet") for _, flag, _ in found):
        plural = "" if count == 1 else "s"
        print(f"nothing to do ({count} target{plural} fresh, {seconds:.2f} s)", file=sys.stderr)
    return 0


def _are_sound(found: list[tuple[int, str, str]]) -> bool:
    """Say whether the flags that the fast path does not use have values that a parser takes."""
    allowed = {
        "--color": ("auto", "always", "never"),
        "--progress": ("auto", "plain", "tty", "none"),
    }
    return all(
        value in allowed.get(flag, (value,))
        and (flag not in ("-j", "--jobs") or (value.isdecimal() and int(value) > 0))
        and (flag not in VALUED or value != "")
        for _, flag, value in found
    )
