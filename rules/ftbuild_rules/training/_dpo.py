"""What the rules on TRL's `DPOTrainer` share: the policy, its reference, and the run itself."""

from typing import Any

from ftbuild.api import File, Tokens
from ftbuild_rules.training import _arguments, _loop, _policy, _run
from ftbuild_rules.training._launch import is_launched
from ftbuild_rules.training._reference import (
    Reference,
    ReferencedInputs,
    read_reference,
    require_still_base,
)
from ftbuild_rules.training._sharding import mean_of_all


def train_pairs(
    run: _run.Run, inputs: ReferencedInputs, *, zero_is_wrong: bool, **settings: Any
) -> None:
    """Train on preference pairs with the losses that `settings` of `DPOConfig` name.

    The reference is what the policy is before the first step. Dropout is off in both, as in TRL.
    """
    require_still_base(inputs.adapter, inputs.reference)
    ld_alpha = settings.get("ld_alpha")
    given = {"train_dataset": _rows(run, inputs, ld_alpha)}
    if run.eval_data is not None:
        given["eval_dataset"] = _eval_rows(run, inputs, ld_alpha)
    from trl import DPOConfig, DPOTrainer

    class Pretokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            self.loss_weights = _weighed(weights, losses, inputs["completion_mask"])
            return super()._compute_loss(model, inputs, return_outputs)

    losses = settings["loss_type"]
    weights = settings.get("loss_weights") or [1.0] * len(losses)
    trainer = _loop.watched(Pretokenized, run, zero_is_wrong=zero_is_wrong)(
        model=_policy.load_policy(run),
        ref_model=None if inputs.reference is not None else second_copy(run),
        args=DPOConfig(
            **_arguments.trl_arguments(run),
            precompute_ref_log_probs=inputs.reference is not None,
            **settings,
        ),
        **{**_arguments.trl_inputs(run), **given},
    )
    _loop.train(run, trainer)
    _loop.save(run, trainer.model)


def _weighed(weights: list[float], losses: list[str], mask_BT: Any) -> list[Any]:
    """Return the weights with which the losses are those of one process that has all rows.

    TRL's `sft` is a mean over the tokens of the chosen sides, of which each process has others.
    """
    if "sft" not in losses or not is_launched():
        return weights
    count = mask_BT.chunk(2)[0][:, 1:].sum()
    share = count / mean_of_all(count)
    return [w * share if loss == "sft" else w for w, loss in zip(weights, losses, strict=True)]


def _rows(run: _run.Run, inputs: ReferencedInputs, ld_alpha: float | None) -> Any:
    logps = _logps(run, inputs.data, inputs.reference, ld_alpha)
    return run.data.dataset(with_row=True, **logps)


def _eval_rows(run: _run.Run, inputs: ReferencedInputs, ld_alpha: float | None) -> Any:
    assert inputs.eval_data is not None
    assert run.eval_data is not None
    logps = _logps(run, inputs.eval_data, inputs.eval_reference, ld_alpha)
    return run.eval_data.dataset(with_row=False, **logps)


def _logps(
    run: _run.Run, tokens: Tokens, given: File | None, ld_alpha: float | None
) -> dict[str, Any]:
    """Return the columns of the reference's log-probabilities that TRL reads; none if not given.

    Raises:
        RuleError: E0909: they are of other tokens, another model or another adapter.
    """
    if given is None:
        return {}
    import pyarrow.compute as pc

    start = (run.inputs.model, run.inputs.adapter, tokens)
    table = read_reference(given, Reference.of(start, dtype=run.params.dtype))
    columns = {}
    for side in ("chosen", "rejected"):
        whole = table.column(f"{side}_logps")
        if ld_alpha is not None:
            shared = table.column(f"{side}_shared_logps")
            whole = pc.add(shared, pc.multiply(pc.subtract(whole, shared), ld_alpha))
        columns[f"ref_{side}_logps"] = whole.cast("float32")
    return columns


def second_copy(run: _run.Run) -> Any:
    """Return the reference of a full training; an adapter needs no second model."""
    if run.inputs.adapter is not None or run.params.lora is not None:
        return None
    import torch

    return _policy.load_base(run.inputs.model, torch.float32, run.params.attention)
