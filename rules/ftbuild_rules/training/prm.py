"""`prm`: a judge of the steps of a solution (process reward model).

    L = -(1/N) * sum over the N step ends of log p(its label | all before it)

with two classes, 1 for a right step and 0 for a wrong one, told at the step's last token. The head
has the dropout that the model's config names as `classifier_dropout`, in Transformers 0.1 if none.
Source: Uesato et al. 2022, arXiv:2211.14275; Lightman et al. 2023, arXiv:2305.20050, section 2.6.
"""

from collections.abc import Callable
from typing import Any

from ftbuild.api import Context, Field, RewardModel, rule
from ftbuild_rules.training import _run
from ftbuild_rules.training._heads import (
    Head,
    HeadInputs,
    load_judge,
    require_adapter,
    save_judge,
)
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._own import pad_id, padded, train_own
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingParams,
    check,
    pins,
)

_HEAD = Head(task="TOKEN_CLS", num_labels=2, rule="prm")
_MASKED = -100


class PrmInputs(HeadInputs):
    """A model and rows of the form `stepwise`."""


class PrmParams(TrainingParams):
    """How to train a judge of steps."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate."""


@rule(version=3, output=RewardModel, pins=pins, preload=PRELOAD, check=check, gpus=1)
def prm(ctx: Context, inputs: PrmInputs, params: PrmParams) -> None:
    """Train a model to tell at the end of each step whether it is right.

    With `lora` a new adapter with a new head, with `adapter` those further, with neither all
    weights.
    """
    require_adapter(inputs.adapter, _HEAD)
    run = _run.prepare(ctx, inputs, params, form="stepwise", rule="prm")
    if done_in_processes(run, "prm"):
        return
    _run.make_deterministic(params)
    model = load_judge(run, _HEAD)
    model = train_own(run, model, _loss, _collator(pad_id(run)), counts_labels=True)
    save_judge(run, model, _HEAD)


def _collator(pad: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "input_ids": padded([row["input_ids"] for row in rows], pad),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded([row["labels"] for row in rows], _MASKED),
        }

    return collate


def _loss(model: Any, batch: dict[str, Any], num_labels: Any) -> tuple[Any, dict[str, float]]:
    """Return the cross-entropy over the step ends, in nats, and the share of right judgements.

    Shapes: logits_BTC, labels_BT; B rows, T tokens, C = 2 classes.
    """
    import torch

    labels_BT = batch["labels"]
    logits_BTC = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits.float()
    total = torch.nn.functional.cross_entropy(
        logits_BTC.flatten(0, 1), labels_BT.flatten(), ignore_index=_MASKED, reduction="sum"
    )
    told = labels_BT != _MASKED
    right = (logits_BTC.argmax(-1) == labels_BT)[told].float().mean().item()
    count = told.sum() if num_labels is None else num_labels
    return total / count, {"accuracy": right}
