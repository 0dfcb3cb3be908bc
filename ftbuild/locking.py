"""Locking: what FTBUILD.lock has to say about targets, and what it says no longer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ftbuild import queries
from ftbuild.action import Describer
from ftbuild.errors import DifferenceError, UsageError
from ftbuild.graph import Graph, Target, pins_of
from ftbuild.lockfile import NAME, Lock, installed_version
from ftbuild.sources.addresses import addresses_of

T = TypeVar("T")


def completed(lock: Lock, closure: Sequence[Target], describer: Describer) -> Lock:
    """Return `lock` with all that the targets `closure` need and it does not hold yet.

    What it holds stays as it is. A library that is not installed stays out: an action that
    needs it will say so.

    Raises:
        MachineError: a remote source cannot be asked what it is; E0512, pip finds no versions of
            what a rule needs in an environment of its own.
    """
    rules = {target.rule: describer.graph.rules[target.rule] for target in closure}
    used = {name for target in closure for name in pins_of(target, rules[target.rule])}
    absent = used - lock.libraries.keys()
    found = {name: installed_version(name) for name in sorted(absent)}
    lock = lock.with_libraries({n: v for n, v in found.items() if v is not None})
    versions = {n: f.version for n, f in rules.items() if f.version is not None}
    if any(lock.rules.get(n) != v for n, v in versions.items()):
        lock = lock.with_rules(versions)
    for name, facts in rules.items():
        if facts.toolchain and lock.toolchain(name, facts.toolchain) is None:
            from ftbuild import toolchain  # brings subprocess

            lock = lock.with_toolchain(name, toolchain.resolved(name, facts.toolchain))
    targets = {target.label: target for target in closure}
    for spec, part in list(describer.resolver.unlocked(targets, describer.graph.rules)):
        lock = lock.with_source(spec, describer.resolver.upstream.pin(spec, part))
    return lock


def trimmed(lock: Lock, graphs: Iterable[Graph]) -> Lock:
    """Return `lock` without what no target of the graphs needs."""
    libraries: set[str] = set()
    rules: set[str] = set()
    sources: set[str] = set()
    toolchains: set[str] = set()
    for graph in graphs:
        rules.update(graph.rules)
        toolchains.update(name for name, facts in graph.rules.items() if facts.toolchain)
        for target in graph.targets.values():
            libraries.update(pins_of(target, graph.rules[target.rule]))
            sources.update(addresses_of(target))
    return Lock(
        {name: version for name, version in lock.libraries.items() if name in libraries},
        {name: version for name, version in lock.rules.items() if name in rules},
        {spec: pin for spec, pin in lock.sources.items() if spec in sources},
        {name: chain for name, chain in lock.toolchains.items() if name in toolchains},
    )


def without(lock: Lock, names: Sequence[str], graph: Graph) -> Lock:
    """Return `lock` without what it holds of `names`.

    A name is that of a library, a source, a target with sources, or a rule with a toolchain.

    Raises:
        UsageError: E0503, it holds nothing of a name.
        DifferenceError: E0511, a library is not installed, so its version cannot be looked up.
    """
    for name in names:
        if name in lock.libraries:
            if installed_version(name) is None:
                raise DifferenceError(
                    f"`{name}` is to be locked as it is installed, and it is not installed",
                    code="E0511",
                    fix=f"pip install '{name}', then lock again",
                )
            lock = replace(lock, libraries=_less(lock.libraries, name))
        elif name in lock.toolchains:
            lock = replace(lock, toolchains=_less(lock.toolchains, name))
        elif meant := _meant(lock, name, graph):
            for spec in meant:
                lock = replace(lock, sources=_less(lock.sources, spec))
        else:
            from ftbuild.wording import did_you_mean

            known = [*lock.libraries, *lock.toolchains, *lock.sources, *_with_sources(lock, graph)]
            raise UsageError(
                f"`{NAME}` holds nothing named `{name}`",
                code="E0503",
                fix=did_you_mean(name, known, f"`{NAME}` lists what it holds"),
            )
    return lock


def _meant(lock: Lock, name: str, graph: Graph) -> list[str]:
    """Return the sources that a name stands for: an address, a database's variable, a target."""
    found = [spec for spec in lock.sources if name in (spec, queries.variable(spec))]
    target = graph.targets.get(name)
    return found or (
        [] if target is None else [s for s in addresses_of(target) if s in lock.sources]
    )


def _with_sources(lock: Lock, graph: Graph) -> list[str]:
    return [t.label for t in graph.targets.values() if set(addresses_of(t)) & lock.sources.keys()]


def _less(table: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in table.items() if key != name}
