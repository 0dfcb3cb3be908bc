"""`grpo`: group relative policy optimization on completions that the model writes itself.

For each prompt G completions are drawn and rewarded; the advantage of one is its reward less the
mean of its group, by the group's standard deviation:

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)
    L = -mean over tokens of min(q A, clip(q, 1 - epsilon, 1 + epsilon) A) + beta * KL

where q is the probability of a token now by that when it was drawn, and KL the distance to the
reference. Source: Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4; the mean over all tokens of a
step (`dapo`): Yu et al. 2025, arXiv:2503.14476, eq. 8.

The reference, with a `beta` above 0, is what the policy was before the first step, as in `dpo`.
"""

import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any, Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Field,
    Function,
    Model,
    Place,
    QuantizedModel,
    RewardModel,
    RuleError,
    rule,
)
from ftbuild_rules.training import _arguments, _loop, _policy, _run, _settings
from ftbuild_rules.training._grpo import trainer_class
from ftbuild_rules.training._machine import require_gpu
from ftbuild_rules.training._other_tools import PREFERENCE_NAMES
from ftbuild_rules.training._reference import (
    moves_base,
    require_start_of_base,
    require_still_base,
)
from ftbuild_rules.training._rewards import Rewards, make_rewards
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    output_kind,
    pins,
)


class GrpoInputs(TrainingInputs):
    """A model, prompts (tokens of the form `prompts`), and what rewards the completions."""

    rewards: tuple[Function, ...] = ()
    """Functions that reward completions, `["reward.py:correct"]`. Each is called with lists, by
    the names in its signature: `prompts`, `completions`, `completion_ids`, and any column of the
    prompts; it returns a number for each completion, or None where it has nothing to say."""
    reward_models: tuple[RewardModel, ...] = ()
    """Targets of the rule `reward_model` that score the whole text, after `rewards`."""
    reward_base: Model | QuantizedModel | None = None
    """The base of those of `reward_models` that are adapters, where it is not `model`."""


class GrpoParams(TrainingParams):
    """How to draw completions, and how to learn from their rewards."""

    other_names = PREFERENCE_NAMES

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(8, ge=1)
    """Completions of one micro-batch; a step holds those of whole groups."""
    num_generations: int = Field(8, ge=2)
    """Completions of each prompt: one group. It divides `batch_size` x `gradient_accumulation`."""
    max_completion_length: int = Field(256, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Of the drawing."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Draw from so many of the likeliest tokens; 0 for all."""
    beta: float = Field(0.0, ge=0)
    """How strongly the policy is held to the reference; at 0 there is none."""
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo", "luspo", "cispo", "sapo", "vespo"] = "dapo"
    """How the tokens of a step are weighed, as TRL names it: `dapo` all alike, `grpo` first by
    completion, `dr_grpo` (arXiv:2503.20783) by the longest possible completion."""
    importance_sampling: Literal["token", "sequence"] = "token"
    """Whether q is of each token, or of a whole completion (GSPO, arXiv:2507.18071)."""
    epsilon: float = Field(0.2, gt=0)
    """How far q may leave 1."""
    epsilon_high: float | None = Field(None, gt=0)
    """How far upwards, where that is more (arXiv:2503.14476); `epsilon` if not given."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Whose standard deviation divides an advantage."""
    num_iterations: int = Field(1, ge=1)
    """Steps on the completions of one drawing."""
    mask_truncated: bool = False
    """Leave completions out of the loss that did not end within `max_completion_length`."""
    reward_weights: tuple[float, ...] = ()
    """The weight of each reward in the sum, functions first; 1 each if not given."""
    vllm: str | None = None
    """Draw completions by this version of vLLM, which must be installed, on a GPU:
    `vllm = "0.14.0"`. Its draws differ from run to run. Without it Transformers draws them."""


def check(kinds: Mapping[str, tuple[str, ...]], params: GrpoParams) -> None:
    """Refuse attributes that exclude each other.

    Raises:
        AttributeProblem: there are such.
    """
    _settings.check(kinds, params)
    if not {"rewards", "reward_models"} & set(kinds):
        raise AttributeProblem(
            "rewards", "nothing rewards the completions", 'write `rewards = ["reward.py:score"]`'
        )
    if "reward_base" in kinds and "reward_models" not in kinds:
        raise AttributeProblem(
            "reward_base", "`reward_base` belongs to `reward_models`", "remove it"
        )
    step = params.batch_size * params.gradient_accumulation
    if step % params.num_generations:
        raise AttributeProblem(
            "num_generations",
            f"`num_generations` = {params.num_generations} does not divide the {step} completions "
            "of a step (`batch_size` x `gradient_accumulation`): a group would be torn",
            f"set `batch_size = {params.num_generations}`",
        )
    if any(not math.isfinite(weight) or weight == 0 for weight in params.reward_weights):
        raise AttributeProblem(
            "reward_weights", "a weight in `reward_weights` is 0", "leave that reward out"
        )
    _check_loss(params)
    if params.lora is not None and params.lora.dropout:
        raise AttributeProblem(
            "lora",
            "`lora.dropout` has no meaning here: completions are drawn and judged by one policy",
            "remove it",
        )
    if params.lora is not None and params.beta:
        require_start_of_base(params.lora)
    if params.lora is not None and params.beta and (moved := moves_base(params.lora)):
        raise AttributeProblem(
            "lora",
            f"`lora.{moved}` changes weights of the base, which is the reference here",
            "remove it, or set `beta = 0`",
        )
    if params.launch is not None:
        raise AttributeProblem("launch", "`grpo` runs in one process", "remove `launch`")


def _check_loss(params: GrpoParams) -> None:
    high = params.epsilon_high
    if high is not None and high < params.epsilon:
        raise AttributeProblem(
            "epsilon_high",
            f"`epsilon_high` = {high} is below `epsilon` = {params.epsilon}",
            "raise it, or remove it",
        )
    if params.loss == "cispo" and high is None:
        raise AttributeProblem(
            "loss",
            "`cispo` needs `epsilon_high`, the bound of its weights",
            "set `epsilon_high = 5.0`, as its paper does (arXiv:2506.13585)",
        )
    wanted = {"luspo": "sequence", "vespo": "token"}.get(params.loss, params.importance_sampling)
    if params.importance_sampling != wanted:
        raise AttributeProblem(
            "importance_sampling",
            f'`{params.loss}` is defined for `importance_sampling = "{wanted}"`',
            "set that",
        )


@rule(version=3, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def grpo(ctx: Context, inputs: GrpoInputs, params: GrpoParams) -> None:
    """Train a model, or an adapter of it, by rewards for completions that it writes itself.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights. On
    `eval_data` one completion of each prompt is drawn, with the same seed each time; the loss
    there is minus its mean reward.
    """
    run = _run.prepare(
        ctx, inputs, params, form="prompts", rule="grpo", room=params.max_completion_length
    )
    if params.beta:
        require_still_base(inputs.adapter, None, fix="set `beta = 0`, or continue another adapter")
    _require_vllm(params)
    _require_group(run, params)
    rewards = make_rewards(
        inputs.rewards,
        inputs.reward_models,
        rows=run.data,
        bases=[model for model in (inputs.model, inputs.reward_base) if model is not None],
        weights=params.reward_weights,
        other_template=params.other_template,
    )
    _run.make_deterministic(params)
    from trl import GRPOConfig

    given = _arguments.trl_inputs(run)
    for name in ("train_dataset", "eval_dataset"):
        if given[name] is not None:
            given[name] = given[name].rename_column("prompt_ids", "prompt")
    if given["eval_dataset"] is not None:
        count = range(len(given["eval_dataset"]))
        given["eval_dataset"] = given["eval_dataset"].add_column("row", list(count))
    trainer = _loop.watched(trainer_class(run), run, zero_is_wrong=False)(
        model=_policy.load_policy(run),
        reward_funcs=rewards.functions(given["processing_class"]),
        args=GRPOConfig(**_arguments.trainer_arguments(run), **_settings_of(params, rewards)),
        **given,
    )
    _loop.train(run, trainer, every=params.num_iterations)
    _record(run, trainer)
    _loop.save(run, trainer.model)


def _settings_of(params: GrpoParams, rewards: Rewards) -> dict[str, Any]:
    vllm = {} if params.vllm is None else {"use_vllm": True, "vllm_mode": "colocate"}
    return {
        "num_generations": params.num_generations,
        "num_generations_eval": 1,
        "max_completion_length": params.max_completion_length,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "beta": params.beta,
        "loss_type": params.loss,
        "importance_sampling_level": params.importance_sampling,
        "epsilon": params.epsilon,
        "epsilon_high": params.epsilon_high,
        "scale_rewards": params.scale_rewards,
        "num_iterations": params.num_iterations,
        "mask_truncated_completions": params.mask_truncated,
        "reward_weights": list(params.reward_weights) or [1.0] * rewards.count,
        "disable_dropout": True,
        **vllm,
    }


def _require_vllm(params: GrpoParams) -> None:
    """Refuse to draw by another vLLM than the one that is asked for, and in the key.

    Raises:
        RuleError: E0917; E0954: there is no GPU.
    """
    if params.vllm is None:
        return
    try:
        found = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != params.vllm:
        raise RuleError(
            f"`vllm` = {params.vllm} is asked for, and "
            + ("it is not installed" if found is None else f"{found} is installed"),
            code="E0917",
            where=Place(path="vllm"),
            fix=f"pip install vllm=={params.vllm}; or remove `vllm`, and Transformers draws",
        )
    require_gpu("`vllm`", "remove it, and Transformers draws")


def _require_group(run: _run.Run, params: GrpoParams) -> None:
    """Refuse fewer prompts than one step takes: there would be no step at all.

    Raises:
        RuleError: E0907.
    """
    prompts = params.batch_size * params.gradient_accumulation // params.num_generations
    if run.data.num_rows < prompts:
        raise RuleError(
            f"`{run.data.label}` has {run.data.num_rows} prompts; one step takes {prompts}",
            code="E0907",
            where=Place(path=run.data.label),
            why="that is `batch_size` x `gradient_accumulation` / `num_generations`",
            fix="add prompts, or lower `batch_size` or `gradient_accumulation`",
        )


def _record(run: _run.Run, trainer: Any) -> None:
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    run.ctx.facts(first_reward=rewards[0], last_reward=rewards[-1])
