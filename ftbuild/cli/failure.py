"""What becomes of an exception: words on standard error and an exit code.

A user can mend an `FtbuildError`, so it is shown without a traceback. Anything else is a bug
of ours: exit 70, and a file that says where it happened.
"""

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from ftbuild.cli import terminal
from ftbuild.cli.main import walk
from ftbuild.cli.terminal import Line, plain
from ftbuild.errors import FtbuildError, MachineError, Place
from ftbuild.redaction import of_environment
from ftbuild.view import Span

_BROKEN_PIPE_EXIT = 128 + 13
_INTERRUPTED_EXIT = 128 + 2
_BUG_EXIT = 70
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


def report(error: BaseException, args: Sequence[str]) -> int:
    """Say on standard error what went wrong and return the exit code."""
    if isinstance(error, BrokenPipeError):
        _silence()
        return _BROKEN_PIPE_EXIT
    try:
        if isinstance(error, SystemExit):  # argparse after --help
            sys.stdout.flush()
            return error.code if isinstance(error.code, int) else 1
        return _explain(error, args)
    except BrokenPipeError:
        _silence()
        return _BROKEN_PIPE_EXIT


def _explain(error: BaseException, args: Sequence[str]) -> int:
    if "--debug" in args:
        terminal.say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt):
        terminal.say("interrupted")
        return _INTERRUPTED_EXIT
    if isinstance(error, OSError) and error.errno in (*_FULL, *_REFUSED):
        error = _machine_error(error)
        _silence()
    if isinstance(error, FtbuildError):
        show(error.render(), args)
        return error.exit_code
    show(_bug(error, args), args)
    return _BUG_EXIT


def show(rendered: str, args: Sequence[str]) -> None:
    """Print a rendered error to standard error, in colour if it is a terminal."""
    choice = next((value for _, flag, value in walk(list(args)) if flag == "--color"), None)
    choice = choice or os.environ.get("FTBUILD_COLOR") or "auto"
    color = terminal.use_color(sys.stderr, choice)
    terminal.write(error_lines(rendered), sys.stderr, color=color)


def error_lines(rendered: str) -> Iterator[Line]:
    """Yield the lines of a rendered error with their styles."""
    for text in rendered.split("\n"):
        bare = text.strip()
        if text.startswith("error"):
            head, colon, what = text.partition(": ")
            yield (Span(head + colon, "bold red"), Span(what, "bold"))
        elif bare.startswith("-->"):
            yield plain(text, "blue")
        elif bare.startswith("fix: "):
            yield plain(text, "green")
        elif bare.endswith("^") and not bare.partition("|")[2].strip(" \t^"):
            yield plain(text, "red")
        else:
            yield plain(text)


def _machine_error(error: OSError) -> MachineError:
    # A call on a descriptor names its number, which says nothing to anybody.
    is_named = isinstance(error.filename, str | bytes)
    where = Place(os.fsdecode(error.filename)) if is_named else None
    if error.errno in _FULL:
        fix = "free some space (`ftbuild gc` shrinks the store), then run the command again"
        return MachineError("the disk is full", code="E0660", where=where, fix=fix)
    if error.errno == errno.ENAMETOOLONG:
        what = "a path of this workspace is longer than the system takes"
        return MachineError(what, code="E0661", fix="move the workspace to a shorter path")
    reason = os.strerror(error.errno or 0).lower()
    fix = "look at who owns it, and at what may be written"
    return MachineError(reason, code="E0661", where=where, fix=fix)


def _bug(error: BaseException, args: Sequence[str]) -> str:
    """Write the crash report and return what to tell the user."""
    summary = traceback.format_exception_only(error)[-1].strip()
    lines = [f"error: a bug in ftbuild: {summary}"]
    try:
        lines.append(f"  --> {_write_report(error, args)}")
        lines.append("  fix: please report it and attach that file; read it first, it is short")
    except OSError as e:
        lines.append(f"  why: no crash report could be written ({e.strerror})")
        lines.append("  fix: run it again with `--debug` and report what it prints")
    return "\n".join(lines)


def _write_report(error: BaseException, args: Sequence[str]) -> Path:
    import platform
    import tempfile
    import time

    from ftbuild import __version__

    text = [
        f"ftbuild {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: {' '.join(_without_values(args))}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    name = f"crash-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.txt"
    folder = _state_folder()
    if folder is None:
        name, folder = f"ftbuild-{name}", Path(tempfile.gettempdir())
    path = folder / name
    clean = of_environment().text("\n".join(text))
    path.write_text(clean, encoding="utf-8", errors="backslashreplace")
    return path


def _state_folder() -> Path | None:
    """Return the nearest writable `.ftbuild` folder upwards of the working directory."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        state = folder / ".ftbuild"
        if state.is_dir() and os.access(state, os.W_OK):
            return state
    return None


def _without_values(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments; what `--set` sets may be a secret and is left out."""
    is_value = False
    for arg in args:
        if is_value or arg.startswith("--set="):
            yield arg.removeprefix("--set=").partition("=")[0] + "=…"
        else:
            yield arg
        is_value = arg == "--set"


def _silence() -> None:
    """Point what cannot be written to at nothing, so that the interpreter's last flush works."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
