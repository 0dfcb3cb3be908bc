"""Read a quantized model as one in full precision: each weight as its layer computes with it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Model, QuantizedModel, canonical_json
from ftbuild_rules.models._files import INDEX_NAME, files_of, weight_files
from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec, read_tensors, write_tensors
from ftbuild_rules.models._torch import SAFETENSORS_NAMES, load_tensor, tensor_bytes
from ftbuild_rules.quantization import _bitsandbytes

QUANTIZATION_NAME = "quantization.json"
Base = Model | QuantizedModel
"""What an adapter may be trained on."""


@dataclass(frozen=True)
class Weight:
    """One weight of the model in full precision, and what stands for it in the file."""

    spec: TensorSpec
    parts: Mapping[str, StoredTensor]
    """By the end of their names; only one, with the name "", where it is not quantized."""
    method: str
    is_transposed: bool

    def load(self) -> Any:
        """Return it as a torch tensor."""
        if len(self.parts) == 1:
            return load_tensor(self.parts[""])
        value = _load(self.method, {name: load_tensor(part) for name, part in self.parts.items()})
        value = value.T if self.is_transposed else value
        import torch

        return value.to(getattr(torch, _torch_name(self.spec))).contiguous()

    def pieces(self) -> Iterator[Any]:
        """Yield its bytes."""
        if len(self.parts) == 1:
            yield from self.parts[""].blocks()
        else:
            yield tensor_bytes(self.load())


def _torch_name(spec: TensorSpec) -> str:
    return next(name for name, key in SAFETENSORS_NAMES.items() if key == spec.dtype)


def _load(method: str, parts: Mapping[str, Any]) -> Any:
    if method == "int8":
        return _bitsandbytes.dequantize_8bit(parts[""], parts["SCB"])
    from bitsandbytes.functional import QuantState

    stats = {f"weight.{name}": value for name, value in parts.items() if name}
    return _bitsandbytes.dequantize_4bit(parts[""], QuantState.from_dict(stats, device="cpu"))


def about(model: QuantizedModel) -> dict[str, Any]:
    """Return what `quantize` noted beside the weights."""
    noted: dict[str, Any] = json.loads((model.path / QUANTIZATION_NAME).read_bytes())
    return noted


def weights_of(model: QuantizedModel) -> dict[str, tuple[Weight, ...]]:
    """Return the weights of each file."""
    noted, files = about(model), files_of(model.path)
    return {
        name: tuple(_weights(read_tensors(files[name], name), noted))
        for name in weight_files(files)
    }


def _weights(tensors: Sequence[StoredTensor], noted: Mapping[str, Any]) -> Iterator[Weight]:
    layers: Mapping[str, Any] = noted["layers"]
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    beside = {
        sidecar: name
        for name in layers
        for sidecar in _bitsandbytes.sidecar_names(name, noted["method"])
        if sidecar != name
    }
    for name, tensor in by_name.items():
        if name in beside:
            continue
        if name not in layers:
            yield Weight(tensor.spec, {"": tensor}, noted["method"], is_transposed=False)
            continue
        parts = {"": tensor}
        for other, owner in beside.items():
            if owner == name and other in by_name:
                start = name if other.startswith(f"{name}.") else name.removesuffix(".weight")
                parts[other.removeprefix(f"{start}.")] = by_name[other]
        layer = layers[name]
        spec = TensorSpec(name, layer["dtype"], tuple(layer["shape"]))
        yield Weight(spec, parts, noted["method"], is_transposed=layer["transposed"])


def full_config(model: QuantizedModel) -> dict[str, Any]:
    """Return the settings of the model in full precision."""
    config: dict[str, Any] = json.loads((model.path / "config.json").read_bytes())
    return {key: value for key, value in config.items() if key != "quantization_config"}


def in_full(model: Base, folder: Path) -> Model:
    """Return the model in full precision: itself, or what `dequantize` writes to `folder`."""
    if isinstance(model, Model):
        return model
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    return dequantize(model, folder)


def dequantize(model: QuantizedModel, out: Path) -> Model:
    """Write the model in full precision to the new folder `out`, weight by weight.

    It keeps the digest of the quantized one: adapters of that fit it.
    """
    out.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for file, weights in weights_of(model).items():
        write_tensors(out / file, [w.spec for w in weights], (w.pieces() for w in weights))
        weight_map.update(dict.fromkeys((w.spec.name for w in weights), file))
    left_out = ("config.json", INDEX_NAME, QUANTIZATION_NAME)
    for path in sorted(p for p in model.path.rglob("*") if p.is_file()):
        name = path.relative_to(model.path)
        if path.suffix != ".safetensors" and name.as_posix() not in left_out:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
    (out / "config.json").write_bytes(canonical_json(full_config(model)))
    if (model.path / INDEX_NAME).exists():
        written = [t for file in set(weight_map.values()) for t in read_tensors(out / file)]
        total = sum(tensor.spec.size_bytes for tensor in written)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX_NAME).write_bytes(canonical_json(index))
    return Model(out, model.digest, model.label)
