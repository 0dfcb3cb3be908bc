"""All that rewards the completions of one run of `grpo`, as TRL calls it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftbuild.api import Function, Place, RewardModel, RuleError
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.training._judge import Judge, closing_ids, end_ids, make_judge
from ftbuild_rules.training._rewarder import Rewarder, load_rewarder
from ftbuild_rules.training._shards import TokenRows


@dataclass(frozen=True)
class Rewards:
    """Functions first, then reward models."""

    rewarders: tuple[Rewarder, ...]
    judges: tuple[Judge, ...]
    model: Base
    """The policy, which says how a completion ends."""
    template: str | None
    """The chat template of the prompts."""

    @property
    def count(self) -> int:
        """How many rewards a completion gets."""
        return len(self.rewarders) + len(self.judges)

    def functions(self, tokenizer: Any) -> list[Any]:
        """Return them as TRL calls them, each with a name of its own for the figures."""
        ends = end_ids(self.model, tokenizer)
        closing = closing_ids(tokenizer, self.template, ends) if self.judges else []
        names = [rewarder.given.name for rewarder in self.rewarders]
        found = []
        for rewarder in self.rewarders:
            given = rewarder.given
            name = given.name if names.count(given.name) == 1 else given.spec
            found.append(_named(_by_function(rewarder, tokenizer), name))
        for judge in self.judges:
            found.append(_named(_by_judge(judge, closing, ends), judge.name))
        return found


def make_rewards(
    functions: Sequence[Function],
    models: Sequence[RewardModel],
    *,
    rows: TokenRows,
    bases: Sequence[Base],
    weights: Sequence[float],
    other_template: bool,
) -> Rewards:
    """Return what rewards completions of the prompts `rows`, checked before a model is loaded.

    `bases` are the policy, and the base of reward models where it is another.

    Raises:
        RuleError: E0715, E0914 to E0916: a function or a reward model cannot reward these rows.
    """
    rewarders = tuple(load_rewarder(function, rows) for function in functions)
    judges = tuple(
        make_judge(model, rows, bases, other_template=other_template) for model in models
    )
    rewards = Rewards(rewarders, judges, bases[0], rows.template)
    if rewards.count == 0:
        raise RuleError(
            "nothing rewards the completions",
            code="E0915",
            where=Place(path="rewards"),
            fix='write `rewards = ["reward.py:score"]`',
        )
    if weights and len(weights) != rewards.count:
        raise RuleError(
            f"`reward_weights` has {len(weights)} numbers for {rewards.count} rewards",
            code="E0915",
            where=Place(path="reward_weights"),
            fix="give one for each of `rewards`, then one for each of `reward_models`",
        )
    return rewards


def _by_function(rewarder: Rewarder, tokenizer: Any) -> Any:
    def reward(
        prompts: list[list[int]],
        completions: list[str],
        completion_ids: list[list[int]],
        row: list[int],
        metadata: list[str],
        **_: Any,
    ) -> list[float | None]:
        others = [json.loads(text or "{}") for text in metadata]
        names = sorted({name for each in others for name in each})
        columns = {name: [each.get(name) for each in others] for name in names}
        columns |= {
            "prompts": [tokenizer.decode(ids) for ids in prompts],
            "completions": list(completions),
            "completion_ids": [list(ids) for ids in completion_ids],
        }
        return rewarder(columns, row)

    return reward


def _by_judge(judge: Judge, closing: Sequence[int], ends: Sequence[int]) -> Any:
    def reward(prompts: list[list[int]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        whole = [
            [*prompt, *ids, *(closing if ids and ids[-1] in ends else ())]
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        return judge.scores(whole)

    return reward


def _named(function: Any, name: str) -> Any:
    function.__name__ = name
    return function
