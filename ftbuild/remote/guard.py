"""A guard around a remote store: what it can cost at most is a bounded wait and one warning.

A request is tried up to three times where that may help. When the store is down, or failed five
requests in a row, or cost ten seconds in vain, it is asked no more for the life of this process:
a circuit breaker (Nygard, "Release It!", 2007). A store that takes nothing is only read.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ftbuild.remote.backend import Backend, Data, RemoteError, Want

T = TypeVar("T")
Tell = Callable[[str], None]

_TRIES = 3
_PAUSE_S = 0.2
_MAX_FAILURES = 5
_MAX_LOST_S = 10.0
_MAX_LIES = 5


class Guard:
    """A backend that gives up. Threads may share it."""

    def __init__(self, backend: Backend, tell: Tell, *, can_write: bool = True) -> None:
        self.name = backend.name
        self.is_open = True
        """It is still asked."""
        self.can_write = can_write
        self.sent_bytes = 0
        self.got_bytes = 0
        self._backend = backend
        self._tell = tell
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._failures = 0
        self._lies = 0
        self._lost_s = 0.0
        self._is_closing = threading.Event()

    def get(self, path: str, limit: int) -> Data | None:
        """Return an object, None if it is not there."""
        data = self._try(lambda: self._backend.get(path, limit))
        with self._lock:
            self.got_bytes += len(data or b"")
        return data

    def size(self, path: str) -> int | None:
        """Return how many bytes an object has, None if it is not there."""
        return self._try(lambda: self._backend.size(path))

    def get_all(self, wants: Sequence[Want]) -> list[Data | None]:
        """Return objects, None for each that is not there."""
        found = self._try(lambda: self._backend.get_all(wants))
        with self._lock:
            self.got_bytes += sum(len(data) for data in found if data is not None)
        return found

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return how many bytes each object has, None for each that is not there."""
        return self._try(lambda: self._backend.sizes(paths))

    def put(self, path: str, data: bytes, *, only_new: bool = False) -> bool:
        """Write an object; with `only_new` False if there is one already."""
        if not self.can_write:
            raise RemoteError("it is only read")
        is_written = self._try(
            lambda: self._backend.put(path, data, only_new=only_new), is_write=True
        )
        with self._lock:
            self.sent_bytes += len(data)
        return is_written

    def settle(self) -> None:
        """Return when what was put is durable."""
        self._try(self._backend.settle, is_write=True)

    def blame(self, what: str) -> None:
        """Note that something the store gave was wrong."""
        with self._lock:
            self._lies += 1
            is_enough = self._lies >= _MAX_LIES
        self.warn(f"gave something wrong ({what}), which is not used")
        if is_enough:
            self.is_open = False

    def warn(self, text: str, *, topic: str = "trouble") -> None:
        """Tell of a trouble; of the first one only, or a flood of lines would follow."""
        with self._lock:
            is_new = topic not in self._told
            self._told.add(topic)
        if is_new:
            self._tell(f"the remote `{self.name}` {text}")

    def _try(self, ask: Callable[[], T], *, is_write: bool = False) -> T:
        if not self.is_open:
            raise RemoteError("it is asked no more")
        began = time.monotonic()
        for left in reversed(range(_TRIES)):
            try:
                found = ask()
            except RemoteError as error:
                if error.is_temporary and left and self.is_open and self._pause(_TRIES - left):
                    continue
                self._failed(error, time.monotonic() - began, is_write=is_write)
                raise
            with self._lock:
                self._failures = 0
            return found
        raise AssertionError

    def _pause(self, number: int) -> bool:
        """Wait a little, longer each time; False if the build ends meanwhile."""
        pause_s = _PAUSE_S * number * (0.5 + random.random())
        return not self._is_closing.wait(pause_s)

    def _failed(self, error: RemoteError, seconds: float, *, is_write: bool) -> None:
        if error.forbids_writing and is_write:
            self.can_write = False
            text = f"takes no results ({error.what}): they stay on this machine"
            self.warn(text, topic="writing")
            return
        with self._lock:
            self._failures += 1
            self._lost_s += seconds
            is_over = (
                error.is_down
                or error.forbids_writing  # not even reading is allowed
                or self._failures >= _MAX_FAILURES
                or self._lost_s >= _MAX_LOST_S
            )
            self.is_open = self.is_open and not is_over
        if is_over:
            self.warn(f"cannot be used ({error.what}): going on without it")

    def close(self) -> None:
        """Wait no more, and let go of connections."""
        self._is_closing.set()
        self._backend.close()
