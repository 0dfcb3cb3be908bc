"""Locking: what FTBUILD.lock has to say about targets, and what it says no longer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ftbuild import queries
from ftbuild.action import Describer
from ftbuild.errors import UsageError
from ftbuild.graph import Target
from ftbuild.lockfile import NAME, Lock, installed_version

T = TypeVar("T")


def completed(lock: Lock, closure: Sequence[Target], describer: Describer) -> Lock:
    """Return `lock` with all that the targets `closure` need and it does not hold yet.

    What it holds stays as it is. A library that is not installed stays out: an action that
    needs it will say so.

    Raises:
        MachineError: a remote source cannot be asked what it is.
    """
    rules = {target.rule: describer.graph.rules[target.rule] for target in closure}
    absent = {n for facts in rules.values() for n in facts.pins if n not in lock.libraries}
    found = {name: installed_version(name) for name in sorted(absent)}
    lock = lock.with_libraries({n: v for n, v in found.items() if v is not None})
    versions = {n: f.version for n, f in rules.items() if f.version is not None}
    if any(lock.rules.get(n) != v for n, v in versions.items()):
        lock = lock.with_rules(versions)
    targets = {target.label: target for target in closure}
    for spec, part in list(describer.resolver.unlocked(targets, describer.graph.rules)):
        lock = lock.with_source(spec, describer.resolver.pin(spec, part))
    return lock


def without(lock: Lock, names: Sequence[str]) -> Lock:
    """Return `lock` without what it holds of the libraries and sources `names`.

    Raises:
        UsageError: E0503, it holds nothing of a name.
    """
    for name in names:
        if name in lock.libraries:
            lock = replace(lock, libraries=_less(lock.libraries, name))
        elif meant := [spec for spec in lock.sources if name in (spec, queries.variable(spec))]:
            for spec in meant:
                lock = replace(lock, sources=_less(lock.sources, spec))
        else:
            from ftbuild.wording import did_you_mean

            known = [*lock.libraries, *lock.sources]
            raise UsageError(
                f"`{NAME}` holds nothing named `{name}`",
                code="E0503",
                fix=did_you_mean(name, known, f"`{NAME}` lists what it holds"),
            )
    return lock


def _less(table: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in table.items() if key != name}
