"""The checked graph: targets joined by kind-checked inputs, as plain data.

`build` makes it; from then on only this plain form is needed, so a run with nothing to do
loads it with marshal and imports neither a TOML parser nor a validation library. What `build`
needs is therefore imported inside of it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ftbuild import labels
from ftbuild.errors import UsageError
from ftbuild.nodes import Edge as Edge
from ftbuild.nodes import RuleFacts as RuleFacts
from ftbuild.nodes import Target as Target
from ftbuild.nodes import pins_of as pins_of

if TYPE_CHECKING:
    from ftbuild.manifest import Manifest
    from ftbuild.registry import Registry


@dataclass(frozen=True)
class Graph:
    """All targets, each after those it reads."""

    targets: dict[str, Target]
    rules: dict[str, RuleFacts]
    families: dict[str, tuple[str, ...]]
    """The members of each family, by its label."""
    default: tuple[str, ...]

    def resolve(self, names: Sequence[str], *, package: str = "") -> list[str]:
        """Return the labels that `names`, as typed in the folder of `package`, stand for.

        A family stands for its members; no name at all for the default targets, or where the
        project has none for all that no other target reads.

        Raises:
            UsageError: a name is no target.
        """
        wanted = [label for name in names for label in self._named(name, package)]
        if not names:
            wanted = list(self.default) or self._unread()
        return list(dict.fromkeys(wanted))

    def closure(self, wanted: Iterable[str]) -> list[Target]:
        """Return the targets `wanted` and all that they need, in build order."""
        needed: set[str] = set()
        pending = list(wanted)
        while pending:
            label = pending.pop()
            if label not in needed:
                needed.add(label)
                pending += [edge.label for edge in self.targets[label].edges]
        return [target for label, target in self.targets.items() if label in needed]

    def to_plain(self) -> Any:
        """Return the graph as lists, tuples and dicts that marshal can write."""
        return (
            [_take_target(target) for target in self.targets.values()],
            [[_take_edge(edge) for edge in target.edges] for target in self.targets.values()],
            [_take_rule(facts) for facts in self.rules.values()],
            self.families,
            self.default,
        )

    @classmethod
    def from_plain(cls, plain: Any) -> "Graph":
        """Return the graph of which `to_plain` gave `plain`."""
        nodes, edges, rules, families, default = plain
        targets = {
            node[0]: Target(*[*node[:7], tuple([Edge(*edge) for edge in between]), *node[7:]])
            for node, between in zip(nodes, edges, strict=True)
        }
        return cls(targets, {r[0]: RuleFacts(*r) for r in rules}, families, default)

    def _named(self, name: str, package: str) -> Sequence[str]:
        label = labels.resolve(name, package)
        if label in self.targets:
            return (label,)
        if label in self.families:
            return self.families[label]
        raise unknown_target(name, [*self.targets, *self.families])

    def _unread(self) -> list[str]:
        read = {edge.label for target in self.targets.values() for edge in target.edges}
        return [label for label in self.targets if label not in read]


def unknown_target(name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name on the command line that is no target."""
    from ftbuild.wording import did_you_mean, shown

    fix = did_you_mean(name, known, "`ftbuild targets` lists all")
    return UsageError(f"there is no target `{shown(name)}`", code="E0301", fix=fix)


def build(manifest: "Manifest", registry: "Registry") -> Graph:
    """Check every target against its rule, join them by their labels, and order them.

    Raises:
        ManifestError: with all that is wrong, what `manifest.read` found included.
    """
    from ftbuild import joining

    joined = joining.join(manifest, registry)
    rules = sorted({target.rule for target in joined.targets.values()})
    facts = {name: registry.facts(name) for name in rules}
    return Graph(joined.targets, facts, joined.families, joined.default)


_Take = Callable[[Any], tuple[Any, ...]]
_take_edge: _Take = attrgetter(*Edge.__slots__)
_take_rule: _Take = attrgetter(*RuleFacts.__slots__)
_take_target: _Take = attrgetter(*(f.name for f in fields(Target) if f.name != "edges"))
