"""How a quantized model looks: its method, how far each layer is off, its tensors."""

import json
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.models._files import files_of, weight_files
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors
from ftbuild_rules.quantization._dequantize import QUANTIZATION_NAME
from ftbuild_rules.viewers._tensors import (
    Line,
    compare_all,
    compare_settings,
    describe,
    difference_lines,
    setting_lines,
    tensor_lines,
)


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the model; `row` chooses one tensor by its number."""
    config, about = _json(artifact, "config.json"), _json(artifact, QUANTIZATION_NAME)
    tensors = _tensors(artifact)
    chosen = tensors if row is None else tensors[row : row + 1]
    described = [describe(tensor) for tensor in chosen]
    size = sum(tensor.spec.size_bytes for tensor in tensors)
    data = {"bytes": size, "config": config, "quantization": about, "tensors": described}
    lines: list[Line] = [
        (Span(f"{about['method']}, {size / 1e6:.1f} MB in {len(tensors)} tensors", "bold"),),
        (Span("made from: ", "dim"), Span(str(about["source"]))),
        (Span("relative error: ", "dim"), Span(f"{about['relative_error']:.4g}")),
    ]
    if "perplexity_after" in about:
        before, after = about["perplexity_before"], about["perplexity_after"]
        measured = f"{after:.4g}, before {before:.4g}, on {about['tokens']} tokens"
        lines.append((Span("perplexity: ", "dim"), Span(measured)))
    if row is None:
        lines += [_error_line(name, found) for name, found in about["layers"].items()]
    return View(data, (*lines, *tensor_lines(described)))


def diff(a: Artifact, b: Artifact) -> View:
    """Show which settings, errors and tensors of two quantized models differ."""
    found = compare_all(_tensors(a), _tensors(b))
    settings = compare_settings(_json(a, "config.json"), _json(b, "config.json"))
    before, after = _json(a, QUANTIZATION_NAME), _json(b, QUANTIZATION_NAME)
    about = compare_settings(
        {key: value for key, value in before.items() if key != "layers"},
        {key: value for key, value in after.items() if key != "layers"},
    )
    data = {**found, "config": settings, "quantization": about}
    return View(data, (*setting_lines({**about, **settings}), *difference_lines(found)))


def _error_line(name: str, found: dict[str, Any]) -> Line:
    relative, largest = found["relative_error"], found["largest_difference"]
    return (Span(f"{name}  ", "cyan"), Span(f"off by {relative:.4g}, at most {largest:.4g}"))


def _json(artifact: Artifact, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((artifact.path / name).read_bytes())
    return value


def _tensors(artifact: Artifact) -> list[StoredTensor]:
    files = files_of(artifact.path)
    return [tensor for name in weight_files(files) for tensor in read_tensors(files[name])]
