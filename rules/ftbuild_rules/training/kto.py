"""`kto`: Kahneman-Tversky optimization on single completions, each wished for or not.

    L(wished)     = w_d * (1 - sigmoid(beta * (h - z)))
    L(not wished) = w_u * (1 - sigmoid(beta * (z - h)))
    h = log p(y | x) - log p_reference(y | x)
    z = max(0, mean of h over mismatched prompts and completions of the micro-batch, of all
        processes together)

with log-probabilities in nats, summed over the tokens of a completion; no gradient runs through
z. Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8.

The reference is what the policy was before the first step, as in `dpo`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ftbuild.api import AttributeProblem, Context, Field, File, RuleError, Tokens, rule
from ftbuild_rules.training import _arguments, _loop, _policy, _reference, _run
from ftbuild_rules.training._dpo import second_copy
from ftbuild_rules.training._launch import done_in_processes
from ftbuild_rules.training._other_tools import KTO_NAMES
from ftbuild_rules.training._reference import (
    Reference,
    ReferencedInputs,
    read_kl,
    read_reference,
    require_still_base,
)
from ftbuild_rules.training._settings import (
    PRELOAD,
    TrainingParams,
    output_kind,
    pins,
)
from ftbuild_rules.training._shards import TokenRows, pair_or_single
from ftbuild_rules.training._unpaired import take_apart, unpaired_dataset


class KtoInputs(ReferencedInputs):
    """A model and rows of the form `unpaired`, or `preference`: then each pair makes two."""


class KtoParams(TrainingParams):
    """How to train, and how far from the reference."""

    other_names = KTO_NAMES

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
    _reference.check(kinds, params)
    if params.loss == "kto" and params.batch_size == 1:
        raise AttributeProblem(
            "batch_size",
            "`kto` needs a `batch_size` of 2 or more: its KL term is estimated from the other "
            "completions of the micro-batch",
            'raise it, or set `loss = "apo_zero_unpaired"`, which has no such term',
        )


@rule(version=4, output=output_kind, pins=pins, preload=PRELOAD, check=check, gpus=1)
def kto(ctx: Context, inputs: KtoInputs, params: KtoParams) -> None:
    """Train a model, or an adapter of it, on completions that are wished for or not.

    With `adapter` that one further, with `lora` a new adapter, with neither all weights. The
    reference is always the state before the first step.
    """
    run = _run.prepare(ctx, inputs, params, form=pair_or_single(inputs.data), rule="kto")
    _require_both(run.data)
    require_still_base(inputs.adapter, inputs.reference)
    if done_in_processes(run, "kto"):
        return
    has_kl = params.loss == "kto"
    given = {"train_dataset": _dataset(run, inputs.data, run.data, inputs.reference, has_kl=has_kl)}
    if run.eval_data is not None:
        assert inputs.eval_data is not None
        rows = _dataset(run, inputs.eval_data, run.eval_data, inputs.eval_reference, has_kl=has_kl)
        given["eval_dataset"] = rows.remove_columns("row")
    _run.make_deterministic(params)
    from trl import KTOConfig, KTOTrainer

    class Pretokenized(KTOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    trainer = _loop.watched(Pretokenized, run, zero_is_wrong=True)(
        model=_policy.load_policy(run),
        ref_model=None if inputs.reference is not None else second_copy(run),
        args=KTOConfig(
            **_arguments.trl_arguments(run),
            beta=params.beta,
            loss_type=params.loss,
            desirable_weight=params.desirable_weight,
            undesirable_weight=params.undesirable_weight,
            precompute_ref_log_probs=inputs.reference is not None,
            train_sampling_strategy="sequential",  # the rows are shuffled already
        ),
        **{**_arguments.trl_inputs(run), **given},
    )
    _loop.train(run, trainer)
    _loop.save(run, trainer.model)


def _dataset(
    run: _run.Run, tokens: Tokens, data: TokenRows, given: File | None, *, has_kl: bool
) -> Any:
    """Return the completions in their order, with their reference where it is `given`."""
    params = run.params
    together = params.batch_size * (1 if params.launch is None else params.launch.processes)
    order = take_apart(data, batch_size=together, seed=params.seed)
    if given is None:
        return unpaired_dataset(data, order)
    wanted = Reference.of(
        (run.inputs.model, run.inputs.adapter, tokens),
        dtype=params.dtype,
        kl={"batch_size": together, "seed": params.seed} if has_kl else None,
    )
    table = read_reference(given, wanted)
    names = {True: "chosen_logps", False: "rejected_logps"}
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    own = [
        columns[names[label] if data.form == "preference" else "logps"][row]
        for row, label in zip(order.rows, order.labels, strict=True)
    ]
    kl = {"ref_KL_logps": read_kl(given)} if has_kl else {}
    return unpaired_dataset(data, order, ref_logps=own, **kl)


def _require_both(data: TokenRows) -> None:
    """Refuse completions that are all of one sort: nothing would hold the policy back.

    Raises:
        RuleError: E0905.
    """
    if data.form == "preference":
        return
    labels = data.table.column("label").to_pylist()
    if len(set(labels)) == 2:
        return
    raise RuleError(
        f"all {data.num_rows} completions of `{data.label}` are "
        f"{'wished for' if labels[0] else 'not wished for'}",
        code="E0905",
        fix="add rows of the other sort",
    )
