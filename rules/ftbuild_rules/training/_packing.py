"""Training on next tokens, by TRL's `SFTTrainer`, with documents of packed rows kept apart.

Transformers keeps packed documents apart by their positions, which begin anew with each, but only
where there is no attention mask and no cache. With a mask of ones nothing warns, and each
document sees all before it; so whether it holds is tried on the model itself before the first
step.
"""

from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.training import _arguments, _loop, _run
from ftbuild_rules.training._shards import TokenRows

_TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Of the largest logit; documents that do see each other differ by tenths of it."""


def train_documents(run: _run.Run, model: Any, **settings: Any) -> Any:
    """Train `model` to write the labels, with further `settings` of `SFTConfig`; return it.

    Raises:
        RuleError: E0911: documents of a packed row see each other in this model.
    """
    from trl import SFTConfig, SFTTrainer

    given = [rows for rows in (run.data, run.eval_data) if rows is not None]
    packed = [rows for rows in given if rows.is_packed]
    trainer = _loop.watched(SFTTrainer, run, zero_is_wrong=True)(
        model=model,
        args=SFTConfig(
            **_arguments.trl_arguments(run),
            dataset_kwargs={"skip_prepare_dataset": True},
            # All rows of a micro-batch in one, with positions in the place of a mask.
            padding_free=bool(packed),
            **settings,
        ),
        **_arguments.trl_inputs(run),
    )
    for rows in packed:
        require_isolation(run, trainer, rows)
    _loop.train(run, trainer)
    return trainer.model


def require_isolation(run: _run.Run, trainer: Any, rows: TokenRows) -> None:
    """Refuse to train if another first document changes what is read in the second.

    Raises:
        RuleError: E0911.
    """
    import torch

    dataset = rows.dataset(with_row=False)
    row = next((row for row in dataset if len(row["seq_lengths"]) > 1), None)
    if row is None:
        return
    model, border = trainer.model, row["seq_lengths"][0]
    other = {**row, "input_ids": [*_changed(row["input_ids"][:border]), *row["input_ids"][border:]]}
    was_training = model.training
    model.eval()
    logits = []
    for each in (row, other):
        batch = trainer.data_collator([each])
        batch.pop("labels")
        with torch.no_grad():
            inputs = trainer._prepare_inputs(batch)
            logits.append(model(**inputs, use_cache=False).logits[0, border:].float())
    model.train(was_training)
    apart = (logits[0] - logits[1]).abs().max() <= _TOLERANCES[run.params.dtype] * logits[
        0
    ].abs().max()
    if not apart:
        raise RuleError(
            f"documents in the packed rows of `{rows.label}` would see each other in "
            f"`{run.inputs.model.label or 'model'}`",
            code="E0911",
            where=Place(path=rows.label),
            why=f"`{type(model).__name__}` does not keep documents apart by their positions",
            fix="take `packing` away from the tokens",
        )


def _changed(ids: list[int]) -> list[int]:
    """Return as many ids, each another one."""
    return [0 if each else 1 for each in ids]
