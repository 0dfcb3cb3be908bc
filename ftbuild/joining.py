"""Targets joined by their labels: kinds checked, circles found, an order to build in.

A target whose rule or attributes are wrong still stands for its label, without a kind, so
that one mistake is reported once and not again by everything that reads the target.
"""

import functools
import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftbuild import attributes, labels, localfiles
from ftbuild.attributes import Checked, Wish, a_kind
from ftbuild.declaration import FILE_NAME
from ftbuild.errors import ManifestError
from ftbuild.nodes import Edge, Target
from ftbuild.packages import file_of
from ftbuild.spans import Finding, problems
from ftbuild.suggestions import table_between
from ftbuild.wording import did_you_mean, dotted, nearest, shown

if TYPE_CHECKING:
    from ftbuild.manifest import Manifest
    from ftbuild.registry import Registry


@dataclass
class _Join:
    """The work in progress."""

    manifest: "Manifest"
    registry: "Registry"
    checked: dict[str, Checked]
    """By label, in the order of the declarations; absent where the rule is unknown."""
    families: dict[str, list[str]]
    edges: dict[str, list[tuple[Wish, Edge]]] = field(default_factory=dict)
    kinds: dict[str, str | None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Joined:
    """The targets in build order, the members of families, what is built by default."""

    targets: dict[str, Target]
    families: dict[str, tuple[str, ...]]
    default: tuple[str, ...]


def join(manifest: "Manifest", registry: "Registry") -> Joined:
    """Join the targets of a manifest.

    Raises:
        ManifestError: with all that is wrong, what `manifest.read` found included.
    """
    families: dict[str, list[str]] = {}
    for declaration in manifest.declarations:
        if declaration.name != declaration.family:
            label = labels.join(declaration.package, declaration.family)
            families.setdefault(label, []).append(declaration.label)
    checked, findings = _check_tables(manifest, registry)
    work = _Join(manifest, registry, checked, families, findings=findings)
    look_up = _Labels(work)
    for label, one in checked.items():
        work.edges[label] = list(_edges(work, look_up, one))
        one.findings += localfiles.missing(manifest.root, one.declaration, one.sources)
    default = _default(work, look_up)
    order = _order(work)
    targets = {label: _target(work, checked[label]) for label in order}
    work.findings += [finding for one in checked.values() for finding in one.findings]
    found = [*problems((*manifest.findings, *work.findings), manifest.texts), *registry.problems()]
    if found:
        raise ManifestError(found)
    members = {label: tuple(names) for label, names in families.items()}
    return Joined(targets, members, default)


def _check_tables(
    manifest: "Manifest", registry: "Registry"
) -> tuple[dict[str, Checked], list[Finding]]:
    names = registry.names()
    # Else an unknown rule may be in a file that is missing or could not be imported.
    is_complete = not registry.problems() and all(f.code != "E0116" for f in manifest.findings)
    checked: dict[str, Checked] = {}
    findings: list[Finding] = []
    for declaration in manifest.declarations:
        if declaration.rule in names:
            rule = registry.rule(declaration.rule)
            checked[declaration.label] = attributes.check(declaration, rule)
        elif is_complete:
            fix = did_you_mean(declaration.rule, names, "`ftbuild rules` lists all")
            what = f"there is no rule `{shown(declaration.rule)}`"
            path = (declaration.rule,)
            findings.append(Finding("E0201", what, declaration.file, path, of="key", fix=fix))
    return checked, findings


class _Labels:
    """Looks labels up; remembers what a wrong one was meant to be, for many may be alike."""

    def __init__(self, work: _Join) -> None:
        self._known = dict.fromkeys(d.label for d in work.manifest.declarations)
        self._families = work.families
        self._manifest = work.manifest
        self._nearest: Callable[[str], str | None] = functools.cache(self._search)

    def find(self, text: str, package: str) -> tuple[list[str], str | None, str | None, str]:
        """Return labels, or none with code, words and remedy if something is wrong."""
        label = labels.resolve(text, package)
        if label is None:
            return [], "E0302", f"`{shown(text)}` is not a label", labels.FORM
        if label in self._known:
            return [label], None, None, ""
        if label in self._families:
            return self._families[label], None, None, ""
        home, name = labels.split(label)
        if home in self._manifest.broken or {label, labels.join(home, name.partition("[")[0])} & (
            self._manifest.unusable
        ):
            return [], None, None, ""
        if home not in self._manifest.packages:
            what = f"there is no package `{home}`: no file `{file_of(home)}`"
            match = nearest(home, self._manifest.packages - {""})
            fix = f"did you mean `//{match}:{name}`?" if match else labels.FORM
            return [], "E0301", what, fix
        what = f"there is no target `{shown(name)}`" + (f" in package `{home}`" if home else "")
        match = self._nearest(label)
        fix = (
            f"did you mean `{self._written(match, package)}`?"
            if match
            else ("`ftbuild targets` lists all")
        )
        return [], "E0301", what, fix

    def _search(self, label: str) -> str | None:
        home, name = labels.split(label)
        options = [*self._known, *self._families]
        for other in options:  # the right name, looked for in the wrong package
            if labels.split(other)[1] == name:
                return other
        return nearest(label, (o for o in options if labels.split(o)[0] == home))

    @staticmethod
    def _written(label: str, package: str) -> str:
        """Return `label` as it is written inside `package`."""
        home, name = labels.split(label)
        if home == package:
            return name
        return f"//{home}:{name}"


def _edges(work: _Join, look_up: _Labels, checked: Checked) -> Iterator[tuple[Wish, Edge]]:
    counts: dict[str, int] = {}
    for wish in checked.wishes:
        found, code, what, fix = look_up.find(wish.text, checked.declaration.package)
        if code is not None:
            checked.wrong(code, str(what), wish.path, fix=fix)
            continue
        is_list = wish.field.shape == "list"
        if len(found) > 1 and not is_list:
            what = f"`{dotted(wish.path)}` takes one target; `{wish.text}` is a family of "
            what += f"{len(found)}"
            members = "\n".join(f'{dotted(wish.path)} = "{label}"' for label in found[:4])
            more = f"\n… and {len(found) - 4} more" if len(found) > 4 else ""
            checked.wrong("E0303", what, wish.path, fix=f"name one of them:\n{members}{more}")
            continue
        part = wish.field.part.name if wish.field.part else None
        for label in found:
            place: str | int | None = wish.place
            if is_list:  # a family takes several places, so what follows moves on
                place = counts.get(wish.field.name, 0)
                counts[wish.field.name] = place + 1
            yield wish, Edge(wish.field.name, place, label, part)


def _default(work: _Join, look_up: _Labels) -> tuple[str, ...]:
    default: list[str] = []
    for place, text in enumerate(work.manifest.project.default):
        found, code, what, fix = look_up.find(text, "")
        default += found
        if code is not None:
            path = ("project", "default", place)
            work.findings.append(Finding(code, str(what), FILE_NAME, path, fix=fix))
    return tuple(dict.fromkeys(default))


def _order(work: _Join) -> list[str]:
    """Return the labels, inputs first and otherwise as declared; report every circle."""
    places = {label: place for place, label in enumerate(work.checked)}
    readers: dict[str, list[str]] = {label: [] for label in places}
    waits: dict[str, int] = {}
    for label in places:
        needed = {edge.label for _, edge in work.edges[label]} & places.keys()
        waits[label] = len(needed)
        for other in needed:
            readers[other].append(label)
    names = list(places)
    ready = [place for place, label in enumerate(names) if not waits[label]]
    order: list[str] = []
    while ready:
        label = names[heapq.heappop(ready)]
        order.append(label)
        for reader in readers[label]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, places[reader])
    if len(order) < len(names):
        done = set(order)
        _report_circles(work, [label for label in names if label not in done])
    return order


def _report_circles(work: _Join, left: list[str]) -> None:
    """Report circles among targets each of which reads another of them."""
    waiting, seen = set(left), set[str]()
    for start in left:
        walk: list[str] = []
        label = start
        while label not in seen:
            seen.add(label)
            walk.append(label)
            label = next(e.label for _, e in work.edges[label] if e.label in waiting)
        if label in walk:
            _report_circle(work, walk[walk.index(label) :])


def _report_circle(work: _Join, circle: list[str]) -> None:
    first = work.checked[circle[0]]
    following = circle[1] if len(circle) > 1 else circle[0]
    wish = next(w for w, edge in work.edges[circle[0]] if edge.label == following)
    if len(circle) == 1:
        first.wrong(
            "E0305",
            f"`{circle[0]}` cannot be its own input",
            wish.path,
            fix="name the target that makes what it reads",
        )
        return
    path = " -> ".join(f"`{label}`" for label in [*circle, circle[0]])
    first.wrong(
        "E0305",
        f"targets need each other in a circle: {path}",
        wish.path,
        fix="take one of these inputs away",
    )


def _target(work: _Join, checked: Checked) -> Target:
    declaration = checked.declaration
    edges = work.edges[declaration.label]
    kinds = _check_kinds(work, checked, edges)
    work.kinds[declaration.label] = kind = _own_kind(work, checked, kinds)
    return Target(
        label=declaration.label,
        package=declaration.package,
        name=declaration.name,
        family=declaration.family,
        rule=declaration.rule,
        kind=kind or "",
        params=checked.plain_params,
        edges=tuple([edge for _, edge in edges]),
        sources=checked.sources,
        variables=tuple(checked.variables),
        resources=checked.resources,
        description=declaration.attributes.get("description", ""),
        tags=tuple(declaration.attributes.get("tags", ())),
    )


def _check_kinds(
    work: _Join, checked: Checked, edges: list[tuple[Wish, Edge]]
) -> dict[str, tuple[str, ...]] | None:
    """Return the kinds that each input that is set holds; None if one of them is not known."""
    kinds: dict[str, tuple[str, ...]] = {name: () for name in checked.sources}
    kinds |= {name: () for name, _ in checked.variables}
    is_known = True
    for wish, edge in edges:
        kind = work.kinds.get(edge.label)
        takes = [k.kind for k in wish.field.kinds]
        if kind is None:
            is_known = False
        elif kind not in takes:
            _wrong_kind(work, checked, wish, edge.label, kind)
            is_known = False
        else:
            kinds[edge.field] = (*kinds.get(edge.field, ()), kind)
    return kinds if is_known and not checked.findings else None


def _wrong_kind(work: _Join, checked: Checked, wish: Wish, label: str, kind: str) -> None:
    declaration = checked.declaration
    takes = [k.kind for k in wish.field.kinds]
    what = f"`{dotted(wish.path)}` of rule `{declaration.rule}` takes {a_kind(takes)}"
    fix = table_between(work.registry, declaration, wish.path, label, (kind, takes))
    checked.wrong("E0304", f"{what}; `{label}` is {a_kind([kind])}", wish.path, fix=fix)


def _own_kind(
    work: _Join, checked: Checked, kinds: Mapping[str, tuple[str, ...]] | None
) -> str | None:
    from ftbuild.rule import AttributeProblem  # brings pydantic

    rule = work.registry.rule(checked.declaration.rule)
    if kinds is None or checked.params is None:
        return attributes.fixed_kind(rule)
    try:
        if rule.check is not None:
            rule.check(kinds, checked.params)
        return rule.output_kind(kinds, checked.params).kind
    except AttributeProblem as problem:
        path = tuple(problem.attribute.split("."))
        is_set = path[0] in checked.declaration.attributes
        checked.wrong("E0206", problem.what, path if is_set else (), fix=problem.fix)
        return attributes.fixed_kind(rule)
