"""Is a merged model what base and adapters together are? Their logits on fixed prompts say it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Adapter, Model
from ftbuild_rules.models._trusted import runs_own_code

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Question: What is 17 + 25?\nAnswer:",
    "Dear Sir or Madam, I am writing to",
)
# Half the distance between neighbouring values just above 1: the error of one rounding. Logits
# are computed in float32, where the order of the sums matters more than the weights' last bit.
_ROUNDING = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-20, "F64": 2.0**-20}


@dataclass(frozen=True)
class LogitError:
    """How far the merged model is from the unmerged one, all computed in float32."""

    error: float
    """Norm of the difference over the norm of the logits."""
    effect: float
    """The same between the unmerged model and its base: what the adapters do."""


def logit_bound(dtypes: set[str], num_layers: int) -> float:
    """Return how far logits may be off when each weight is rounded once more.

    The errors of the layers are independent, so they add up like a random walk; SmolLM2-135M in
    bfloat16 shows 0.005 to 0.04, where the walk gives 0.021; the factor 8 is room for models
    that amplify them. A wrong scale or a forgotten layer shows more.
    """
    coarsest = max(_ROUNDING.get(dtype, 0.0) for dtype in dtypes)
    return 8 * math.sqrt(num_layers) * coarsest


def compare_logits(
    model: Model, adapters: Sequence[tuple[Adapter, float]], merged: Path
) -> LogitError:
    """Return how far the logits of `merged` are from those of `model` with `adapters`.

    Each adapter stands with its weight; other weights than 1 are for plain LoRA only.
    """
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    prompts = [torch.tensor([tokenizer(text)["input_ids"]]) for text in PROMPTS]
    base = _load(model.path)
    size = json.loads((merged / "config.json").read_bytes()).get("vocab_size")
    if size is not None and size != base.config.get_text_config().vocab_size:
        base.resize_token_embeddings(size, mean_resizing=False)
    policy = _with_adapters(base, adapters)
    with torch.no_grad():
        together = _logits(policy, prompts)
        with policy.disable_adapter():
            alone = _logits(policy, prompts)
        del policy, base
        after = _logits(_load(merged), prompts)
    norm = together.norm()
    return LogitError(
        error=float((after - together).norm() / norm),
        effect=float((alone - together).norm() / norm),
    )


def _with_adapters(base: Any, adapters: Sequence[tuple[Adapter, float]]) -> Any:
    """Return the model with all adapters active at once."""
    from peft import PeftModel

    names = ["default", *(f"adapter_{number}" for number in range(1, len(adapters)))]
    policy = PeftModel.from_pretrained(base, adapters[0][0].path).eval()
    for name, (adapter, _) in list(zip(names, adapters, strict=True))[1:]:
        policy.load_adapter(adapter.path, adapter_name=name)
    if len(names) > 1:
        policy.base_model.set_adapter(names)
    for name, (_, weight) in zip(names, adapters, strict=True):
        for module in policy.modules():
            factors = getattr(module, "scaling", None)  # attention has one too, a number
            if isinstance(factors, dict) and name in factors:
                factors[name] *= weight
    return policy.eval()


def _load(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=runs_own_code(path),
    ).eval()


def _logits(model: Any, prompts: list[Any]) -> Any:
    import torch

    return torch.cat([model(input_ids=ids).logits.flatten() for ids in prompts])
