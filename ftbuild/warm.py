"""The warm parent: imports the heavy libraries once, then forks a worker for each action.

    engine ── socket ──▶ warm parent ── fork ──▶ worker
              {"id": 7, "action": "…/action.json", "preload": ["torch"]} + log and event pipes
              ◀── {"id": 7, "pid": 4711}     forked
              ◀── {"id": 7, "status": 0, "max_rss_bytes": 830000000}     reaped

Single-threaded, and it never touches a GPU: both would make a fork unsafe. When the engine
dies, however it dies, the socket ends, and the parent takes all workers with it.
"""

import json
import os
import resource
import selectors
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn, overload

_MESSAGE_BYTES = 65536
_WORKER = "ftbuild.worker"
"""What every worker needs; it too is imported once."""
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve the engine on the socket whose descriptor is the first argument."""
    engine = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C reaches the whole terminal group; the engine decides what ends, and when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waker, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(engine, selectors.EVENT_READ)
        selector.register(waker, selectors.EVENT_READ)
        while True:
            for ready, _ in selector.select():
                if ready.fd == waker:
                    os.read(waker, 512)
                elif not _serve(engine, running):
                    for pid in running:
                        kill_group(pid)
                    return 0
            _reap(engine, running)


def run_alone(action: str, events: int) -> NoReturn:
    """Run one action in this very process, which was started for it: in a sandbox."""
    _become_worker(action, os.dup(1), events)


def _serve(engine: socket.socket, running: dict[int, int]) -> bool:
    """Take one request and fork for it; False when the engine is gone."""
    data, descriptors, _, _ = socket.recv_fds(engine, _MESSAGE_BYTES, 2)
    if not data:
        return False
    request = json.loads(data)
    for name in (_WORKER, *request["preload"]):
        if name not in sys.modules:
            # What is missing or broken is the worker's to report, in the action's own log.
            with suppress(Exception):
                import_module(name)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become_worker(request["action"], *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    running[pid] = request["id"]
    _tell(engine, {"id": request["id"], "pid": pid})
    return True


def _become_worker(action: str, log: int, events: int) -> NoReturn:
    status = 70
    try:
        if os.getpgrp() != os.getpid():
            os.setsid()
        _die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        # A kill must not take with it what the rule has printed until then.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a text file
        with open(action, encoding="utf-8") as file:
            document = json.load(file)
        os.chdir(document["work"])
        os.environ.update(document["environment"])
        from ftbuild import worker

        if guarded := document.get("guard"):
            from ftbuild.guard import watch

            watch(guarded["paths"], has_network=guarded["has_network"])

        with os.fdopen(events, "w", encoding="utf-8") as stream:
            status = worker.run(document, stream)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the fork must never return into the parent's loop
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reap(engine: socket.socket, running: dict[int, int]) -> None:
    for pid in list(running):
        ended = reap(pid, os.WNOHANG)
        if ended is not None:
            status, max_rss_bytes = ended
            number = running.pop(pid)
            _tell(engine, {"id": number, "status": status, "max_rss_bytes": max_rss_bytes})


@overload
def reap(pid: int) -> tuple[int, int]: ...
@overload
def reap(pid: int, options: int) -> tuple[int, int] | None: ...
def reap(pid: int, options: int = 0) -> tuple[int, int] | None:
    """Wait for a group leader, end what it left running, return its exit status and peak memory.

    None where it still runs and `options` is WNOHANG. The group is killed while the leader is
    not yet reaped, so that its number cannot mean another group; what a child leaves running
    could still write to the output that is hashed next.
    """
    if hasattr(os, "waitid"):  # absent on macOS before Python 3.13
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | options) is None:
            return None
        kill_group(pid)
    reaped, status, usage = os.wait4(pid, options)
    if reaped == 0:
        return None
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * kilobyte


def kill_group(pid: int) -> None:
    """Kill a process and all that it started, if there is anything left of them."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tell(engine: socket.socket, message: dict[str, int]) -> None:
    with suppress(OSError):
        engine.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if len(sys.argv) > 2:
        run_alone(sys.argv[1], int(sys.argv[2]))
    sys.exit(main())
