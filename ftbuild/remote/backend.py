"""What a remote store must be able to do, and how it may fail.

Objects have two kinds of names, those of Bazel's HTTP cache protocol: `cas/<sha256>` for bytes
by their digest, `ac/<key>` for records by their action key. Large files come in chunks, so an
object is small enough to be handled as one `bytes`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

MAX_OBJECT_BYTES = 8 << 20
"""No object of `cas/` that ftbuild wrote is larger."""
MAX_RECORD_BYTES = 64 << 20
"""No record is larger: it lists the files of one artifact."""


Data = bytes | bytearray


class RemoteError(Exception):
    """A remote store did not do what it was asked for; the text holds no secret."""

    def __init__(
        self,
        what: str,
        *,
        is_temporary: bool = False,
        is_down: bool = False,
        forbids_writing: bool = False,
        is_wrong: bool = False,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.is_temporary = is_temporary
        """It may well go right if it is tried again."""
        self.is_down = is_down
        """Nothing else will go right either."""
        self.forbids_writing = forbids_writing
        """Reading may go on; writing will not: no right to, or no space."""
        self.is_wrong = is_wrong
        """The object itself is wrong, whoever asks for it."""


class Want(NamedTuple):
    """An object to get."""

    path: str
    limit: int
    """The most bytes that it may have."""


class Backend(Protocol):
    """One remote store. Threads may share it; every call ends in bounded time."""

    name: str
    """Its address without user, password or token, for messages."""

    def get(self, path: str, limit: int) -> Data | None:
        """Return an object, None if it is not there.

        Raises:
            RemoteError: it has more than `limit` bytes, or the store cannot be asked.
        """

    def put(self, path: str, data: bytes, *, only_new: bool = False) -> bool:
        """Write an object, whole or not at all; with `only_new` False if there is one already.

        Raises:
            RemoteError: the store does not take it.
        """

    def size(self, path: str) -> int | None:
        """Return how many bytes an object has, None if it is not there.

        Raises:
            RemoteError: the store cannot be asked.
        """

    def get_all(self, wants: Sequence[Want]) -> list[Data | None]:
        """Return objects as `get` does; cheaper where a request costs a round trip."""

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return as `size` does how many bytes objects have."""

    def settle(self) -> None:
        """Return when what was put is durable: called between blobs and their record.

        Raises:
            RemoteError: something may be lost.
        """

    def close(self) -> None:
        """Let go of connections."""
