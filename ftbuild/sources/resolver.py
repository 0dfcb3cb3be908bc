"""Resolver: a target's sources to digests, and to files that an action can read."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest
from ftbuild.errors import CorruptError, MachineError
from ftbuild.graph import RuleFacts, Target
from ftbuild.kinds import Part
from ftbuild.lockfile import Lock, Pin
from ftbuild.sources import hub, local, pypi
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store

_REMOTE: Mapping[str, Any] = {"pypi": pypi, "hf": hub}


@dataclass(frozen=True)
class Resolved:
    """A source by content: its files as (path within it, digest, where, name for people)."""

    spec: Any
    files: tuple[tuple[str, Digest, str | None, str], ...]
    """`where` is None for a remote file, whose bytes are the blob of its digest and whose name
    is the source as written."""

    def part(self) -> list[tuple[str, Digest]]:
        """Return what stands for it in a key."""
        return [(relative, digest) for relative, digest, _, _ in self.files]


class Unlocked(Exception):
    """A remote source is not in the lock, so no key can hold it yet."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.spec = spec


def scheme(spec: object) -> str | None:
    """Return the scheme of a remote source, or None for a local one."""
    if not isinstance(spec, str):
        return None
    head, colon, _ = spec.partition(":")
    return head if colon and head in _REMOTE else None


@dataclass
class Resolver:
    """Looks sources up; one for a build, since it remembers what it looked at."""

    root: Path
    store: Store
    statcache: StatCache
    lock: Lock
    is_offline: bool = False
    _seen: dict[tuple[str, str], tuple[Any, str, Part | None, Resolved]] = field(
        default_factory=dict
    )
    _folders: set[str] = field(default_factory=set)
    """Folders whose listings decided what the sources are."""

    def sources(self, target: Target, facts: RuleFacts) -> dict[str, Any]:
        """Return the target's sources by field: a `Resolved`, or a table of them.

        Raises:
            FtbuildError: a local file is not there.
            Unlocked: a remote source has no pin.
        """
        found: dict[str, Any] = {}
        for name, shape in target.sources.items():
            part = _part(facts, name)
            if "table" in shape:
                found[name] = {
                    key: self.one(spec, target.package, part)
                    for key, spec in shape["table"].items()
                }
            else:
                spec = shape.get("one", shape.get("list"))
                found[name] = self.one(spec, target.package, part)
        return found

    def one(self, spec: Any, package: str, part: Part | None) -> Resolved:
        """Return one source by content."""
        memo = (package, repr((spec, part)))
        if memo not in self._seen:
            self._seen[memo] = (spec, package, part, self._one(spec, package, part))
        return self._seen[memo][3]

    def looked_at(self) -> list[str]:
        """Return the files and folders of this machine that decided what the sources are."""
        files = {
            where: None
            for *_, resolved in self._seen.values()
            for _, _, where, _ in resolved.files
            if where is not None
        }
        return [*files, *sorted(self._folders)]

    def is_current(self) -> bool:
        """Say whether all sources, looked up anew, are what they were."""
        return all(
            self._one(spec, package, part) == resolved
            for spec, package, part, resolved in list(self._seen.values())
        )

    def _one(self, spec: Any, package: str, part: Part | None) -> Resolved:
        if scheme(spec):
            pin = self.lock.sources.get(spec)
            if pin is None:
                raise Unlocked(spec)
            return Resolved(spec, tuple((f.path, f.sha256, None, spec) for f in pin.files))
        if isinstance(spec, list) and any(map(scheme, spec)):
            return self._several(spec, package, part)
        base = self.root / package
        found = local.find(spec, base, part)
        self._folders |= found.directories
        files = []
        for file in found.files:
            name = os.path.relpath(file.path, self.root)
            files.append((file.relative, self._digest(file.path), file.path, name))
        return Resolved(spec, tuple(files))

    def _several(self, specs: list[Any], package: str, part: Part | None) -> Resolved:
        """Return a list some of whose parts are remote; each part has a folder of its own."""
        parts = [self._one(spec, package, part) for spec in specs]
        files = [
            (f"{number:05d}/{relative}", digest, where, name)
            for number, found in enumerate(parts)
            for relative, digest, where, name in found.files
        ]
        return Resolved(specs, tuple(files))

    def _digest(self, path: str) -> Digest:
        try:
            return self.statcache.digest_of(path)
        except OSError as e:
            raise MachineError(
                f"`{os.path.relpath(path, self.root)}` cannot be read: {e.strerror}", code="E0402"
            ) from e

    def unlocked(
        self, targets: Mapping[str, Target], rules: Mapping[str, RuleFacts]
    ) -> Iterator[tuple[str, Part | None]]:
        """Yield the remote sources of `targets` that the lock does not hold."""
        seen = set()
        for target in targets.values():
            for name, shape in target.sources.items():
                specs = shape["table"].values() if "table" in shape else shape.values()
                for spec in _flat(specs):
                    if scheme(spec) and spec not in self.lock.sources and spec not in seen:
                        seen.add(spec)
                        yield spec, _part(rules[target.rule], name)

    def pin(self, spec: str, part: Part | None) -> Pin:
        """Ask the world what `spec` is.

        Raises:
            MachineError: the build is offline, or the world does not answer.
        """
        self._needs_network(spec)
        with self._workspace() as directory:
            if scheme(spec) == "pypi":
                return pypi.fetch(spec, directory, self._keep)
            return hub.resolve(spec, part, directory, self._keep)

    def materialise(self, source: Resolved, directory: str) -> list[tuple[str, str, Digest, str]]:
        """Lay `source` out as links below `directory`, with nothing else there.

        Returns path, path within the source, digest and name of each file.

        Raises:
            MachineError: a file has to be fetched and cannot be.
            CorruptError: E0602, what was fetched is not what the lock says.
        """
        files = []
        for relative, digest, where, name in source.files:
            path = os.path.join(directory, relative)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(where or self._remote(name, digest), path)
            files.append((path, relative, digest, name))
        return files

    def _remote(self, spec: str, digest: Digest) -> Path:
        """Return the blob of a remote file, fetched if need be."""
        if not self.store.has_blob(digest):
            self._needs_network(spec)
            with self._workspace() as directory:
                self._fetch(spec, digest, directory)
            if not self.store.has_blob(digest):
                raise CorruptError(
                    f"`{spec}` is not what the lock says",
                    why=f"a file of it should have the sha256 {digest}",
                    code="E0602",
                    fix="if the change upstream is meant: `ftbuild lock --upgrade "
                    f"'{spec}'`, and `ftbuild plan` shows what that makes stale",
                )
        return self.store.blob_path(digest)

    def _fetch(self, spec: str, digest: Digest, directory: Path) -> None:
        if scheme(spec) == "pypi":
            pypi.fetch(spec, directory, self._keep)
            return
        pin = self.lock.sources[spec]
        file = next(f for f in pin.files if f.sha256 == digest)
        self._keep(hub.fetch(spec, pin, file, directory))

    def _keep(self, path: Path) -> Digest:
        return self.store.put_file(path)

    def _needs_network(self, spec: str) -> None:
        if self.is_offline:
            raise MachineError(
                f"`{spec}` is not in the store, and `--offline` forbids to fetch it",
                code="E0430",
                fix="run once without --offline",
            )

    def _workspace(self) -> "_Workspace":
        return _Workspace(self.store)

    def is_unchanged(self, source: Resolved) -> bool:
        """Say whether the local files still have the content by which they are in a key."""
        return all(
            where is None or self._now(where) == digest for _, digest, where, _ in source.files
        )

    def _now(self, path: str) -> Digest | None:
        try:
            return self.statcache.digest_of(path)
        except OSError:
            return None


def _flat(specs: Iterable[Any]) -> Iterator[Any]:
    for spec in specs:
        yield from spec if isinstance(spec, list) else (spec,)


def _part(facts: RuleFacts, name: str) -> Part | None:
    patterns = facts.parts.get(name)
    return Part(name, tuple(patterns)) if patterns else None


class _Workspace:
    def __init__(self, store: Store) -> None:
        self.store = store

    def __enter__(self) -> Path:
        self.path = self.store.workspace()
        return self.path

    def __exit__(self, *_: object) -> None:
        self.store.forget(self.path)
