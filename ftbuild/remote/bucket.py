"""A bucket as a remote store: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Through `obstore`, the Python face of Rust's `object_store`: it finds credentials as each cloud's
own tools do, signs, retries, and creates conditionally (`If-None-Match: *`), so that of two
writers of one record exactly one wins.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from ftbuild.errors import UsageError
from ftbuild.remote.address import Address
from ftbuild.remote.backend import Data, RemoteError, Want

_TIMEOUTS = {"connect_timeout": "5s", "timeout": "60s"}
_RETRY: dict[str, Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
_AT_ONCE = 32
_LOOPBACK = ("http://localhost", "http://127.0.0.1", "http://[::1]")


class Bucket:
    """One bucket, or a folder in it."""

    def __init__(self, address: Address) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise UsageError(
                f"`{address.name}` needs the library `obstore`, which is not installed",
                code="E0571",
                fix="pip install 'ftbuild[remote]'",
            ) from error
        self.name = address.name
        self._address = address
        self._obstore = obstore
        # A bucket takes its time for each question, and minds no number of them.
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="bucket")
        opened: Any = from_url  # its type has an overload for each cloud, and none for all
        options: dict[str, Any] = dict(_TIMEOUTS)
        if _endpoint(address.url).startswith(_LOOPBACK):
            options["allow_http"] = True
        try:
            self._store: Any = opened(address.url, client_options=options, retry_config=_RETRY)
        except Exception as error:  # obstore's errors have no common base but this
            raise UsageError(
                f"`{address.name}` cannot be opened",
                code="E0570",
                why=_first_line(address.scrub(str(error))),
                fix="check the address and the credentials of its cloud",
            ) from error

    def get(self, path: str, limit: int) -> Data | None:
        """Return an object, None if it is not there."""
        try:
            found = self._obstore.get(self._store, path)
            size = found.meta["size"]
            if size > limit:
                raise RemoteError(f"`{path}` has {size:,} bytes, not {limit:,}", is_wrong=True)
            return bytes(found.bytes())
        except FileNotFoundError:
            return None
        except RemoteError:
            raise
        except Exception as error:
            raise self._trouble(error) from error

    def get_all(self, wants: Sequence[Want]) -> list[Data | None]:
        """Return objects, None for each that is not there."""
        return list(self._pool.map(lambda want: self.get(want.path, want.limit), wants))

    def size(self, path: str) -> int | None:
        """Return how many bytes an object has, None if it is not there."""
        try:
            return int(self._obstore.head(self._store, path)["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._trouble(error) from error

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return how many bytes each object has, None for each that is not there."""
        return list(self._pool.map(self.size, paths))

    def put(self, path: str, data: bytes, *, only_new: bool = False) -> bool:
        """Write an object, whole or not at all; with `only_new` False if there is one already."""
        mode: Any = "create" if only_new else "overwrite"
        try:
            self._obstore.put(self._store, path, data, mode=mode, use_multipart=False)
        except self._obstore.exceptions.AlreadyExistsError:
            return False
        except Exception as error:
            raise self._trouble(error) from error
        return True

    def _trouble(self, error: Exception) -> RemoteError:
        text = self._address.scrub(str(error))
        known = self._obstore.exceptions
        if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
            return RemoteError("the bucket forbids it", forbids_writing=True)
        is_down = "error sending request" in text or "timed out" in text or "connect" in text
        return RemoteError(_first_line(text), is_down=is_down, is_temporary=not is_down)

    def settle(self) -> None:
        """A bucket answers when it has the bytes."""

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _endpoint(url: str) -> str:
    """Return the address that stands in for a cloud's own, where one is named."""
    if not url.startswith("gs:"):
        return os.environ.get("AWS_ENDPOINT_URL", "")
    try:
        with open(os.environ.get("GOOGLE_SERVICE_ACCOUNT", ""), encoding="utf-8") as file:
            return str(json.load(file).get("gcs_base_url", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else "it gives no reason"
