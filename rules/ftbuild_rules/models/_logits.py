"""Is a merged model what base and adapter together are? Their logits on fixed prompts say it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Adapter, Model

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Question: What is 17 + 25?\nAnswer:",
    "Dear Sir or Madam, I am writing to",
)


@dataclass(frozen=True)
class LogitError:
    """How far the merged model is from the unmerged one, all computed in float32."""

    error: float
    """Norm of the difference over the norm of the logits."""
    effect: float
    """The same between the unmerged model and its base: what the adapter does."""


def compare_logits(model: Model, adapter: Adapter, merged: Path) -> LogitError:
    """Return how far the logits of `merged` are from those of `model` with `adapter`."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    prompts = [torch.tensor([tokenizer(text)["input_ids"]]) for text in PROMPTS]
    policy = PeftModel.from_pretrained(_load(model.path), adapter.path).eval()
    with torch.no_grad():
        together = _logits(policy, prompts)
        with policy.disable_adapter():
            alone = _logits(policy, prompts)
        del policy
        after = _logits(_load(merged), prompts)
    norm = together.norm()
    return LogitError(
        error=float((after - together).norm() / norm),
        effect=float((alone - together).norm() / norm),
    )


def _load(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, local_files_only=True
    ).eval()


def _logits(model: Any, prompts: list[Any]) -> Any:
    import torch

    return torch.cat([model(input_ids=ids).logits.flatten() for ids in prompts])
