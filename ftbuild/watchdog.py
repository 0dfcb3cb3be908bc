"""Ends what commands still run when the engine is killed with -9.

A worker has its warm parent, which notices; a command is a child of the engine alone. So one small
shell for each build hears of every command, and when its pipe ends, kills those that have not:

    engine ── pipe ──▶ sh      "+ 4711", "- 4711", …

It is started with the first command, and is in a session of its own: Ctrl-C is for the engine.
"""

import os
import signal
from contextlib import suppress

_SHELL = "/bin/sh"
_SCRIPT = """\
running=" "
while read -r what pid; do
  case $what in
    +) running="$running$pid ";;
    -) running="${running%% $pid *} ${running#* $pid }";;
  esac
done
for pid in $running; do kill -9 "-$pid"; done
"""


class Watchdog:
    """The engine's end of the pipe."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._pid = os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _SCRIPT],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reading, 0),
                    (os.POSIX_SPAWN_DUP2, nowhere, 1),
                    (os.POSIX_SPAWN_DUP2, nowhere, 2),
                ],
                setsid=True,
            )
        except OSError:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)
            os.close(nowhere)

    def began(self, pid: int) -> None:
        """Note that the session `pid` runs."""
        self._say(b"+ %d\n" % pid)

    def ended(self, pid: int) -> None:
        """Note that it has ended."""
        self._say(b"- %d\n" % pid)

    def _say(self, line: bytes) -> None:
        with suppress(OSError):  # somebody ended the shell: nothing is watched, nothing is lost
            os.write(self._writing, line)

    def close(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.close(self._writing)
        os.waitpid(self._pid, 0)
