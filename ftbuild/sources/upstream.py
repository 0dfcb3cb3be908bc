"""Upstream: remote sources, asked what they are and brought into the store.

Start-up is for builds with nothing to fetch: what speaks HTTP is imported when it is asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ftbuild import queries
from ftbuild.digest import Digest, hash_value
from ftbuild.errors import CorruptError, MachineError
from ftbuild.kinds import Part
from ftbuild.lockfile import Lock, Pin, PinnedFile
from ftbuild.sources.addresses import scheme
from ftbuild.store.store import Store


@dataclass(frozen=True)
class Upstream:
    """Fetches what the lock names, or is to name."""

    root: Path
    store: Store
    lock: Lock
    environment: Mapping[str, str]
    """Where `url_env` of an SQL source is looked up."""
    is_offline: bool

    def pin(self, spec: str, part: Part | None) -> Pin:
        """Ask the world what `spec` is.

        Raises:
            MachineError: the build is offline, or the world does not answer.
        """
        self._needs_network(spec)
        if scheme(spec) == "hf":
            from ftbuild.sources import hub

            return hub.resolve(spec, part, self._room, self._keep)
        if scheme(spec) in ("http", "https"):
            from ftbuild.sources import web

            return web.resolve(spec, self._room, self._keep)
        with self._workspace() as directory:
            return self._fetch_all(spec, directory)

    def bring(self, spec: str, digest: Digest) -> Path:
        """Return the blob of a file of the lock, fetched if need be.

        Raises:
            MachineError: it has to be fetched and cannot be.
            CorruptError: E0602, what was fetched is not what the lock says.
        """
        if not self.store.has_blob(digest):
            self._needs_network(spec)
            why = f"a file of it should have the sha256 {digest}"
            if scheme(spec) in ("hf", "http", "https"):
                why = self._download(spec, digest) or why
            else:
                with self._workspace() as directory:
                    self._fetch_all(spec, directory)
            if not self.store.has_blob(digest):
                raise CorruptError(
                    f"`{spec}` is not what the lock says",
                    why=why,
                    code="E0602",
                    fix="if the change upstream is meant: `ftbuild lock --upgrade "
                    f"'{spec}'`, and `ftbuild plan` shows what that makes stale",
                )
        return self.store.blob_path(digest)

    def _download(self, spec: str, digest: Digest) -> str | None:
        """Bring a file of the lock into the store; return in what the one that comes differs."""
        from ftbuild.sources import hub, web
        from ftbuild.sources.download import Different

        pin = self.lock.sources[spec]
        file = next(f for f in pin.files if f.sha256 == digest)
        fetch = hub.fetch if scheme(spec) == "hf" else web.fetch
        with self._room(digest) as folder:
            try:
                if not self.store.has_blob(digest):  # another may have brought it meanwhile
                    self._keep(fetch(spec, pin, file, folder))
            except Different as e:
                return str(e)
        return None

    def _fetch_all(self, spec: str, directory: Path) -> Pin:
        """Fetch all files of a source of which no single one can be had."""
        kind = scheme(spec)
        if kind == "pypi":
            from ftbuild.sources import pypi

            return pypi.fetch(spec, directory, self._keep)
        if kind == "sql":
            return self._ask(spec, directory)
        from ftbuild.sources import bucket

        return bucket.fetch(spec, directory, self._keep)

    def _ask(self, spec: str, directory: Path) -> Pin:
        from ftbuild.sources import sql

        rows = directory / sql.NAME
        sql.fetch(queries.table_of(spec), self.environment, self.root, rows)
        size = rows.stat().st_size
        return Pin((PinnedFile(sql.NAME, size, self._keep(rows)),))

    def _keep(self, path: Path) -> Digest:
        return self.store.put_file(path)

    def _needs_network(self, spec: str) -> None:
        if self.is_offline:
            raise MachineError(
                f"`{spec}` is not in the store, and `--offline` forbids to fetch it",
                code="E0430",
                fix="run once without --offline",
            )

    @contextmanager
    def _room(self, known_by: str) -> Iterator[Path]:
        """Give the folder in which one file is brought; what came of it survives a failure."""
        key = hash_value({"download": known_by})
        with self.store.lease(key):
            yield self.store.scratch(key)
            self.store.drop_scratch(key)

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        path = self.store.workspace()
        try:
            yield path
        finally:
            self.store.forget(path)
