"""`reward_model`: a score for a text, learned from pairs of completions (Bradley-Terry).

    L = -log sigmoid(r(chosen) - r(rejected)) + c * (r(chosen) + r(rejected))^2

where r is the score at the last token of prompt and completion, and c `centering`.
Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; centring: Eisenstein et al. 2023,
arXiv:2312.09244, eq. 2.
"""

from typing import Any

from ftbuild.api import Context, Field, RewardModel, rule
from ftbuild_rules.training import _arguments, _loop, _run
from ftbuild_rules.training._heads import (
    Head,
    HeadInputs,
    load_judge,
    require_adapter,
    save_judge,
)
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingParams,
    check,
    pins,
)

_HEAD = Head(task="SEQ_CLS", num_labels=1, rule="reward_model")


class RewardModelInputs(HeadInputs):
    """A model and rows of the form `preference`."""


class RewardModelParams(TrainingParams):
    """How to train a judge of whole texts."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    centering: float = Field(0.0, ge=0)
    """Draws the mean of a pair's scores to zero; 0.01 where it is wanted. The score has no
    origin of its own without it."""


@rule(version=3, output=RewardModel, pins=pins, preload=PRELOAD, check=check, gpus=1)
def reward_model(ctx: Context, inputs: RewardModelInputs, params: RewardModelParams) -> None:
    """Train a model to score the chosen completion of a pair above the rejected one.

    With `lora` a new adapter with a new head, with `adapter` those further, with neither all
    weights.
    """
    require_adapter(inputs.adapter, _HEAD)
    run = _run.prepare(ctx, inputs, params, form="preference", rule="reward_model")
    if done_in_processes(run, "reward_model"):
        return
    _run.make_deterministic(params)
    from trl import RewardConfig, RewardTrainer

    trainer = _loop.watched(RewardTrainer, run, zero_is_wrong=True)(
        model=load_judge(run, _HEAD),
        args=RewardConfig(
            **_arguments.trl_arguments(run), center_rewards_coefficient=params.centering or None
        ),
        **_whole_texts(_arguments.trainer_inputs(run)),
    )
    _loop.train(run, trainer)
    save_judge(run, trainer.model, _HEAD)


def _whole_texts(given: dict[str, Any]) -> dict[str, Any]:
    """Return a trainer's inputs with the prompt before both completions of each row."""

    def joined(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = rows.pop("prompt_ids")
        for name in ("chosen_ids", "rejected_ids"):
            rows[name] = [p + c for p, c in zip(prompts, rows[name], strict=True)]
        return rows

    for name in ("train_dataset", "eval_dataset"):
        if given[name] is not None:
            given[name] = given[name].with_transform(joined)
    return given
