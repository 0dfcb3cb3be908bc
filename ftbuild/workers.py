"""Workers, seen from the engine: run an action in a child, hear what it says, end it.

A rule written in Python runs in a worker that the warm parent forks (warm.py); a rule that
only names a command runs as that command, without a worker. Either is a session of its own,
so that one signal ends it with all it started; where the engine is killed, the warm parent and
the watchdog (watchdog.py) give it.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ftbuild.errors import MachineError
from ftbuild.sandbox import View
from ftbuild.warm import kill_group, reap
from ftbuild.watchdog import Watchdog

_SHELL = "/bin/sh"
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""A child would inherit that: `yes | head -1` would end with an error."""


@dataclass(frozen=True)
class Exit:
    """How a child ended."""

    status: int
    """Its exit status; minus the signal's number where a signal ended it."""
    max_rss_bytes: int


class Workers:
    """All children of one build."""

    def __init__(self, environment: Callable[[], Mapping[str, str]], directory: Path) -> None:
        """`environment` is asked for once, when the first worker is needed."""
        self._environment = environment
        self._directory = directory
        self._parent: WarmParent | None = None
        self._watchdog: Watchdog | None = None
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._is_stopped = False

    def run_script(
        self,
        script: str,
        environment: Mapping[str, str],
        work: str,
        log: int,
        view: View | None = None,
    ) -> Exit:
        """Run a script of `sh -e` in the folder `work`, or in a sandbox that shows it `view`.

        Raises:
            MachineError: E0705, the shell cannot be started.
        """
        if view is not None:
            with view.command([_SHELL, "-e", "-c", script]) as (command, folder, descriptors):
                child = self._start(command, environment, folder, log, descriptors)
            return self._end(child)
        # posix_spawn costs a third of subprocess.Popen, and cannot change the folder; what
        # stands before the script does, on its first line, so that its lines keep their numbers.
        argv = [_SHELL, "-e", "-c", f"cd {shlex.quote(work)}; unset OLDPWD; {script}"]
        try:
            watchdog = self._watching()
            pid = os.posix_spawn(
                _SHELL,
                argv,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigdef=_IGNORED_BY_PYTHON,
            )
        except OSError as e:
            raise MachineError(f"`{_SHELL}` cannot be started: {e.strerror}", code="E0705") from e
        watchdog.began(pid)
        self._began(pid)
        status, max_rss_bytes = reap(pid)
        watchdog.ended(pid)
        self._forget(pid)
        return Exit(status, max_rss_bytes)

    def run_alone(
        self,
        action: str,
        view: View | None,
        log: int,
        on_event: Callable[[dict[str, Any]], None],
        python: Path | None = None,
    ) -> Exit:
        """Run the action of the document `action` in a process of its own.

        `view` is what it sees if that is in a sandbox, `python` the interpreter of an environment
        that is not this one.

        Raises:
            MachineError: E0705, the program cannot be started.
        """
        reading, writing = os.pipe()
        argv = [str(python or sys.executable), "-m", "ftbuild.warm", action, str(writing)]
        variables = dict(self._variables)
        if python is not None:
            variables.pop("PYTHONPATH", None)
        try:
            with _seen(view, argv, self._directory) as (command, folder, descriptors):
                child = self._start(command, variables, folder, log, (writing, *descriptors))
        finally:
            os.close(writing)
        _hear(reading, on_event)
        return self._end(child)

    @cached_property
    def _variables(self) -> dict[str, str]:
        return dict(self._environment())

    def _start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        work: str,
        log: int,
        descriptors: Sequence[int],
    ) -> "subprocess.Popen[bytes]":
        try:
            child = subprocess.Popen(
                argv,
                env=environment,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=tuple(descriptors),
                start_new_session=True,
            )
        except OSError as e:
            raise MachineError(f"`{argv[0]}` cannot be started: {e.strerror}", code="E0705") from e
        self._began(child.pid)
        return child

    def _end(self, child: "subprocess.Popen[bytes]") -> Exit:
        child.returncode, max_rss_bytes = reap(child.pid)
        self._forget(child.pid)
        return Exit(child.returncode, max_rss_bytes)

    def run_worker(
        self,
        action: str,
        preload: Sequence[str],
        log: int,
        on_event: Callable[[dict[str, Any]], None],
    ) -> Exit:
        """Run the action of the document `action` to its end.

        Raises:
            MachineError: E0706, the warm parent died.
        """
        parent = self._warm_parent()
        reading, writing = os.pipe()
        try:
            pid, replies = parent.fork(action, preload, (log, writing))
        finally:
            os.close(writing)
        self._began(pid)
        _hear(reading, on_event)
        last = parent.next(replies)
        self._forget(pid)
        return Exit(last["status"], last["max_rss_bytes"])

    def _warm_parent(self) -> "WarmParent":
        with self._lock:
            if self._parent is None:
                self._parent = WarmParent(self._variables, self._directory)
            return self._parent

    def _watching(self) -> Watchdog:
        with self._lock:
            if self._watchdog is None:
                self._watchdog = Watchdog()
            return self._watchdog

    def _began(self, pid: int) -> None:
        with self._lock:
            self._groups.add(pid)
            is_stopped = self._is_stopped
        if is_stopped:
            kill_group(pid)

    def _forget(self, pid: int) -> None:
        with self._lock:
            self._groups.discard(pid)

    def stop(self) -> None:
        """End all children at once; those that start from now on end too."""
        with self._lock:
            self._is_stopped = True
            groups = list(self._groups)
        for pid in groups:
            kill_group(pid)

    def close(self) -> None:
        """End the warm parent, and the shell that watches."""
        if self._watchdog is not None:
            self._watchdog.close()
        if self._parent is not None:
            self._parent.close()


@contextmanager
def _seen(
    view: View | None, argv: list[str], directory: Path
) -> Iterator[tuple[list[str], str, tuple[int, ...]]]:
    """Give a command, its folder and the descriptors that it needs, in a sandbox or not."""
    if view is None:
        yield argv, str(directory), ()
        return
    with view.command(argv) as found:
        yield found


def _hear(reading: int, on_event: Callable[[dict[str, Any]], None]) -> None:
    """Hand on what an action says until its end of the pipe is closed."""
    with os.fdopen(reading, encoding="utf-8") as events:
        for line in events:
            if line.endswith("\n"):
                on_event(json.loads(line))


Replies = SimpleQueue[dict[str, int]]


class WarmParent:
    """The engine's end of the socket to one warm parent."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._lock = threading.Lock()
        self._waiting: dict[int, Replies] = {}
        self._count = 0
        self._is_gone = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ftbuild.warm", str(theirs.fileno())],
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        threading.Thread(target=self._read, daemon=True).start()

    def fork(
        self, action: str, preload: Sequence[str], descriptors: tuple[int, int]
    ) -> tuple[int, Replies]:
        """Ask for a worker; return its pid and the queue in which its end will arrive."""
        replies: Replies = SimpleQueue()
        with self._lock:
            self._count += 1
            self._waiting[self._count] = replies
            request = {"id": self._count, "action": action, "preload": list(preload)}
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            except OSError as e:
                raise _died() from e
            # One request at a time: a stream has no message boundaries of its own.
            return self.next(replies)["pid"], replies

    def next(self, replies: Replies) -> dict[str, int]:
        """Return the next thing that became of a worker.

        Raises:
            MachineError: E0706, the parent died.
        """
        if self._is_gone and replies.empty():
            raise _died()
        reply = replies.get()
        if not reply:
            raise _died()
        return reply

    def _read(self) -> None:
        with suppress(OSError, ValueError), self._socket.makefile(encoding="utf-8") as lines:
            for line in lines:
                reply = json.loads(line)
                self._waiting[reply["id"]].put(reply)
        self._is_gone = True
        for replies in list(self._waiting.values()):
            replies.put({})

    def close(self) -> None:
        """End the parent and wait for it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait()
        self._socket.close()


def _died() -> MachineError:
    return MachineError(
        "the process that forks the workers died",
        code="E0706",
        why="the machine ran out of memory, or somebody ended it",
        fix="run the build again; what was finished is kept",
    )
