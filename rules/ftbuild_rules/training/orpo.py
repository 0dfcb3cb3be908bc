"""`orpo`: preference optimization without a reference: odds ratios, and SimPO and CPO.

    orpo:   L = NLL + beta * -log sigmoid(log odds(chosen) - log odds(rejected))
            odds(y) = P / (1 - P), log P = (1/|y|) log p(y)
    cpo:    L = NLL + -log sigmoid(beta * (log p(chosen) - log p(rejected)))
    simpo:  L = -log sigmoid(beta * ((1/|c|) log p(c) - (1/|r|) log p(r)) - gamma)

with log-probabilities in nats, summed over the |y| tokens of a completion, and NLL the mean over
the tokens of the chosen side. In `orpo` those of the prompt count, as in the authors' code and in
TRL; in `cpo` and `simpo` they do not.
Source: Hong et al. 2024, arXiv:2403.07691, eq. 4 to 7, and https://github.com/xfactlab/orpo;
Xu et al. 2024, arXiv:2401.08417, eq. 4 to 6; Meng et al. 2024, arXiv:2405.14734, eq. 6.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from ftbuild.api import AttributeProblem, Context, Field, rule
from ftbuild_rules.training import _arguments, _loop, _policy, _run, _settings
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._other_tools import PREFERENCE_NAMES
from ftbuild_rules.training._own import next_token_logps, pad_id, padded, train_own
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    output_kind,
    pins,
)
from ftbuild_rules.training._sharding import mean_of_all

_MASKED = -100
_NLL_WEIGHTS = {"orpo": 1.0, "cpo": 1.0, "simpo": 0.0}


class OrpoInputs(TrainingInputs):
    """A model and rows of the form `preference`."""


class OrpoParams(TrainingParams):
    """How to train, and how strongly to prefer."""

    other_names = PREFERENCE_NAMES

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    loss: Literal["orpo", "simpo", "cpo"] = "orpo"
    """Which loss; none has a reference."""
    beta: float = Field(0.1, gt=0)
    """The weight of the odds ratio (the paper's lambda); in the other losses the scale of the
    difference, in `simpo` usually 2 to 2.5."""
    gamma: float | None = Field(None, ge=0)
    """The margin that `simpo` asks for; 0.5 if not given."""
    nll_weight: float | None = Field(None, ge=0)
    """The weight of the likelihood of the chosen completion; if not given 1, in `simpo` 0."""


def check(kinds: Mapping[str, tuple[str, ...]], params: OrpoParams) -> None:
    """Refuse attributes that exclude each other, or that the loss has not.

    Raises:
        AttributeProblem: there are such.
    """
    _settings.check(kinds, params)
    if params.gamma is not None and params.loss != "simpo":
        raise AttributeProblem(
            "gamma",
            f"`gamma` has no meaning for `{params.loss}`",
            'remove it, or set `loss = "simpo"`',
        )


@rule(version=4, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def orpo(ctx: Context, inputs: OrpoInputs, params: OrpoParams) -> None:
    """Train a model, or an adapter of it, to prefer the chosen completions, with no reference.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights.
    """
    run = _run.prepare(ctx, inputs, params, form="preference", rule="orpo")
    if done_in_processes(run, "orpo"):
        return
    _run.make_deterministic(params)
    model = _policy.load_policy(run)
    if params.lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, _arguments.peft_config(run))
    _switch_off_dropout(model)
    _loop.save(run, train_own(run, model, _loss(params), _collator(pad_id(run))))


def _switch_off_dropout(model: Any) -> None:
    """Compare both sides by one and the same network, as all preference methods here do."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _collator(pad: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return what makes a batch: the chosen sides of all rows, then the rejected ones."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        sides = [(row, name) for name in ("chosen_ids", "rejected_ids") for row in rows]
        ids = [row["prompt_ids"] + row[name] for row, name in sides]
        labels = [[_MASKED] * len(row["prompt_ids"]) + row[name] for row, name in sides]
        return {
            "input_ids": padded(ids, pad),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded(labels, _MASKED),
        }

    return collate


def _loss(params: OrpoParams) -> Callable[..., tuple[Any, dict[str, float]]]:
    weight = _NLL_WEIGHTS[params.loss] if params.nll_weight is None else params.nll_weight

    def loss(model: Any, batch: dict[str, Any], _: Any) -> tuple[Any, dict[str, float]]:
        """Return the loss of a batch.

        Shapes: ids_BT, seen_BT, labels_BT; logps_BS, S = T - 1 predicted tokens; B two sides of
            each row.
        """
        ids_BT, seen_BT, labels_BT = batch["input_ids"], batch["attention_mask"], batch["labels"]
        logits = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).logits
        logps_BS = next_token_logps(logits, ids_BT)
        told_BS = labels_BT[:, 1:] != _MASKED
        sums_B, lengths_B = (logps_BS * told_BS).sum(-1), told_BS.sum(-1)
        scores_B = sums_B if params.loss == "cpo" else sums_B / lengths_B
        chosen, rejected = scores_B.chunk(2)
        counted_BS = seen_BT[:, 1:].bool() if params.loss == "orpo" else told_BS
        counted = counted_BS.chunk(2)[0]
        # By the tokens of all processes: those of one may have longer completions.
        nll = -(logps_BS.chunk(2)[0] * counted).sum() / mean_of_all(counted.sum())
        preference = _preference(params, chosen, rejected).mean()
        return weight * nll + preference, {
            "nll_loss": nll.item(),
            "logps/chosen": chosen.mean().item(),
            "logps/rejected": rejected.mean().item(),
            "rewards/accuracies": (chosen > rejected).float().mean().item(),
        }

    return loss


def _preference(params: OrpoParams, chosen: Any, rejected: Any) -> Any:
    """Return the second term of each pair, of the scores of its two sides."""
    import torch

    if params.loss == "orpo":
        log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        return -params.beta * torch.nn.functional.logsigmoid(log_odds)
    gamma = 0.0
    if params.loss == "simpo":
        gamma = 0.5 if params.gamma is None else params.gamma
    return -torch.nn.functional.logsigmoid(params.beta * (chosen - rejected) - gamma)


def _log1mexp(x: Any) -> Any:
    """Return log(1 - exp(x)) for x < 0 without loss of digits at either end.

    Source: Mächler 2012, https://cran.r-project.org/package=Rmpfr, vignette log1mexp, eq. 7.
    """
    import torch

    near_zero = x > -0.6931471805599453
    # Each branch sees only its own arguments, or the gradient of the other would be NaN.
    small = torch.where(near_zero, x, torch.full_like(x, -0.1))
    large = torch.where(near_zero, torch.full_like(x, -1.0), x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
