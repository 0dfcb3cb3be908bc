"""Resolver: a target's sources to digests, and to files that an action can read."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild import queries, rulesource
from ftbuild.digest import Digest, hash_value
from ftbuild.errors import DifferenceError, FtbuildError, MachineError
from ftbuild.graph import RuleFacts, Target
from ftbuild.kinds import Part
from ftbuild.lockfile import Lock
from ftbuild.sources import local
from ftbuild.sources.addresses import addresses, name_for_people, scheme, specs_of
from ftbuild.sources.upstream import Upstream
from ftbuild.store.actions import Record
from ftbuild.store.statcache import StatCache
from ftbuild.store.store import Store

_QUERY_FORMAT = 1


@dataclass(frozen=True)
class Resolved:
    """A source by content: its files as (path within it, digest, where, name for people)."""

    spec: Any
    files: tuple[tuple[str, Digest, str | None, str], ...]
    """`where` is None for a remote file, whose bytes are the blob of its digest; its name is then
    the address by which the lock knows the source."""
    function: str | None = None
    """The function that is meant, in the first of the files; the others are what that imports."""
    source_digest: Digest | None = None
    """What stands for all files of a function in a key."""

    def part(self) -> list[tuple[str, Digest]]:
        """Return what stands for it in a key."""
        if self.function is not None and self.source_digest is not None:
            return [(self.function, self.source_digest)]
        return [(relative, digest) for relative, digest, _, _ in self.files]


class Unlocked(DifferenceError):
    """A remote source is not in the lock, so no key can hold it yet."""

    def __init__(self, spec: str) -> None:
        super().__init__(
            f"`{spec}` is not in the lock",
            code="E0504",
            why="`--frozen` takes nothing that is not locked",
            fix="run `ftbuild lock` and commit the file",
        )
        self.spec = spec


@dataclass
class Resolver:
    """Looks sources up; one for a build, since it remembers what it looked at."""

    root: Path
    store: Store
    statcache: StatCache
    lock: Lock
    environment: Mapping[str, str]
    """Where `url_env` of an SQL source is looked up."""
    is_offline: bool = False
    _seen: dict[tuple[str, str], tuple[Any, str, Part | None, Resolved]] = field(
        default_factory=dict
    )
    _folders: set[str] = field(default_factory=set)
    """Folders whose listings decided what the sources are."""
    _databases: set[str] = field(default_factory=set)
    """SQLite files whose rows are sources."""

    @property
    def upstream(self) -> Upstream:
        """What brings remote sources; of the lock as it is now."""
        return Upstream(self.root, self.store, self.lock, self.environment, self.is_offline)

    def sources(self, target: Target, facts: RuleFacts) -> dict[str, Any]:
        """Return the target's sources by field: a `Resolved`, or a table of them.

        Raises:
            FtbuildError: a local file is not there.
            Unlocked: a remote source has no pin.
        """
        found: dict[str, Any] = {}
        for name, shape in target.sources.items():
            part = _part(facts, name)
            if "one" in shape:
                found[name] = self.one(shape["one"], target.package, part)
                continue
            if "function" in shape:
                found[name] = self.function(shape["function"], target.package)
                continue
            if "functions" in shape:
                found[name] = {
                    place: self.function(spec, target.package)
                    for place, spec in _numbered(shape["functions"]).items()
                }
                continue
            several = shape["table"] if "table" in shape else _numbered(shape["list"])
            found[name] = {
                key: self.one(spec, target.package, part) for key, spec in several.items()
            }
        return found

    def function(self, spec: str, package: str) -> Resolved:
        """Return a function of the workspace by the source of all that it consists of.

        Raises:
            FtbuildError: E0405, a file it imports is no Python.
        """
        memo = (package, f"function {spec}")
        if memo not in self._seen:
            self._seen[memo] = (_Named(spec), package, None, self._function(spec, package))
        return self._seen[memo][3]

    def _function(self, spec: str, package: str) -> Resolved:
        file, _, name = spec.rpartition(":")
        path = (self.root / package / file).resolve()
        root = self.root.resolve()
        try:
            digest, found = rulesource.source_digest(path, root)
        except (SyntaxError, OSError) as e:
            raise FtbuildError(f"`{spec}` cannot be read: {e}", code="E0405") from e
        files = [path, *(other for other in found if other != path)]
        named = [os.path.relpath(file, root) for file in files]
        return Resolved(
            spec,
            tuple(
                (name, self._digest(str(file)), str(file), name)
                for name, file in zip(named, files, strict=True)
            ),
            name,
            digest,
        )

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
        return [*files, *sorted(self._databases), *sorted(self._folders)]

    def is_current(self) -> bool:
        """Say whether all sources, looked up anew, are what they were."""
        return all(
            self._one(spec, package, part) == resolved
            for spec, package, part, resolved in list(self._seen.values())
        )

    def _one(self, spec: Any, package: str, part: Part | None) -> Resolved:
        if isinstance(spec, _Named):
            return self._function(spec.text, package)
        is_mixed = isinstance(spec, list) and not all(
            isinstance(one, str) and scheme(one) is None for one in spec
        )
        if is_mixed:
            return self._several(spec, package, part)
        if isinstance(spec, dict) and queries.is_sqlite(spec):
            return self._query(spec, package)
        if remote := addresses(spec):
            pin = self.lock.sources.get(remote[0])
            if pin is None:
                raise Unlocked(remote[0])
            return Resolved(spec, tuple((f.path, f.sha256, None, remote[0]) for f in pin.files))
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

    def _query(self, table: Mapping[str, Any], package: str) -> Resolved:
        """Return the rows of a query on a SQLite file; it is run again when the file changed."""
        from ftbuild.sources import sql

        path = sql.sqlite_file(table, self.root / package)
        assert path is not None
        files = [path, *(p for p in [path.with_name(f"{path.name}-wal")] if p.is_file())]
        self._folders.add(str(path.parent))
        self._databases.update(str(file) for file in files)
        content = [self._digest(str(file)) for file in files]
        asked = {name: value for name, value in table.items() if name != "url"}
        document = {"query": _QUERY_FORMAT, "asked": asked, "content": content}
        key = hash_value(document)
        record = self.store.find(key)
        if record is None:
            directory = self.store.workspace()
            sql.write_sqlite(path, table, directory / sql.NAME)
            tree = self.store.put_tree(directory)
            record = self.store.trust.sign(Record(key, tree, None, document, {}))
            self.store.publish(record)
        digest = record.tree.entries[0].digest
        return Resolved(table, ((sql.NAME, digest, None, f"{queries.shown(table)}"),))

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
            for name, specs in specs_of(target):
                for spec in addresses(specs):
                    if spec not in self.lock.sources and spec not in seen:
                        seen.add(spec)
                        yield spec, _part(rules[target.rule], name)

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
            os.symlink(where or self.upstream.bring(name, digest), path)
            files.append((path, relative, digest, name_for_people(name, relative)))
        return files

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


def _numbered(specs: list[Any]) -> dict[str, Any]:
    """Return a list as the table that it is in a key."""
    return {str(place): spec for place, spec in enumerate(specs)}


@dataclass(frozen=True)
class _Named:
    """A function in the place of a source's spec."""

    text: str


def _part(facts: RuleFacts, name: str) -> Part | None:
    patterns = facts.parts.get(name)
    return Part(name, tuple(patterns)) if patterns else None
