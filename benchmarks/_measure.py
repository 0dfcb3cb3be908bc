"""Run one command and tell what its whole process tree used.

    python -I -S _measure.py SECONDS LOG COMMAND...

prints `{"cpu_s", "wall_s", "peak_mib", "exit_code"}`. CPU is user plus system time of the
command and of all its descendants, those that were left behind included: this process is
their reaper (`PR_SET_CHILD_SUBREAPER`) and waits for them. `peak_mib` is the resident size of
the largest single process.

It is a process of its own, with no import but these, because a child's peak begins with what
its parent held at the fork: the floor of `peak_mib` is this interpreter, some 9 MiB.
"""

import ctypes
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
TIMED_OUT = 124  # as coreutils' timeout


class Usage(NamedTuple):
    """What one command used."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    exit_code: int


def measure(
    command: Sequence[str],
    *,
    directory: str,
    environment: Mapping[str, str],
    log: str,
    limit_s: float,
) -> Usage:
    """Run `command` in `directory`, its output appended to the file `log`.

    Raises:
        RuntimeError: the measuring process itself failed.
    """
    import json
    import subprocess

    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, str(limit_s), log, *command],
        cwd=directory,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise RuntimeError(f"could not measure `{command[0]}`: see {log}")
    return Usage(**json.loads(done.stdout))


def _run(command: list[str], log: str, limit_s: float) -> Usage:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    begin = time.perf_counter()
    child = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        setsid=True,
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
    )
    cpu_s, peak_kib, wall_s, code = 0.0, 0, 0.0, 0
    while True:
        try:
            # WNOHANG with a short sleep rather than a signal: the sleeper uses no CPU that counts.
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return Usage(cpu_s, wall_s, peak_kib / 1024, code)
        now = time.perf_counter() - begin
        if pid == 0:
            if now > limit_s:
                os.killpg(child, 9)
                limit_s = float("inf")
            time.sleep(0.0005 if now < 1 else 0.01)
            continue
        cpu_s += usage.ru_utime + usage.ru_stime
        peak_kib = max(peak_kib, usage.ru_maxrss)
        if pid == child:
            wall_s = now
            code = TIMED_OUT if limit_s == float("inf") else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    used = _run(sys.argv[3:], sys.argv[2], float(sys.argv[1]))
    fields = ", ".join(f'"{name}": {value}' for name, value in used._asdict().items())
    print(f"{{{fields}}}")
