"""LoRA adapters: the `lora` table, the files of an adapter, and what makes one unusable.

An adapter artifact is what PEFT loads: `adapter_config.json`, `adapter_model.safetensors`; and
`base.json` with the digest of the model it was trained on, so that another base is refused.
All three are canonical: sets sorted, no paths, no versions.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

from ftbuild.api import (
    Adapter,
    Field,
    Model,
    Params,
    Place,
    QuantizedModel,
    RewardModel,
    RuleError,
    canonical_json,
)
from ftbuild_rules.models._safetensors import write_tensors
from ftbuild_rules.models._torch import spec_of, tensor_bytes
from ftbuild_rules.quantization._dequantize import QUANTIZATION_NAME, Base, about
from ftbuild_rules.training._other_tools import LORA_NAMES

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
BASE_NAME = "base.json"
MOVES_BASE = ("pissa", "olora", "corda")
"""Ways to begin that change the base's weights, so that the base beside is no reference."""
_START = "ftbuild_start"
"""The attribute of a PEFT model that holds how its adapter began."""


Rows = dict[str, list[int]]
"""Which rows of which layer, by the layer's name."""


class Lora(Params):
    """Which low-rank matrices to train beside the frozen weights."""

    other_names = LORA_NAMES

    r: int = Field(16, ge=1)
    """Rank of the two matrices of each adapted layer."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's inputs that is left out in each step."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """The layers to adapt: a list of names, a regular expression that a layer's whole name must
    match (`".*[.](q|v)_proj"`), or `all-linear`: all but the output layer."""
    target_parameters: tuple[str, ...] = ()
    """Weights to adapt that no layer of their own holds, such as those of the experts of a
    mixture: `["experts.gate_up_proj", "experts.down_proj"]`."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732)."""
    dora: bool = False
    """Train the norm of each column of the weights beside its direction (arXiv:2402.09353)."""
    init: Literal[
        "default", "gaussian", "orthogonal", "pissa", "olora", "corda", "eva", "loftq"
    ] = "default"
    """How the matrices begin. With `default` (Kaiming-uniform A), `gaussian`, `orthogonal` and
    `eva` (arXiv:2410.07170: A from what layers read of `data`) the model begins as it is. `pissa`
    (arXiv:2404.02948), `olora` (arXiv:2406.01775) and `corda` (arXiv:2406.05223: those that
    matter for `data`) take the largest directions out of the base's weights and train those; the
    artifact is written for the unchanged base, with twice the rank. `loftq` (arXiv:2310.08659)
    begins with what brings a quantized `model` closest to the one in `quantized_from`."""
    init_rows: int | None = Field(None, ge=1)
    """How many of the first rows of `data` `corda` and `eva` look at; 256 if not given."""
    pissa_iterations: int | None = Field(None, ge=1)
    """Find PiSSA's directions by a randomized decomposition of so many iterations, which takes
    seconds for a large model where the exact one takes minutes; 4 to 16."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Another rank for layers whose name matches."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Another alpha for layers whose name matches."""
    modules_to_save: tuple[str, ...] = ()
    """Layers to train whole and keep in the adapter, such as `embed_tokens`."""
    trainable_tokens: tuple[str | int, ...] = ()
    """Tokens whose rows of the embedding and of the output layer are trained too, such as new
    ones: as texts (`["<|tool|>"]`) or ids. Much smaller than `embed_tokens` in
    `modules_to_save`."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases to train."""


def lora_config(
    lora: Lora, *, task: str = "CAUSAL_LM", heads: tuple[str, ...] = (), rows: Rows | None = None
) -> Any:
    """Return the table as PEFT's own configuration.

    `heads` are new layers, trained whole; `rows` the rows that `trainable_tokens` stands for.
    """
    import warnings

    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig

    targets = lora.target_modules
    whole = list(lora.modules_to_save) or None
    with warnings.catch_warnings():
        # It cannot convert such an adapter itself; `for_unchanged_base` can.
        warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA with rank_pattern")
        return LoraConfig(
            task_type=task,
            r=lora.r,
            lora_alpha=_whole(lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            target_parameters=list(lora.target_parameters) or None,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            init_lora_weights=_init(lora),
            corda_config=CordaConfig(corda_method="ipm") if lora.init == "corda" else None,
            rank_pattern=dict(lora.rank_pattern),
            alpha_pattern={name: _whole(alpha) for name, alpha in lora.alpha_pattern.items()},
            modules_to_save=sorted({*lora.modules_to_save, *heads}) if heads else whole,
            exclude_modules=list(heads) or None,
            trainable_token_indices=rows,
            bias=lora.bias,
        )


def _init(lora: Lora) -> bool | str:
    if lora.init in ("default", "eva", "loftq"):  # `_start` has a part in the last two
        return True
    if lora.pissa_iterations is not None:
        return f"pissa_niter_{lora.pissa_iterations}"
    return lora.init


def _whole(number: float) -> float:
    """Return 32.0 as 32: the form that other readers of `adapter_config.json` expect."""
    return int(number) if number == int(number) else number


def require_base(
    adapter: Adapter | RewardModel, model: Base, *, or_its_source: bool = False
) -> None:
    """Refuse an adapter that was trained on another model.

    With `or_its_source`, one trained on a quantized model also fits what that was made from.

    Raises:
        RuleError: E0906: the adapter names another base, or none.
    """
    noted = _noted(adapter)
    base, source = noted.get("base"), noted.get("quantized_from")
    if model.digest != base and not (or_its_source and model.digest == source):
        why = f"its base has the digest {base}; this model has {model.digest}"
        if or_its_source and model.digest == noted.get("makes_up_for"):
            why = "it began with what quantizing had changed (LoftQ), which this model lacks"
        raise RuleError(
            f"the adapter `{adapter.label or 'adapter'}` was not trained on "
            f"`{model.label or 'model'}`",
            code="E0906",
            where=Place(path=BASE_NAME),
            why=why,
            fix="name the model that the adapter was trained on as `model`",
        )


def require_source(source: Model, model: Base) -> None:
    """Refuse a model that is not the one that `model` was quantized from.

    Raises:
        RuleError: E0906.
    """
    made_from = about(model)["source"] if isinstance(model, QuantizedModel) else None
    if made_from != source.digest:
        raise RuleError(
            f"`{model.label or 'model'}` was not quantized from "
            f"`{source.label or 'quantized_from'}`",
            code="E0906",
            where=Place(path=QUANTIZATION_NAME),
            why=f"it was made from the digest {made_from}; this model has {source.digest}",
            fix="name what its `quantize` target names as `model`",
        )


def _noted(adapter: Adapter | RewardModel) -> dict[str, str]:
    path = adapter.path / BASE_NAME
    return json.loads(path.read_bytes()) if path.exists() else {}


def note_base(base: Base, continued: Adapter | RewardModel | None, lora: Lora | None) -> bytes:
    """Return `base.json` of an adapter that continues one, or is new.

    One that began by LoftQ makes up for the errors of its quantized base for good, and so does
    what continues it: it is no adapter of the model in full precision.
    """
    noted = {"base": base.digest}
    if isinstance(base, QuantizedModel):
        is_new_loftq = lora is not None and lora.init == "loftq"
        is_loftq = is_new_loftq or (continued is not None and "makes_up_for" in _noted(continued))
        noted["makes_up_for" if is_loftq else "quantized_from"] = about(base)["source"]
    return canonical_json(noted)


def save_adapter(
    model: Any, out: Path, *, note: bytes, trained: dict[str, Any] | None = None
) -> None:
    """Write the adapter `default` of a PEFT model to `out`, with the `note` of `note_base`.

    `trained` are its weights where `model` holds only a share of them.

    Raises:
        RuleError: E0913: a value is not finite, or nothing was learned.
    """
    state = adapter_state(model, trained)
    settings = canonical_config(model.peft_config["default"])
    start = getattr(model, _START, None)
    _refuse_unusable(state, start)
    if start is not None and str(settings["init_lora_weights"]).startswith(MOVES_BASE):
        state, settings = for_unchanged_base(state, start, settings)
    names = sorted(state)
    write_tensors(
        out / WEIGHTS_NAME,
        [spec_of(name, state[name]) for name in names],
        ([tensor_bytes(state[name].cpu())] for name in names),
    )
    (out / CONFIG_NAME).write_bytes(canonical_json(settings))
    (out / BASE_NAME).write_bytes(note)


def adapter_state(model: Any, trained: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the tensors of the adapter `default` by their names in its file."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(
        model, state_dict=trained, adapter_name="default", save_embedding_layers=False
    )


def remember_start(model: Any, lora: Lora | None) -> None:
    """Keep how an adapter begins, where it begins with more than zeros."""
    config = getattr(model, "peft_config", {}).get("default")
    init = getattr(config, "init_lora_weights", True)
    if init in (True, "gaussian") and (lora is None or lora.init != "loftq"):
        return
    start = {name: tensor.detach().clone() for name, tensor in adapter_state(model).items()}
    setattr(model, _START, start)


def for_unchanged_base(
    state: dict[str, Any], start: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an adapter whose start was taken out of its base, for the base as it was.

    With W = R + s B0 A0, what was trained is R + s B A = W + s [B, -B0] [A; A0]: an adapter of W
    of twice the rank. The scale s stays, so alpha grows as its divisor does.

    Source: Meng et al. 2024, arXiv:2404.02948, appendix C; PEFT's `subtract_mutated_init`.
    """
    import torch

    both = {}
    for name, tensor in state.items():
        if ".lora_A." in name:
            tensor = torch.cat([tensor, start[name].to(tensor.device)])
        elif ".lora_B." in name:
            tensor = torch.cat([tensor, -start[name].to(tensor.device)], dim=1)
        both[name] = tensor
    factor = math.sqrt(2) if settings["use_rslora"] else 2
    ranks = {name: 2 * rank for name, rank in settings["rank_pattern"].items()}
    alphas = {name: alpha * factor for name, alpha in settings["alpha_pattern"].items()}
    return both, {
        **settings,
        "r": 2 * settings["r"],
        "lora_alpha": settings["lora_alpha"] * factor,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "init_lora_weights": True,
        "corda_config": None,
    }


def expose_bias(model: Any) -> None:
    """Let the output layer be read where PEFT wraps it to train some of its rows.

    The losses ask for its weight, which the wrapper has, and its bias, which it has not.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and hasattr(head, "token_adapter") and not hasattr(head, "bias"):
        # Not by `setattr`: torch would list the parameter a second time.
        head.__dict__["bias"] = head.token_adapter.base_layer.bias


def fill_reference(model: Any) -> None:
    """Make the frozen copy `ref` of a continued adapter complete.

    TRL copies parameters with `.default.` in their name. Those of embeddings and of single rows
    end with it instead, so `ref` would hold another start than `default`.
    """
    config = getattr(model, "peft_config", {})
    if "ref" not in config:
        return
    for name, parameter in model.named_parameters():
        if name.endswith(".default"):
            copy = model.get_parameter(name.removesuffix("default") + "ref")
            copy.data.copy_(parameter.data)


def canonical_config(config: Any) -> dict[str, Any]:
    """Return a PEFT configuration as JSON that depends on its settings alone."""
    settings = {}
    for name, value in config.to_dict().items():
        if isinstance(value, set):
            value = sorted(value)
        if name == "modules_to_save" and value:
            value = sorted(set(value))  # PEFT adds the names of heads at each load
        settings[name] = getattr(value, "value", value)  # an enum's text
    settings.update(base_model_name_or_path=None, revision=None, inference_mode=True)
    settings.pop("peft_version", None)
    return settings


def _refuse_unusable(state: dict[str, Any], start: dict[str, Any] | None) -> None:
    for name, tensor in sorted(state.items()):
        if not tensor.isfinite().all():
            raise RuleError(
                f"the trained adapter holds NaN or infinite values in `{name}`",
                code="E0913",
                fix="lower `learning_rate`",
            )
    fix = "raise `learning_rate`; with `warmup`, train for more steps than it takes"
    if start is not None:
        if all(tensor.cpu().equal(start[name].cpu()) for name, tensor in state.items()):
            what = "the trained adapter is as it began: it learned nothing"
            raise RuleError(what, code="E0913", fix=fix)
        return
    second = [tensor for name, tensor in state.items() if ".lora_B" in name]
    if second and not any(tensor.any() for tensor in second):
        raise RuleError(
            "the trained adapter is all zeros: it learned nothing",
            code="E0913",
            why="every B matrix still has its initial value 0",
            fix=fix,
        )
