"""Action: a target whose inputs are known, so that its key is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ftbuild import keys
from ftbuild.digest import Digest
from ftbuild.graph import Edge, Graph, RuleFacts, Target, pins_of
from ftbuild.lockfile import UNKNOWN, Lock, installed_version
from ftbuild.sources.resolver import Resolved, Resolver
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree


class Output(NamedTuple):
    """What is known of a target's artifact: its kind and digests."""

    key: Digest
    """Of the action that made it."""
    kind: str
    tree: Digest
    parts: dict[tuple[str, ...], Digest]
    """Digests of the parts that other targets read, by the part's patterns."""


@dataclass(frozen=True)
class Action:
    """One run of a rule for one target, with all that is in its key."""

    target: Target
    facts: RuleFacts
    document: keys.Document
    key: Digest
    sources: Mapping[str, Any]
    """By field: a `Resolved`, or a table of them."""

    def all_sources(self) -> list[Resolved]:
        """Return the sources of all fields."""
        found: list[Resolved] = []
        for value in self.sources.values():
            found += value.values() if isinstance(value, dict) else [value]
        return found


@dataclass
class Describer:
    """Makes actions of targets, for one graph, one lock and one environment."""

    graph: Graph
    resolver: Resolver
    store: Store
    lock: Lock
    environment: Mapping[str, str]

    def action(self, target: Target, outputs: Mapping[str, Output]) -> Action:
        """Return the action of `target`, all of whose inputs are in `outputs`.

        Raises:
            FtbuildError: a source is not there.
            Unlocked: a remote source is not pinned.
        """
        facts = self.graph.rules[target.rule]
        sources = self.resolver.sources(target, facts)
        document = keys.key_document(
            target,
            facts,
            inputs=_inputs(target, facts, outputs),
            sources={name: _source_part(value) for name, value in sources.items()},
            variables=self._variables(target),
            libraries=self._libraries(target, facts),
        )
        return Action(target, facts, document, keys.action_key(document), sources)

    def _libraries(self, target: Target, facts: RuleFacts) -> dict[str, str]:
        if not facts.toolchain:
            return {name: self._library(name) for name in pins_of(target, facts)}
        chain = self.lock.toolchain(facts.name, facts.toolchain)
        return dict.fromkeys(facts.toolchain, UNKNOWN) if chain is None else dict(chain.packages)

    def _library(self, name: str) -> str:
        return self.lock.libraries.get(name) or installed_version(name) or UNKNOWN

    def _variables(self, target: Target) -> dict[str, dict[str, str | None]]:
        found: dict[str, dict[str, str | None]] = {}
        for field, name in target.variables:
            value = self.environment.get(name)
            found.setdefault(field, {})[name] = (
                None
                if value is None
                else hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
            )
        return found

    def output(self, target: Target, key: Digest, tree: Tree) -> Output:
        """Return what others need to know of an artifact of `target`."""
        parts = {p: tree.part(p).digest for p in self.readers(target.label)}
        return Output(key, target.kind, tree.digest, parts)

    def readers(self, label: str) -> tuple[tuple[str, ...], ...]:
        """Return the patterns of those parts of an artifact that other targets read."""
        return self._parts.get(label, ())

    @cached_property
    def _parts(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        found: dict[str, dict[tuple[str, ...], None]] = {}
        for target in self.graph.targets.values():
            for edge in target.edges:
                if edge.part is not None:
                    patterns = self.graph.rules[target.rule].parts[edge.field]
                    found.setdefault(edge.label, {})[tuple(patterns)] = None
        return {label: tuple(parts) for label, parts in found.items()}


def _inputs(target: Target, facts: RuleFacts, outputs: Mapping[str, Output]) -> dict[str, Any]:
    """Return the key parts of the inputs: one, a list in order, or a table."""
    found: dict[str, Any] = {}
    for edge in target.edges:
        part = _input_part(edge, facts, outputs[edge.label])
        if edge.place is None:
            found[edge.field] = part
        elif isinstance(edge.place, int):
            found.setdefault(edge.field, []).append(part)
        else:
            found.setdefault(edge.field, {})[edge.place] = part
    return found


def _input_part(edge: Edge, facts: RuleFacts, output: Output) -> str:
    digest = output.tree
    if edge.part is not None:
        digest = output.parts[tuple(facts.parts[edge.field])]
    return keys.input_part(output.kind, edge.part, digest)


def _source_part(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: keys.source_part(source.part()) for name, source in value.items()}
    return keys.source_part(value.part())
