"""Brief: what an action is told of its inputs, and by what names; plain data for a worker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftbuild.action import Action, Output
from ftbuild.graph import Edge, RuleFacts
from ftbuild.sources.resolver import Resolved, Resolver
from ftbuild.store.trees import Tree
from ftbuild.store.trust import Trust

Slot = tuple[str, str | None]
Ready = Mapping[Slot, tuple[Output, Tree, Path]]
"""The inputs of an action, laid out, by target and part."""


def slot_of(edge: Edge) -> Slot:
    """Return by what an action finds an input: the target that made it, and which part of it."""
    return edge.label, edge.part


def plain_inputs(
    action: Action,
    inputs: Ready,
    resolver: Resolver,
    environment: Mapping[str, str],
    folder: str,
) -> dict[str, Any]:
    """Return the values of the rule's inputs; sources are laid out privately in `folder`."""
    plain: dict[str, Any] = {}
    for edge in action.target.edges:
        output, tree, path = inputs[slot_of(edge)]
        value = {"artifact": [output.kind, str(path), tree.digest, edge.label]}
        if edge.place is None:
            plain[edge.field] = value
        elif isinstance(edge.place, int):
            plain.setdefault(edge.field, {"list": []})["list"].append(value)
        else:
            plain.setdefault(edge.field, {"table": {}})["table"][edge.place] = value
    for name, found in action.sources.items():
        if isinstance(found, dict):
            table = {k: _source(resolver, v, f"{folder}/{name}/{k}") for k, v in found.items()}
            is_list = "table" not in action.target.sources[name]
            plain[name] = {"list": [*table.values()]} if is_list else {"table": table}
        else:
            plain[name] = _source(resolver, found, f"{folder}/{name}")
    for name, variable in action.target.variables:
        given = {"variable": [variable, environment.get(variable)]}
        plain.setdefault(name, {"list": []})["list"].append(given)
    return plain


def _source(resolver: Resolver, source: Resolved, folder: str) -> dict[str, Any]:
    files = resolver.materialise(source, folder)
    if source.function is not None:
        return {"function": [files[0][0], source.function, source.spec]}
    return {"source": files, "spec": str(source.spec)}


def trust_of_workers(trust: Trust) -> dict[str, Any] | None:
    """Return whose fragments a worker may believe, as plain data; None if everybody's."""
    if trust.signer is None and not trust.is_required and not trust.trusted:
        return None
    own = [] if trust.signer is None else [trust.signer.public]
    return {
        "project": trust.project,
        "trusted": [*trust.trusted, *own],
        "is_required": trust.is_required,
    }


def rule_files(root: Path, facts: RuleFacts) -> list[str]:
    """Return the files of the workspace that a rule of its own consists of."""
    from ftbuild.rulefile import PRIVATE
    from ftbuild.rulesource import source_digest

    if not facts.module.startswith(PRIVATE):
        return []
    files = source_digest(root / facts.file, root)[1]
    return [str(root / path.relative_to(root.resolve())) for path in files]
