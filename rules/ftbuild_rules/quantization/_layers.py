"""Which weights of a model Transformers quantizes: those of its linear layers but the output's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.models._safetensors import TensorSpec


@dataclass(frozen=True)
class Layers:
    """What to quantize."""

    weights: Mapping[str, bool]
    """The stored weights, and whether each is quantized as its transpose."""
    skipped: tuple[str, ...]
    """What Transformers has to be told to leave as it is; empty where it knows by itself."""


def empty_model(directory: Path) -> Any:
    """Return the model of a directory without its weights: on torch's `meta` device."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    named = (json.loads((directory / "config.json").read_bytes()).get("architectures") or [""])[0]
    kind = getattr(transformers, named, transformers.AutoModelForCausalLM)
    build = getattr(kind, "from_config", None) or kind._from_config
    with torch.device("meta"):
        return build(config)


def linear_weights(
    model: Any, specs: Mapping[str, TensorSpec], *, skip_modules: Sequence[str]
) -> Layers:
    """Return which of a model's stored weights to quantize.

    GPT-2's layers keep their weights as (in, out); quantized they are (out, in).

    Raises:
        RuleError: E0970: a name in `skip_modules` matches nothing, there is nothing to quantize,
            or the files keep a layer's weight under another name.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    layers = {n: m for n, m in model.named_modules() if type(m) is Linear or isinstance(m, Conv1D)}
    for name in skip_modules:
        if all(should_convert_module(layer, [name]) for layer in layers):
            raise _no_layers(
                f"`skip_modules` names `{name}`, which is no linear layer of this model",
                f"its layers end in {', '.join(sorted({n.rpartition('.')[2] for n in layers}))}",
            )
    skipped = (*get_keys_to_not_convert(model), *skip_modules)
    found = {
        f"{name}.weight": isinstance(layer, Conv1D)
        for name, layer in layers.items()
        if should_convert_module(name, list(skipped))
    }
    if not found:
        raise _no_layers(
            "there is no linear layer to quantize", "name fewer layers in `skip_modules`"
        )
    for name in found:
        if name not in specs:
            raise RuleError(
                f"the model's files have no weight `{name}`",
                code="E0970",
                where=Place(path="config.json"),
                why="they are from another version of this architecture, or incomplete",
                fix="load the model with Transformers and save it anew by `save_pretrained`",
            )
    return Layers(found, skipped if skip_modules else ())


def _no_layers(what: str, fix: str) -> RuleError:
    return RuleError(what, code="E0970", fix=fix)
