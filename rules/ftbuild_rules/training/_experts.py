"""The experts of a mixture in a `lora` table: weights that no layer of their own holds.

Transformers holds the experts of a layer as one tensor (expert, out, in) each for what goes in and
for what comes out, so they are no linear layers. PEFT adapts such tensors by their names in
`target_parameters`. For some families it takes the names that single experts had before (`w1`,
`gate_proj`) and `all-linear` for them; for others it leaves the experts as they are, silently.
"""

import re
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.training._lora import Lora, lora_config

_OLD_NAMES = ("w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")
"""What the layers of single experts are called."""


def mistake(what: str, fix: str) -> RuleError:
    """Return the error that a `lora` table does not fit its model."""
    return RuleError(what, code="E0950", where=Place(path="config.json"), fix=fix)


def as_peft_reads_it(lora: Lora, network: Any) -> Any:
    """Return PEFT's configuration with the names of experts' layers turned into their tensors.

    Raises:
        RuleError: E0950: one of two layers is named that are one tensor; or a pattern matches
            some of the layers of a name, and PEFT would adapt all of them.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = lora_config(lora)
    try:
        convert_peft_config_for_transformers(config, network, None)
    except ValueError as error:
        raise mistake(str(error), "name both in `lora.target_modules`") from error
    targets = lora.target_modules
    if isinstance(targets, str) and targets != "all-linear" and targets != config.target_modules:
        _require_whole_names(targets, config, network)
    return config


def _require_whole_names(pattern: str, config: Any, network: Any) -> None:
    for name, _ in network.named_modules():
        last = name.rpartition(".")[2]
        if last in config.target_modules and not re.fullmatch(pattern, name):
            raise mistake(
                f"the pattern `{pattern}` in `lora.target_modules` does not match `{name}`, and of "
                f"a mixture of experts PEFT adapts all layers of a name",
                f'write them as a list: ["{last}"], or whole names for some of them',
            )


def adapted_parameters(lora: Lora, config: Any, network: Any) -> dict[str, Any]:
    """Return the tensors that are adapted by themselves, by name.

    Raises:
        RuleError: E0950: a name means none, or one that is adapted by its layer; or the table has
            what PEFT can do with layers alone.
    """
    held = dict(network.named_parameters())
    found: dict[str, Any] = {}
    for name in sorted(config.target_parameters or ()):
        own = {each: p for each, p in held.items() if each == name or each.endswith(f".{name}")}
        if name in lora.target_parameters:
            _require_own_tensor(name, own, network)
        found |= own
    settings = {
        f"dropout = {lora.dropout}": lora.dropout > 0,
        "dora = true": lora.dora,
        f'init = "{lora.init}"': lora.init not in ("default", "gaussian"),
    }
    wrong = next((setting for setting, is_set in settings.items() if is_set), None)
    if found and wrong is not None:
        raise mistake(
            f"PEFT has no `{wrong}` for weights that no layer of their own holds, such as "
            f"`{min(found)}`",
            "remove it; or list the names of layers in `lora.target_modules`, without the experts",
        )
    return found


def _require_own_tensor(name: str, own: dict[str, Any], network: Any) -> None:
    import torch

    if not own:
        some = expert_names(network)
        raise mistake(
            f"`{name}` in `lora.target_parameters` is no weight of the model",
            f"weights of experts are {', '.join(f'`{each}`' for each in some)}"
            if some
            else "the model has no experts; name layers in `lora.target_modules`",
        )
    for each, parameter in own.items():
        layer, _, _ = each.rpartition(".")
        module = network.get_submodule(layer)
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) or parameter.ndim < 2:
            raise mistake(
                f"`{name}` in `lora.target_parameters` is of the layer `{layer}`",
                f'name the layer in `lora.target_modules`: ["{layer.rpartition(".")[2]}"]',
            )


def expert_names(network: Any) -> list[str]:
    """Return the last parts of the names of all tensors that hold one matrix for each expert."""
    import torch

    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    names = {
        f"{owner.rpartition('.')[2]}.{name}"
        for owner, module in network.named_modules()
        if not isinstance(module, convolutions)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }
    return sorted(names, reverse=True)


def left_out(lora: Lora, adapted: dict[str, Any], network: Any) -> list[str]:
    """Return the names of experts' tensors that the table seems to mean and does not adapt."""
    targets = lora.target_modules
    means_all = targets == "all-linear" or (
        not isinstance(targets, str) and not set(_OLD_NAMES).isdisjoint(targets)
    )
    return expert_names(network) if means_all and not adapted else []
