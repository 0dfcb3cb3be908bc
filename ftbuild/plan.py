"""Graph + store -> Plan: for each target fresh, stale or unknown, with the first causes.

`unknown` is honest: an input is stale, so what the target's key will be cannot be known yet.
The reason is found where the verdict is; `plan` and `why` only show it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ftbuild import rows
from ftbuild.action import Action, Describer, Output
from ftbuild.digest import Digest
from ftbuild.graph import Graph, Target
from ftbuild.history import History
from ftbuild.sources.resolver import Unlocked
from ftbuild.store.store import Store

if TYPE_CHECKING:
    from ftbuild.remote.service import Supply


class State(StrEnum):
    """Where a target stands."""

    FRESH = "fresh"
    REMOTE = "remote"
    STALE = "stale"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reason:
    """One cause why a target is not fresh."""

    kind: str
    """new, attribute, source, input, library, rule, variable, missing, untrusted, forced,
    waits."""
    detail: str
    lines: tuple[str, ...] = ()
    """More of it, such as the rows that changed."""


@dataclass(frozen=True)
class Verdict:
    """Where one target stands, and why."""

    label: str
    rule: str
    state: State
    key: Digest | None
    reasons: tuple[Reason, ...]
    seconds: float | None
    """What the last run took."""


@dataclass(frozen=True)
class Plan:
    """Verdicts in build order."""

    verdicts: tuple[Verdict, ...]

    def pending(self) -> tuple[Verdict, ...]:
        """Return those that are not fresh."""
        return tuple(v for v in self.verdicts if v.state is not State.FRESH)


@dataclass
class Planner:
    """Takes verdicts; changes nothing."""

    graph: Graph
    describer: Describer
    store: Store
    history: History
    supply: "Supply | None" = None
    """Where results may be besides the store."""

    def make(self, wanted: Sequence[str], *, with_rows: bool = False) -> Plan:
        """Return the plan for the targets `wanted` and all they need.

        With `with_rows` the reasons of changed files carry the rows that changed.
        """
        outputs: dict[str, Output] = {}
        closure = self.graph.closure(wanted)
        verdicts: dict[str, Verdict] = {}
        for level in [closure] if self.supply is None else _levels(closure):
            self._ask_for(level, outputs)
            for target in level:
                verdicts[target.label] = self._verdict(target, outputs, with_rows)
        return Plan(tuple(verdicts[target.label] for target in closure))

    def _ask_for(self, level: Sequence[Target], outputs: Mapping[str, Output]) -> None:
        """Ask remote stores at once for all results of a level that are not here."""
        if self.supply is None:
            return
        keys = []
        for target in level:
            if all(edge.label in outputs for edge in target.edges):
                with suppress(Unlocked):
                    action = self.describer.action(target, outputs)
                    if known_output(action, self.describer, self.store, self.history) is None:
                        keys.append(action.key)
        self.supply.find_all(keys)

    def _verdict(self, target: Target, outputs: dict[str, Output], with_rows: bool) -> Verdict:
        built = self.history.built.get(target.label)
        seconds = built.seconds if built else None
        waits = [e.label for e in target.edges if e.label not in outputs]
        if waits:
            reasons = (*_waits(waits), *self._own_changes(target, with_rows))
            return Verdict(target.label, target.rule, State.UNKNOWN, None, reasons, seconds)
        try:
            action = self.describer.action(target, outputs)
        except Unlocked as e:
            reason = Reason("source", f"`{e.spec}` is not in the lock yet")
            return Verdict(target.label, target.rule, State.STALE, None, (reason,), seconds)
        output = known_output(action, self.describer, self.store, self.history)
        if output is not None:
            outputs[target.label] = output
            return Verdict(target.label, target.rule, State.FRESH, action.key, (), seconds)
        record = None if self.supply is None else self.supply.find(action.key)
        if record is not None:
            outputs[target.label] = self.describer.output(target, action.key, record.tree)
            cost_s = float(record.provenance.get("seconds", 0.0))
            return Verdict(target.label, target.rule, State.REMOTE, action.key, (), cost_s)
        reasons = self.reasons(action, with_rows=with_rows)
        return Verdict(target.label, target.rule, State.STALE, action.key, reasons, seconds)

    def reasons(self, action: Action, *, with_rows: bool = False) -> tuple[Reason, ...]:
        """Return what differs between the last build's key document and this one."""
        label = action.target.label
        if objection := self.store.distrusted.get(action.key):
            return (Reason("untrusted", f"the record in the store is not trusted: {objection}"),)
        built = self.history.built.get(label)
        if built is None:
            return (Reason("new", "never built here"),)
        if built.key == action.key:
            return (Reason("missing", "its result is no longer in the store"),)
        record = self.store.find(built.key)
        if record is None:
            return (Reason("new", "the record of its last build is no longer in the store"),)
        return tuple(self._compare(action, record.document, with_rows))

    def _own_changes(self, target: Target, with_rows: bool) -> Iterator[Reason]:
        """Yield what changed in a target besides its inputs, whose content is open."""
        built = self.history.built.get(target.label)
        record = self.store.find(built.key) if built else None
        if record is None:
            return
        stand_in = Output(Digest(""), "", Digest(""), _AnyPart())
        try:
            action = self.describer.action(target, {e.label: stand_in for e in target.edges})
        except Unlocked as e:
            yield Reason("source", f"`{e.spec}` is not in the lock yet")
            return
        old = {**record.document, "inputs": action.document["inputs"]}
        yield from self._compare(action, old, with_rows)

    def _compare(self, action: Action, old: Mapping[str, Any], with_rows: bool) -> Iterator[Reason]:
        new = action.document
        if old.get("rule") != new["rule"]:
            yield Reason("rule", f"`{old.get('rule')}` → `{new['rule']}`")
        elif (old.get("version"), old.get("source")) != (new.get("version"), new.get("source")):
            yield _rule_changed(new["rule"], old, new)
        for name, before, after in _leaves(old.get("params", {}), new["params"], ""):
            yield Reason("attribute", f"`{name}`: {_shown(before)} → {_shown(after)}")
        yield from self._sources_changed(action, old.get("sources", {}), with_rows)
        for name, before, after in _leaves(old.get("inputs", {}), new["inputs"], ""):
            yield _input_changed(action.target, name, before, after)
        for name, before, after in _leaves(old.get("variables", {}), new["variables"], ""):
            yield Reason("variable", f"`{name.split('.')[-1]}` {_variable(before, after)}")
        for name, before, after in _leaves(
            old.get("libraries", {}), new["libraries"], "", flat=True
        ):
            yield Reason("library", f"{name} {_shown(before)} → {_shown(after)}")

    def _sources_changed(
        self, action: Action, old: Mapping[str, Any], with_rows: bool
    ) -> Iterator[Reason]:
        new = action.document["sources"]
        if old == new:
            return
        names = _source_names(action)
        before, after = dict(_files(old)), dict(_files(new))
        for path in [*before, *(p for p in after if p not in before)]:
            a, b = before.get(path), after.get(path)
            name = names.get(path, path.split("/", 1)[-1])
            if a == b:
                continue
            if a is None:
                yield Reason("source", f"{name} is new")
            elif b is None:
                yield Reason("source", f"{name} is gone")
            else:
                lines = tuple(self._rows(a, names.get(path))) if with_rows else ()
                yield Reason("source", f"{name} changed", lines)

    def _rows(self, old: Digest, path: str | None) -> Iterator[str]:
        """Yield the rows that differ between a kept copy of a source and the file now."""
        if path is None or not self.store.has_blob(old):
            return
        now = self.describer.resolver.root / path
        try:
            if now.stat().st_size > rows.MAX_BYTES:
                return
            yield from rows.differences(self.store.blob_path(old).read_bytes(), now.read_bytes())
        except OSError:
            return


def _levels(closure: Sequence[Target]) -> list[list[Target]]:
    """Return the targets by how many others stand in a row below them."""
    depth: dict[str, int] = {}
    levels: list[list[Target]] = []
    for target in closure:
        depth[target.label] = 1 + max((depth[edge.label] for edge in target.edges), default=-1)
        if depth[target.label] == len(levels):
            levels.append([])
        levels[depth[target.label]].append(target)
    return levels


class _AnyPart(dict[tuple[str, ...], Digest]):
    def __missing__(self, key: tuple[str, ...]) -> Digest:
        return Digest("")


def known_output(
    action: Action, describer: Describer, store: Store, history: History
) -> Output | None:
    """Return what the store knows as the output of `action`, or None."""
    built = history.built.get(action.target.label)
    if (
        built is not None
        and built.key == action.key
        and store.has_record(action.key)
        and built.parts.keys() >= set(describer.readers(action.target.label))
    ):
        return Output(action.key, action.target.kind, built.tree, built.parts)
    record = store.find(action.key)
    return None if record is None else describer.output(action.target, action.key, record.tree)


def _waits(labels: Sequence[str]) -> Iterator[Reason]:
    for label in dict.fromkeys(labels):
        yield Reason("waits", f"waits for `{label}`")


def _rule_changed(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Reason:
    if "version" in old and "version" in new:
        return Reason("rule", f"`{name}` version {old['version']} → {new['version']}")
    return Reason("rule", f"the code of `{name}` changed")


def _input_changed(target: Target, name: str, before: Any, after: Any) -> Reason:
    field, _, place = name.partition(".")
    labels = [
        edge.label
        for edge in target.edges
        if edge.field == field and (not place or str(edge.place) == place)
    ]
    shown = ", ".join(f"`{label}`" for label in labels) or "nothing"
    if before is _ABSENT:
        return Reason("input", f"`{name}` is new: {shown}")
    if after is _ABSENT:
        return Reason("input", f"`{name}` is gone")
    return Reason("input", f"`{name}` ({shown}) has other content")


def _variable(before: Any, after: Any) -> str:
    if before is _ABSENT or after is _ABSENT:
        return "is declared now" if before is _ABSENT else "is no longer declared"
    if before is None or after is None:
        return "is set now" if before is None else "is no longer set"
    return "has another value"


def _source_names(action: Action) -> dict[str, str]:
    """Return the name for people of each file of a document's sources."""
    found = {}
    for field, value in action.sources.items():
        table = value if isinstance(value, dict) else {"": value}
        for key, source in table.items():
            for relative, _, _, name in source.files:
                found["/".join(p for p in (field, key, relative) if p)] = name
            if source.function is not None:
                found["/".join(p for p in (field, key, source.function) if p)] = source.spec
    return found


def _files(sources: Mapping[str, Any]) -> Iterator[tuple[str, Digest]]:
    for field, value in sources.items():
        table = value if isinstance(value, dict) else {"": value}
        for key, files in table.items():
            for relative, digest in files:
                yield "/".join(p for p in (field, key, relative) if p), digest


class _Absent:
    def __repr__(self) -> str:
        return "(default)"


_ABSENT: Any = _Absent()


def _leaves(old: Any, new: Any, path: str, *, flat: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, old and new value where two JSON values differ; `flat` keeps dotted names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            inner = name if flat or not path else f"{path}.{name}"
            yield from _leaves(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and path:
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(a, b, f"{path}.{i}")
    elif old is _ABSENT and isinstance(new, dict) and new:
        for name, value in new.items():
            yield from _leaves(_ABSENT, value, f"{path}.{name}")
    elif old != new:
        yield path, old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(default)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
