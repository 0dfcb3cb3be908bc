"""Is a merged model what base and adapters together are? Their logits on fixed prompts say it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Adapter, Model
from ftbuild_rules.models._streamed import hold_for, streamed_model
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
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    size = json.loads((merged / "config.json").read_bytes()).get("vocab_size")
    policy = _with_adapters(_base(model.path, size, [a for a, _ in adapters]), adapters)
    with torch.no_grad():
        together = _logits(policy, prompts)
        with policy.disable_adapter():
            alone = _logits(policy, prompts)
        del policy
        after = _logits(_base(merged, size), prompts)
    norm = together.norm()
    return LogitError(
        error=float((after - together).norm() / norm),
        effect=float((alone - together).norm() / norm),
    )


def _base(path: Path, vocab_size: int | None, adapters: Sequence[Adapter] = ()) -> Any:
    """Return a model in float32; in memory only if it cannot be read as it runs."""
    settings = [json.loads((a.path / "adapter_config.json").read_bytes()) for a in adapters]
    own = json.loads((path / "config.json").read_bytes()).get("vocab_size")
    # PEFT replaces the parameters of fused experts, and fills embeddings of another size.
    if vocab_size == own and not any(each.get("target_parameters") for each in settings):
        model = streamed_model(path)
        if model is not None:
            return model
    model = _load(path)
    if vocab_size not in (None, model.config.get_text_config().vocab_size):
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model


def _with_adapters(base: Any, adapters: Sequence[tuple[Adapter, float]]) -> Any:
    """Return the model with all adapters active at once."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

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
    for module in list(policy.modules()):
        if isinstance(module, BaseTunerLayer) and not _is_plain(module):
            hold_for(module)
    return policy.eval()


def _is_plain(layer: Any) -> bool:
    """Say whether an adapter's layer uses the weights of its base by calling it alone."""
    from peft.tuners.lora import Linear

    return type(layer) is Linear and not any(layer.use_dora.values())


def _load(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=runs_own_code(path),
    ).eval()


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """Return the logits of all prompts, whose weights are read once for all of them."""
    import torch

    longest = max(map(len, prompts))
    ids, mask = (torch.zeros(len(prompts), longest, dtype=torch.long) for _ in range(2))
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.cat([found[row, : len(prompt)].flatten() for row, prompt in enumerate(prompts)])
