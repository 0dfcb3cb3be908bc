"""`kto`: Kahneman-Tversky optimization on single completions, each wished for or not.

    L(wished)     = w_d * (1 - sigmoid(beta * (h - z)))
    L(not wished) = w_u * (1 - sigmoid(beta * (z - h)))
    h = log p(y | x) - log p_reference(y | x)
    z = max(0, mean of h over mismatched prompts and completions of the micro-batch)

with log-probabilities in nats, summed over the tokens of a completion; no gradient runs through
z. Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8.

The reference is what the policy was before the first step, as in `dpo`.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from ftbuild.api import AttributeProblem, Context, Field, RuleError, Tokens, rule
from ftbuild_rules.training import _loop, _settings
from ftbuild_rules.training._dpo import second_copy
from ftbuild_rules.training._settings import (
    PINS,
    PRELOAD,
    TrainingInputs,
    TrainingParams,
    output_kind,
)
from ftbuild_rules.training._shards import Form, TokenRows
from ftbuild_rules.training._unpaired import Unpaired, take_apart, unpaired_dataset


class KtoInputs(TrainingInputs):
    """A model and rows of the form `unpaired`, or `preference`: then each pair makes two."""


class KtoParams(TrainingParams):
    """How to train, and how far from the reference."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto`, or APO-zero (arXiv:2408.06266, eq. 7) without its pairs: it has no KL term."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of the completions that are wished for."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of the others. Where their numbers differ, both sorts times their weights should
    stand between 1:1 and 4:3."""


def check(kinds: Mapping[str, tuple[str, ...]], params: KtoParams) -> None:
    """Refuse attributes that exclude each other.

    Raises:
        AttributeProblem: there are such.
    """
    _settings.check(kinds, params)
    if params.loss == "kto" and params.batch_size == 1:
        raise AttributeProblem(
            "batch_size",
            "`kto` needs a `batch_size` of 2 or more: its KL term is estimated from the other "
            "completions of the micro-batch",
            'raise it, or set `loss = "apo_zero_unpaired"`, which has no such term',
        )


@rule(version=1, output=output_kind, pins=PINS, preload=PRELOAD, check=check, gpus=1)
def kto(ctx: Context, inputs: KtoInputs, params: KtoParams) -> None:
    """Train a model, or an adapter of it, on completions that are wished for or not.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights. The
    reference is always the state before the first step.
    """
    run = _loop.prepare(ctx, inputs, params, form=_form(inputs.data), rule="kto")
    order = take_apart(run.data, batch_size=params.batch_size, seed=params.seed)
    _require_both(run.data, order)
    _loop.make_deterministic(params)
    from trl import KTOConfig, KTOTrainer

    class Pretokenized(KTOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    given = _loop.trl_inputs(run)
    given["train_dataset"] = unpaired_dataset(run.data, order)
    if run.eval_data is not None:
        order = take_apart(run.eval_data, batch_size=params.batch_size, seed=params.seed)
        given["eval_dataset"] = unpaired_dataset(run.eval_data, order).remove_columns("row")
    trainer = _loop.watched(Pretokenized, run, zero_is_wrong=True)(
        model=_loop.load_policy(run),
        ref_model=second_copy(run),
        args=KTOConfig(
            **_loop.trl_arguments(run),
            beta=params.beta,
            loss_type=params.loss,
            desirable_weight=params.desirable_weight,
            undesirable_weight=params.undesirable_weight,
            train_sampling_strategy="sequential",  # the rows are shuffled already
        ),
        **given,
    )
    _loop.train(run, trainer)
    _loop.save(run, trainer.model)


def _form(tokens: Tokens) -> Form:
    """Return the form to ask for: pairs where the tokens are such."""
    form = json.loads((tokens.path / "tokens.json").read_bytes())["form"]
    return "preference" if form == "preference" else "unpaired"


def _require_both(data: TokenRows, order: Unpaired) -> None:
    """Refuse completions that are all of one sort: nothing would hold the policy back.

    Raises:
        RuleError: E0905.
    """
    if len(set(order.labels)) == 2:
        return
    sort = "wished for" if order.labels[0] else "not wished for"
    raise RuleError(
        f"all {data.num_rows} completions of `{data.label}` are {sort}",
        code="E0905",
        fix="add rows of the other sort",
    )
