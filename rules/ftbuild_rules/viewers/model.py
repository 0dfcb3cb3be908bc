"""How a model looks: its config's main figures and its tensors."""

import json
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.models._files import files_of, weight_files
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

_SHOWN = (
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the model; `row` chooses one tensor by its number."""
    config = _config(artifact)
    tensors = _tensors(artifact)
    chosen = tensors if row is None else tensors[row : row + 1]
    described = [describe(tensor) for tensor in chosen]
    parameters = sum(_count(tensor) for tensor in tensors)
    shown = {key: config[key] for key in _SHOWN if key in config}
    data = {"parameters": parameters, "config": config, "tensors": described}
    head = (Span(f"{parameters:,} parameters in {len(tensors)} tensors", "bold"),)
    figures = tuple((Span(f"{key}: ", "dim"), Span(str(value))) for key, value in shown.items())
    return View(data, (head, *figures, *tensor_lines(described)))


def diff(a: Artifact, b: Artifact) -> View:
    """Show which tensors and settings of two models differ, and by how much."""
    found = compare_all(_tensors(a), _tensors(b))
    settings = compare_settings(_config(a), _config(b))
    data = {**found, "config": settings}
    weights = {name for one in (a, b) for name in weight_files(files_of(one.path))}
    far = distance(found, are_equal_but_for(a.path, b.path, weights))
    return View(data, (*setting_lines(settings), *difference_lines(found)), far)


def _config(artifact: Artifact) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((artifact.path / "config.json").read_bytes())
    return config


def _tensors(artifact: Artifact) -> list[StoredTensor]:
    files = files_of(artifact.path)
    return [tensor for name in weight_files(files) for tensor in read_tensors(files[name])]


def _count(tensor: StoredTensor) -> int:
    count = 1
    for size in tensor.spec.shape:
        count *= size
    return count
