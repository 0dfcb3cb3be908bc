"""What the rules on TRL's `DPOTrainer` share: the policy, its reference, and the run itself."""

from typing import Any

from ftbuild_rules.training import _loop


def train_pairs(run: _loop.Run, *, zero_is_wrong: bool, **settings: Any) -> None:
    """Train on preference pairs with the losses that `settings` of `DPOConfig` name.

    The reference is what the policy is before the first step. Dropout is off in both, as in TRL.
    """
    from trl import DPOConfig, DPOTrainer

    class Pretokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    trainer = _loop.watched(Pretokenized, run, zero_is_wrong=zero_is_wrong)(
        model=_loop.load_policy(run),
        ref_model=second_copy(run),
        args=DPOConfig(**_loop.trl_arguments(run), **settings),
        **_loop.trl_inputs(run),
    )
    _loop.train(run, trainer)
    _loop.save(run, trainer.model)


def second_copy(run: _loop.Run) -> Any:
    """Return the reference of a full training; an adapter needs no second model."""
    if run.inputs.adapter is not None or run.params.lora is not None:
        return None
    import torch

    return _loop.load_base(run.inputs.model, torch.float32, run.params.attention)
