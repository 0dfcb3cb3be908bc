"""Whether a `lora` table fits a model: its layers, its tokens; before any weight is loaded.

PEFT adapts what matches and is silent about the rest: of two names one misspelt, of a pattern
for ranks that no layer has. Here each name must mean something. The model is built without
weights, from its `config.json` alone.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from ftbuild.api import QuantizedModel, RuleError
from ftbuild_rules.models._trusted import runs_own_code
from ftbuild_rules.quantization._dequantize import Base, about
from ftbuild_rules.training._experts import (
    adapted_parameters,
    as_peft_reads_it,
    expert_names,
    left_out,
    mistake,
)
from ftbuild_rules.training._lora import MOVES_BASE, Lora, Rows


def skeleton(model: Base) -> Any:
    """Return the network of a model without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = runs_own_code(model.path)
    config = AutoConfig.from_pretrained(model.path, local_files_only=True, trust_remote_code=trust)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


def require_targets(
    lora: Lora, model: Base, *, warn: Callable[[str], None] = lambda _: None
) -> Rows | None:
    """Check the table against the model; return the rows that `trainable_tokens` stands for.

    `warn` is told of experts that the table leaves out.

    Raises:
        RuleError: E0950: a name means nothing in this model, or nothing that can be trained.
    """
    if isinstance(model, QuantizedModel) and lora.init in MOVES_BASE:
        raise mistake(
            f"`init = \"{lora.init}\"` takes the adapter's start out of the base model's weights, "
            f"and those of `{model.label or 'model'}` are quantized",
            "use another `init`, or name the model that was quantized as `model`",
        )
    if isinstance(model, QuantizedModel) and lora.dora and about(model)["method"] == "gptq":
        raise mistake(
            f"PEFT has no `dora` for weights by GPTQ, as those of `{model.label or 'model'}` are",
            'remove `dora`, or quantize with `method = "nf4"`',
        )
    network = skeleton(model)
    layers = dict(network.named_modules())
    output = network.get_output_embeddings()
    config = as_peft_reads_it(lora, network)
    adapted = _adapted(lora, config, layers, output, model)
    for name, layer in adapted.items():
        _require_adaptable(lora, name, layer, is_output=layer is output)
    alone = adapted_parameters(lora, config, network)
    if experts := left_out(lora, alone, network):
        warn(
            f"the experts of `{model.label or 'model'}` are not adapted: they are weights that no "
            f"layer of their own holds; lora = {{ target_parameters = {json.dumps(experts)} }} "
            "adapts them too"
        )
    adapted |= alone
    for table in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, table):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                raise mistake(
                    f"`{pattern}` in `lora.{table}` is the name of no adapted layer",
                    f"adapted are {_listed(_last(adapted))}",
                )
    for name in lora.modules_to_save:
        if not any(_is_named(layer, name) for layer in layers):
            raise _no_layer("modules_to_save", name, layers, model)
    return _rows(lora, network, model)


def _adapted(
    lora: Lora, config: Any, layers: dict[str, Any], output: Any, model: Base
) -> dict[str, Any]:
    """Return the layers that are adapted, by name."""
    targets = lora.target_modules
    if targets == "all-linear":
        kinds = _linear()
        return {n: m for n, m in layers.items() if isinstance(m, kinds) and m is not output}
    if isinstance(targets, str):
        found = {name: layer for name, layer in layers.items() if re.fullmatch(targets, name)}
        if not found:
            some = next(name for name, layer in layers.items() if isinstance(layer, _linear()))
            raise mistake(
                f"the pattern `{targets}` in `lora.target_modules` matches no layer of "
                f"`{model.label or 'model'}`",
                f"it must match a whole name such as `{some}`; names alone are written as a "
                f'list: ["{some.rpartition(".")[2]}"]',
            )
        return found
    found = {}
    for name in targets:
        if name not in config.target_modules:  # of an expert, whose tensors PEFT adapts instead
            continue
        own = {layer: layers[layer] for layer in layers if _is_named(layer, name)}
        if not own:
            raise _no_layer("target_modules", name, layers, model)
        found |= own
    return found


def _require_adaptable(lora: Lora, name: str, layer: Any, *, is_output: bool) -> None:
    import torch

    if is_output:
        raise mistake(
            f"`lora.target_modules` matches the output layer `{name}`, which the losses use "
            "directly, so the adapter would never be trained",
            f'narrow the pattern; to train it whole: modules_to_save = ["{name}"]',
        )
    if isinstance(layer, torch.nn.Embedding):
        if lora.init not in ("default", "gaussian") or lora.dora:
            what = f'`init = "{lora.init}"`' if lora.init != "default" else "`dora`"
            raise mistake(
                f"`lora.{what[1:]} is for linear layers, and `{name}` is an embedding",
                "take it out of `target_modules`",
            )
        return
    if not isinstance(layer, _linear()):
        inner = _last(n for n, m in layer.named_modules() if isinstance(m, _linear()))
        if not inner and (experts := expert_names(layer)):
            last = name.rpartition(".")[2]
            names = json.dumps([f"{last}{each}" for each in experts])
            raise mistake(
                f"`{name}` is a {type(layer).__name__}, which is no layer to adapt",
                f"set `target_parameters = {names}`",
            )
        raise mistake(
            f"`{name}` is a {type(layer).__name__}, which LoRA cannot adapt",
            f"name linear layers: {_listed(inner)}" if inner else 'write "all-linear"',
        )
    rank, width = _rank(lora, name), min(layer.weight.shape)
    if lora.init in (*MOVES_BASE, "eva", "loftq") and rank > width:
        raise mistake(
            f'`init = "{lora.init}"` needs a rank of at most {width} for `{name}`, whose shape is '
            f"{tuple(layer.weight.shape)}; it has {rank}",
            f"lower `r`, or set `rank_pattern = {{ {name.rpartition('.')[2]} = {width} }}`",
        )


def _rank(lora: Lora, name: str) -> int:
    for pattern, rank in lora.rank_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return rank
    return lora.r


def _rows(lora: Lora, network: Any, model: Base) -> Rows | None:
    if not lora.trainable_tokens:
        return None
    ids = sorted({_token_id(token, model) for token in lora.trainable_tokens})
    embedding, output = network.get_input_embeddings(), network.get_output_embeddings()
    rows = {}
    for name, layer in network.named_modules():
        # An output layer that is tied to the embedding follows it.
        if layer is embedding or (layer is output and not network.config.tie_word_embeddings):
            rows[name] = ids
            short = name.rpartition(".")[2]
            if short in (*lora.modules_to_save, *_names(lora)) or name in lora.modules_to_save:
                raise mistake(
                    f"`{short}` is trained as a whole already, and `lora.trainable_tokens` wants "
                    "some of its rows",
                    "remove one of the two",
                )
    for number in ids:
        if number >= network.config.get_text_config().vocab_size:
            raise mistake(
                f"the id {number} in `lora.trainable_tokens` is beyond the model's vocabulary of "
                f"{network.config.get_text_config().vocab_size}",
                "name a token that the model's embedding has a row for",
            )
    return rows


def _names(lora: Lora) -> tuple[str, ...]:
    return lora.target_modules if isinstance(lora.target_modules, tuple) else ()


def _token_id(token: str | int, model: Base) -> int:
    if isinstance(token, int):
        if token >= 0:
            return token
        raise mistake(f"`{token}` in `lora.trainable_tokens` is no id", "give 0 or more")
    tokenizer = json.loads((model.path / "tokenizer.json").read_bytes())
    added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer["model"].get("vocab", {})
    known = {**(vocabulary if isinstance(vocabulary, dict) else {}), **added}
    if token not in known:
        close = difflib.get_close_matches(token, added, n=1)
        raise mistake(
            f"`{token}` in `lora.trainable_tokens` is no token of `{model.label or 'model'}`",
            f"did you mean `{close[0]}`?" if close else f"added tokens are {_listed(added)}",
        )
    return int(known[token])


def _linear() -> tuple[Any, ...]:
    import torch
    from transformers.pytorch_utils import Conv1D

    return (torch.nn.Linear, Conv1D, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def _is_named(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def _last(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _listed(names: Iterable[str]) -> str:
    some = list(names)
    more = f" and {len(some) - 12} more" if len(some) > 12 else ""
    return ", ".join(f"`{name}`" for name in some[:12]) + more


def _no_layer(attribute: str, name: str, layers: dict[str, Any], model: Base) -> RuleError:
    known = _last(n for n, layer in layers.items() if not list(layer.children()) and n)
    close = difflib.get_close_matches(name, known, n=1)
    return mistake(
        f"`{name}` in `lora.{attribute}` is no layer of `{model.label or 'model'}`",
        f"did you mean `{close[0]}`?" if close else f"its layers are {_listed(known)}",
    )
