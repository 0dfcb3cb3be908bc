"""What a model makes of tokens: losses, preferences, rewards. Row by row, without padding.

A row is computed by itself, so no figure depends on how rows are put together; a packed row is
taken apart into its documents first.
"""

import math
from collections.abc import Iterator
from typing import Any

from ftbuild.api import Adapter, Context, RewardModel, RuleError
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._load import HEAD_NAMES, load_network
from ftbuild_rules.training._lora import CONFIG_NAME, require_base
from ftbuild_rules.training._shards import TokenRows

_MASKED = -100


def documents(rows: TokenRows) -> Iterator[tuple[list[int], list[int]]]:
    """Yield ids and labels of each document."""
    for row in rows.table.to_pylist():
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            part = slice(start, start + length)
            yield row["input_ids"][part], row["labels"][part]
            start += length


def loss_figures(ctx: Context, network: Any, rows: TokenRows) -> dict[str, float]:
    """Return the mean loss of the trained tokens in nats, and its perplexity."""
    total, count = 0.0, 0
    for number, (ids, labels) in enumerate(documents(rows), start=1):
        logps = token_logps(network, ids)
        trained = [p for p, label in zip(logps, labels[1:], strict=True) if label != _MASKED]
        total += math.fsum(trained)
        count += len(trained)
        ctx.progress(number)
    loss = -total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": count}


def token_logps(network: Any, ids: list[int]) -> list[float]:
    """Return log p of each token but the first, given all before it, in nats."""
    import torch

    with torch.no_grad():
        given = torch.tensor([ids], device=network.device)
        logits = network(input_ids=given, use_cache=False).logits[0, :-1].float()
        logps = torch.log_softmax(logits, dim=-1)
        return [float(p) for p in logps.gather(1, given[0, 1:, None])[:, 0]]


def preference_figures(ctx: Context, network: Any, rows: TokenRows) -> dict[str, float]:
    """Return in how many pairs the chosen completion is the likelier, and by how much.

    Of sums over all tokens of a completion; equal ones count as half.
    """
    margins = []
    for number, row in enumerate(rows.table.to_pylist(), start=1):
        chosen, rejected = (
            _completion_logp(network, row["prompt_ids"], row[f"{side}_ids"])
            for side in ("chosen", "rejected")
        )
        margins.append(chosen - rejected)
        ctx.progress(number, rows.num_rows)
    return {
        "preference_accuracy": _share_of_wins(margins),
        "preference_margin": math.fsum(margins) / len(margins),
        "pairs": len(margins),
    }


def _completion_logp(network: Any, prompt: list[int], completion: list[int]) -> float:
    logps = token_logps(network, [*prompt, *completion])
    return math.fsum(logps[max(len(prompt), 1) - 1 :])


def _share_of_wins(margins: list[float]) -> float:
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / len(margins)


def reward_figures(ctx: Context, judge: Any, rows: TokenRows) -> dict[str, float]:
    """Return in how many pairs the chosen text has the higher reward, and the means."""
    chosen, rejected = [], []
    for number, row in enumerate(rows.table.to_pylist(), start=1):
        chosen.append(reward(judge, [*row["prompt_ids"], *row["chosen_ids"]]))
        rejected.append(reward(judge, [*row["prompt_ids"], *row["rejected_ids"]]))
        ctx.progress(number, rows.num_rows)
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    return {
        "reward_accuracy": _share_of_wins(margins),
        "reward_margin": math.fsum(margins) / len(margins),
        "reward_chosen": math.fsum(chosen) / len(chosen),
        "reward_rejected": math.fsum(rejected) / len(rejected),
    }


def reward(judge: Any, ids: list[int]) -> float:
    """Return the score of one text."""
    import torch

    with torch.no_grad():
        return float(judge(input_ids=torch.tensor([ids], device=judge.device)).logits[0, 0])


def load_judge(given: RewardModel, base: Base, dtype: str) -> Any:
    """Return a reward model ready to score; `base` is what it was trained on if an adapter.

    Raises:
        RuleError: E0906: it was trained on another base; E0945: it scores no whole texts.
    """
    import torch
    import transformers

    is_adapter = (given.path / CONFIG_NAME).exists()
    if is_adapter:
        require_base(given, base)
    transformers.utils.logging.set_verbosity_error()  # the head comes with the adapter
    judge = load_network(
        transformers.AutoModelForSequenceClassification,
        base if is_adapter else given,
        new_layers=HEAD_NAMES if is_adapter else (),
        dtype=getattr(torch, dtype),
        num_labels=1,
    )
    if is_adapter:
        from peft import PeftModel

        judge = PeftModel.from_pretrained(judge, given.path)
    elif "TokenClassification" in str(judge.config.architectures):
        raise RuleError(
            f"`{given.label or 'reward_model'}` scores steps, not whole texts",
            code="E0945",
            fix="name a target of the rule `reward_model`",
        )
    return judge.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def require_own(adapter: Adapter | None, model: Base) -> None:
    """Refuse an adapter of another model.

    Raises:
        RuleError: E0906.
    """
    if adapter is not None:
        require_base(adapter, model)
