"""How an adapter looks: its settings, the base it belongs to, its tensors."""

import json
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors
from ftbuild_rules.viewers._tensors import (
    are_equal_but_for,
    compare_all,
    compare_settings,
    describe,
    difference_lines,
    distance,
    setting_lines,
    tensor_lines,
)

WEIGHTS = "adapter_model.safetensors"


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the adapter; `row` chooses one tensor by its number."""
    config, base = _json(artifact, "adapter_config.json"), _json(artifact, "base.json").get("base")
    tensors = _tensors(artifact)
    described = [describe(t) for t in (tensors if row is None else tensors[row : row + 1])]
    data = {"base": base, "config": config, "tensors": described}
    kind = f"{config.get('peft_type')} r={config.get('r')} alpha={config.get('lora_alpha')}"
    head = (
        (Span(kind, "bold"), Span(f", {len(tensors)} tensors")),
        (Span("base: ", "dim"), Span(str(base))),
    )
    return View(data, (*head, *tensor_lines(described)))


def diff(a: Artifact, b: Artifact) -> View:
    """Show which tensors and settings of two adapters differ, and by how much."""
    found = compare_all(_tensors(a), _tensors(b))
    name = "adapter_config.json"
    settings = compare_settings(_json(a, name), _json(b, name))
    bases = compare_settings(_json(a, "base.json"), _json(b, "base.json"))
    data = {**found, "config": settings, "base": bases.get("base")}
    far = distance(found, are_equal_but_for(a.path, b.path, [WEIGHTS]))
    return View(data, (*setting_lines({**bases, **settings}), *difference_lines(found)), far)


def _json(artifact: Artifact, name: str) -> dict[str, Any]:
    path = artifact.path / name
    value: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return value


def _tensors(artifact: Artifact) -> tuple[StoredTensor, ...]:
    return read_tensors(artifact.path / WEIGHTS)
