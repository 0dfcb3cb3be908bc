"""Targets joined by their labels: kinds checked, circles found, an order to build in.

A target whose rule or attributes are wrong still stands for its label, without a kind, so
that one mistake is reported once and not again by everything that reads the target.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftbuild import attributes, labels, localfiles
from ftbuild.attributes import Checked, Wish, a_kind
from ftbuild.declaration import FILE_NAME
from ftbuild.errors import ManifestError
from ftbuild.lookup import Lookup
from ftbuild.nodes import Edge, Target
from ftbuild.spans import Finding, problems
from ftbuild.suggestions import table_between
from ftbuild.wording import did_you_mean, dotted, shown

if TYPE_CHECKING:
    from ftbuild.manifest import Manifest
    from ftbuild.registry import Registry

_MEMBERS_SHOWN = 4


@dataclass
class _Join:
    """The work in progress."""

    manifest: "Manifest"
    registry: "Registry"
    checked: dict[str, Checked]
    """By label, in the order of the declarations; absent where the rule is unknown."""
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
    work = _Join(manifest, registry, checked, findings=findings)
    lookup = Lookup(manifest, families)
    for label, one in checked.items():
        work.edges[label] = list(_edges(work, lookup, one))
        one.findings += localfiles.missing(manifest.root, one.declaration, one.sources)
    default = _default(work, lookup)
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


def _edges(work: _Join, lookup: Lookup, checked: Checked) -> Iterator[tuple[Wish, Edge]]:
    counts: dict[str, int] = {}
    for wish in checked.wishes:
        found = lookup.find(wish.text, checked.declaration.package)
        if found.code is not None:
            checked.wrong(found.code, found.what, wish.path, fix=found.fix)
            continue
        is_list = wish.field.shape == "list"
        if len(found.labels) > 1 and not is_list:
            _family_for_one(checked, wish, found.labels)
            continue
        part = wish.field.part.name if wish.field.part else None
        for label in found.labels:
            place: str | int | None = wish.place
            if is_list:  # a family takes several places, so what follows moves on
                place = counts.get(wish.field.name, 0)
                counts[wish.field.name] = place + 1
            yield wish, Edge(wish.field.name, place, label, part)


def _family_for_one(checked: Checked, wish: Wish, members: Sequence[str]) -> None:
    what = f"`{dotted(wish.path)}` takes one target; `{wish.text}` is a family of {len(members)}"
    lines = [f'{dotted(wish.path)} = "{label}"' for label in members[:_MEMBERS_SHOWN]]
    if len(members) > _MEMBERS_SHOWN:
        lines.append(f"… and {len(members) - _MEMBERS_SHOWN} more")
    checked.wrong("E0303", what, wish.path, fix="\n".join(["name one of them:", *lines]))


def _default(work: _Join, lookup: Lookup) -> tuple[str, ...]:
    default: list[str] = []
    for place, text in enumerate(work.manifest.project.default):
        found = lookup.find(text, "")
        default += found.labels
        if found.code is not None:
            path = ("project", "default", place)
            finding = Finding(found.code, found.what, FILE_NAME, path, fix=found.fix)
            work.findings.append(finding)
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
    kind, pins = _kind_and_pins(work, checked, kinds)
    work.kinds[declaration.label] = kind
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
        description=checked.description,
        tags=checked.tags,
        pins=pins,
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


def _kind_and_pins(
    work: _Join, checked: Checked, kinds: Mapping[str, tuple[str, ...]] | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return what the target is, and the libraries that it uses and others of its rule do not."""
    from ftbuild.rule import AttributeProblem  # brings pydantic

    rule = work.registry.rule(checked.declaration.rule)
    if kinds is None or checked.params is None:
        return attributes.fixed_kind(rule), ()
    kinds = {**kinds, **dict.fromkeys(checked.sources, ())}
    try:
        if rule.check is not None:
            rule.check(kinds, checked.params)
        pins = rule.pins(kinds, checked.params) if callable(rule.pins) else ()
        return rule.output_kind(kinds, checked.params).kind, pins
    except AttributeProblem as problem:
        path = tuple(problem.attribute.split("."))
        is_set = path[0] in checked.declaration.attributes
        checked.wrong("E0206", problem.what, path if is_set else (), fix=problem.fix)
    except Exception as error:  # a slip in a user's own rule is theirs to mend, not our bug
        what = f"rule `{rule.name}` cannot check this target: {type(error).__name__}: {error}"
        checked.wrong("E0216", what, fix="mend the function `check` or `output` of the rule")
    return attributes.fixed_kind(rule), ()
