"""A model that computes without being in memory: each module reads its weights when it runs.

The model is made by its own class with matrices that have a shape and one zero for all values.
Before a module runs, they are read from the safetensors files as float32, and dropped after it; a
linear layer reads them in pieces of rows, an embedding only the rows that it is asked for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

from ftbuild_rules.models._files import files_of, weight_files
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors
from ftbuild_rules.models._torch import load_rows
from ftbuild_rules.models._trusted import runs_own_code

_PIECE_VALUES = 1 << 21
"""How many values of a linear layer are read at once: 8 MiB of float32."""
# How files name the experts' weights that a loaded model holds as one tensor a layer.
_EXPERTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}


@dataclass(frozen=True)
class Weight:
    """Where a weight of a loaded model stands in the files."""

    parts: tuple[tuple[StoredTensor, ...], ...]
    """One tensor, or for each expert those that are stacked in it."""
    shape: tuple[int, ...]

    def rows(self, first: int, last: int) -> Any:
        """Return some rows in float32."""
        import torch

        if len(self.parts) > 1:
            return torch.stack(
                [
                    torch.cat([load_rows(t, (0, t.spec.shape[0])).float() for t in tensors])
                    for tensors in self.parts[first:last]
                ]
            )
        [[tensor]] = self.parts
        return load_rows(tensor, (first, last)).float()

    def whole(self) -> Any:
        """Return all of it in float32."""
        return self.rows(0, self.shape[0] if self.shape else 1)


def streamed_model(folder: Path) -> Any | None:
    """Return the model in `folder`, whose modules read their weights when they run.

    None if its code is its own, which may look at weights anywhere, or if the files hold them in
    another form than one that is known here.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    if runs_own_code(folder):
        return None
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    files = files_of(folder)
    stored = {t.spec.name: t for name in weight_files(files) for t in read_tensors(files[name])}
    weights = _found(model, stored)
    if weights is None:
        return None
    for name, module in model.named_modules():
        for key, value in list(module.named_parameters(recurse=False)):
            weight = weights[f"{name}.{key}" if name else key]
            if value.dim() < 2:
                _put(module, key, weight.whole().reshape(weight.shape))
            else:
                module.__dict__.setdefault("ftbuild_weights", {})[key] = weight
        if hasattr(module, "ftbuild_weights"):
            _drop(module)
            _stream(module)
    return model


def _found(model: Any, stored: Mapping[str, StoredTensor]) -> dict[str, Weight] | None:
    """Return where each weight of `model` stands; None if that is not known of one of them."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    # The output layer, where the files have it under the name of the embedding alone.
    tied = {names.get(output): names[embedding]} if output is not None else {}
    found: dict[str, Weight] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shape = tuple(parameter.shape)
        weight = _located(name, shape, stored)
        if weight is None and model.config.tie_word_embeddings:
            weight = _located(tied.get(name, name), shape, stored)
        if weight is None:
            return None
        found[name] = weight
    used = {t.spec.name for weight in found.values() for part in weight.parts for t in part}
    for name in stored.keys() - used:
        if name in dict(model.named_buffers()):
            model.get_buffer(name).copy_(load_rows(stored[name], (0, stored[name].spec.shape[0])))
        elif not name.endswith((".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")):
            return None
    return found


def _located(
    name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]
) -> Weight | None:
    other = name.replace(".mlp.", ".block_sparse_moe.")
    neox = name.replace("lm_head", "embed_out")
    for known in (name, name.partition(".")[2], other, neox):
        if known in stored:
            of_file = stored[known].spec.shape
            return Weight(((stored[known],),), shape) if of_file == shape else None
    layer, _, parameter = name.rpartition(".experts.")
    for prefix in (layer, layer.replace(".mlp", ".block_sparse_moe")):
        for parts in _EXPERTS.get(parameter, ()):
            experts: list[tuple[StoredTensor, ...]] = []
            while f"{prefix}.experts.{len(experts)}.{parts[0]}.weight" in stored:
                start = f"{prefix}.experts.{len(experts)}"
                experts.append(tuple(stored[f"{start}.{part}.weight"] for part in parts))
            height = sum(t.spec.shape[0] for t in experts[0]) if experts else 0
            if experts and shape == (len(experts), height, experts[0][0].spec.shape[1]):
                return Weight(tuple(experts), shape)
    return None


def hold_for(layer: Any) -> None:
    """Let all below `layer` keep their weights while it runs: it looks at them itself."""
    below = [m for m in layer.modules() if hasattr(m, "ftbuild_weights")]

    def before(*_: Any) -> None:
        for module in below:
            _read(module)

    def after(*_: Any) -> None:
        for module in below:
            _drop(module)

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)


def _stream(module: Any) -> None:
    """Let `module` read its weights when it runs."""
    import torch

    if type(module) is torch.nn.Linear:
        module.forward = MethodType(_in_pieces, module)  # which a copy of the module binds anew
        return
    if isinstance(module, torch.nn.Embedding):
        module.padding_idx = None
        module.register_forward_pre_hook(_read_rows_asked_for)
    else:
        module.register_forward_pre_hook(lambda m, _: _read(m, until_it_ran=True))
    module.register_forward_hook(_drop_after)


def _is_absent(module: Any) -> bool:
    return any(not any(module.get_parameter(name).stride()) for name in module.ftbuild_weights)


def _put(module: Any, name: str, value: Any) -> None:
    import torch

    module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))


def _read(module: Any, *, until_it_ran: bool = False) -> None:
    if not _is_absent(module):
        return
    for name, weight in module.ftbuild_weights.items():
        _put(module, name, weight.whole().reshape(weight.shape))
    module.ftbuild_until_it_ran = until_it_ran


def _drop(module: Any) -> None:
    import torch

    for name, weight in module.ftbuild_weights.items():
        _put(module, name, torch.zeros(()).expand(weight.shape))
    module.ftbuild_until_it_ran = False


def _drop_after(module: Any, *_: Any) -> None:
    if getattr(module, "ftbuild_until_it_ran", False):
        _drop(module)


def _in_pieces(module: Any, x: Any) -> Any:
    """Compute a linear layer piece by piece."""
    import torch

    if not _is_absent(module):
        return torch.nn.functional.linear(x, module.weight, module.bias)
    weight, bias = module.ftbuild_weights["weight"], module.bias
    rows = weight.shape[0]
    step = max(1, _PIECE_VALUES // math.prod(weight.shape[1:]))
    pieces = []
    for first in range(0, rows, step):
        some = slice(first, min(rows, first + step))
        added = None if bias is None else bias[some]
        value = weight.rows(some.start, some.stop)
        pieces.append(torch.nn.functional.linear(x, value, added))
    return torch.cat(pieces, dim=-1)


def _read_rows_asked_for(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    import torch

    if not _is_absent(module):
        return None
    rows, places = torch.unique(given[0], return_inverse=True)
    weight = module.ftbuild_weights["weight"]
    value = torch.cat([weight.rows(row, row + 1) for row in rows.tolist()])
    _put(module, "weight", value)
    module.ftbuild_until_it_ran = True
    return (places, *given[1:])
