"""What stands in for bubblewrap where that cannot run: an audit hook in the worker (PEP 578).

What Python opens outside of the declared paths is not there, as in the sandbox, and a connection
is refused. A library written in C that opens files by itself is not seen by it.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def watch(paths: Sequence[str], *, has_network: bool) -> None:
    """Hide from this process, until it ends, every file that is not below one of `paths`."""
    allowed = tuple({p for path in paths for p in (path, os.path.realpath(path))})
    told: set[str] = set()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" or event in ("os.listdir", "os.scandir"):
            path = args[0]
            if isinstance(path, str | bytes | os.PathLike) and path:
                _check(os.path.abspath(os.fsdecode(path)))
        elif event in _NETWORK and not has_network:
            print(f"the sandbox refuses {event}: no network is declared", flush=True)
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def _check(path: str) -> None:
        if _is_below(path, allowed) or not os.path.exists(path):
            return
        if _is_below(os.path.realpath(path), allowed):
            return
        if path not in told:
            told.add(path)
            print(f"the sandbox hides {path}: it is no declared input", flush=True)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    sys.addaudithook(hook)


def _is_below(path: str, allowed: tuple[str, ...]) -> bool:
    return any(path == a or path.startswith(a.rstrip("/") + "/") for a in allowed)
