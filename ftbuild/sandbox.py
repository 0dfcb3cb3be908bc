"""A sandbox around one action: it sees its inputs and has no network, so nothing undeclared counts.

On Linux bubblewrap (`bwrap`) makes it: namespaces of its own in which only the system's programs
and libraries, this Python, and what the action declares are mounted. Where it cannot run, a rule
written in Python is watched by an audit hook instead (guard.py): the same for all that Python
opens, but not for what a library written in C opens by itself, and not for commands.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WEAKER = (
    "the sandbox is weaker here: {}; what Python opens is watched, but not what a program or a "
    "library written in C does"
)
NETWORK_TAG = "network"
"""A target with this among its `tags` has the network also in a sandbox."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/nix/store", "/sys")
_SETTINGS = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
)
_TIMES = ("/etc/localtime", "/usr/share/zoneinfo")
_MOUNTED = ("/usr/", "/lib/", "/bin/", "/sbin/", "/lib64/", "/nix/store/")
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl", "/etc/ca-certificates", "/etc/pki")
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


@dataclass(frozen=True)
class Sandbox:
    """What is the same for all actions of a build."""

    python: tuple[str, ...]
    """Folders and files without which this Python does not run."""
    bwrap: str | None
    """The program; None where it cannot be used."""


@dataclass(frozen=True)
class View:
    """What one action may see besides the system and this Python."""

    sandbox: Sandbox
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    work: str
    """The folder in which it runs."""
    has_network: bool = False
    has_gpus: bool = False

    def paths(self) -> tuple[str, ...]:
        """Return all that may be read: for a guard where there is no bubblewrap."""
        places = (*_SYSTEM, *_SETTINGS, *_TIMES, "/dev", "/proc", *self.sandbox.python)
        return (*places, *(_NETWORK if self.has_network else ()), *self.reads, *self.writes)

    @contextmanager
    def command(self, argv: Sequence[str]) -> Iterator[tuple[list[str], str, tuple[int, ...]]]:
        """Give the command that runs `argv` in here, its folder, and the descriptors it needs."""
        if self.sandbox.bwrap is None:
            yield [*argv], self.work, ()
            return
        options = [*self._isolation(), *self._mounts(), "--chdir", self.work]
        # On a descriptor: ten thousand input files are too many for a command line.
        with open(os.memfd_create("options"), "w+b") as file:
            file.write(b"".join(os.fsencode(option) + b"\0" for option in options))
            file.seek(0)
            number = file.fileno()
            yield [self.sandbox.bwrap, "--args", str(number), "--", *argv], "/", (number,)

    def _isolation(self) -> Iterator[str]:
        yield from ("--unshare-all", "--die-with-parent", "--hostname", "ftbuild")
        if self.has_network:
            yield "--share-net"

    def _mounts(self) -> Iterator[str]:
        yield from ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
        for path in (*_SYSTEM, *_SETTINGS, *(_NETWORK if self.has_network else ())):
            if os.path.islink(path):  # /bin is usr/bin on most systems
                yield from ("--symlink", os.readlink(path), path)
            else:
                yield from ("--ro-bind-try", path, path)
        if self.has_gpus:
            for path in _devices():
                yield from ("--dev-bind-try", path, path)
        # Outer folders first, or they would hide what is mounted inside them.
        kinds = dict.fromkeys((*self.sandbox.python, *self.reads), "--ro-bind")
        kinds |= dict.fromkeys(self.writes, "--bind")
        for path in sorted(kinds, key=lambda p: (p.count("/"), p)):
            if not path.startswith(_MOUNTED):
                yield from (kinds[path], path, path)


def _devices() -> list[str]:
    names = (f"/dev/{name}" for name in sorted(os.listdir("/dev")))
    return [name for name in names if name.startswith(_DEVICES)]


def make(root: Path, packs: Iterable[str]) -> Sandbox:
    """Return the sandbox of this machine for the workspace at `root` and these rule packs."""
    return Sandbox(python_paths(root, packs), None if problem() else shutil.which("bwrap"))


def python_paths(root: Path, packs: Iterable[str]) -> tuple[str, ...]:
    """Return what this Python, ftbuild and the rule packs consist of, outer folders only.

    A folder of `sys.path` that holds the workspace is left out: with `python -m ftbuild` the
    current folder is one, and its files are no inputs.
    """
    home = os.path.realpath(root)
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.realpath(sys.executable)]
    found += [os.path.dirname(os.path.abspath(__file__)), *packs]
    found += [entry for entry in sys.path if entry and not _holds(os.path.realpath(entry), home)]
    paths = sorted({os.path.abspath(path) for path in found if os.path.exists(path)})
    return tuple(p for p in paths if not any(_holds(q, p) for q in paths if q != p))


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@functools.cache
def problem() -> str | None:
    """Return why bubblewrap cannot be used here, or None if it can."""
    if sys.platform != "linux":
        return "bubblewrap is there for Linux only"
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap (`bwrap`) is not installed"
    test = [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    done = subprocess.run([*test, "true"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return f"the kernel forbids bubblewrap its namespaces: {said[0]}"
