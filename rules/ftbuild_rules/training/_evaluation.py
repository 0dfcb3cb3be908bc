"""When the loss on `eval_data` is measured, and what follows from it: the best weights, the end.

All of it is told by the trainer's own log, which a checkpoint holds. An evaluation falls on a
step and is done before that step's checkpoint is written, so a resumed run has it behind it or
does it again, with the same result. The best weights lie in the scratch folder; a run that is
resumed from before them writes the same again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild_rules.models._safetensors import read_tensors, write_tensors
from ftbuild_rules.models._torch import load_tensor, spec_of, tensor_bytes
from ftbuild_rules.training._launch import is_first
from ftbuild_rules.training._settings import TrainingParams

_NAME = "best.safetensors"


@dataclass(frozen=True)
class Evaluated:
    """The loss on `eval_data` after a step."""

    step: int
    loss: float


def evaluated_in(state: Any) -> list[Evaluated]:
    """Return all evaluations so far, in their order."""
    return [
        Evaluated(entry["step"], entry["eval_loss"])
        for entry in state.log_history
        if "eval_loss" in entry
    ]


def best_of(evaluated: list[Evaluated]) -> Evaluated:
    """Return the evaluation with the lowest loss, the first of equals."""
    return min(evaluated, key=lambda each: each.loss)


def evaluations(params: TrainingParams, scratch: Path) -> Any:
    """Return the callback that has the loss measured, keeps the best weights and may stop."""
    from transformers import TrainerCallback

    class Evaluations(TrainerCallback):
        """Evaluates at the end of each epoch, or every so many steps, and after the last."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            every = params.evaluate_every
            is_due = (
                float(state.epoch).is_integer()
                if every is None
                else not (state.global_step % every)
            )
            control.should_evaluate = is_due or state.global_step == state.max_steps

        def on_evaluate(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            evaluated = evaluated_in(state)
            best = best_of(evaluated)
            if params.keep == "best" and best is evaluated[-1] and is_first():
                keep_weights(model, scratch)
            since = len(evaluated) - 1 - evaluated.index(best)
            if params.early_stopping is not None and since >= params.early_stopping:
                control.should_training_stop = True
                # Resumed from here, the run would train one step more before it stops.
                control.should_save = False

    return Evaluations()


def keep_weights(model: Any, scratch: Path) -> None:
    """Write all that is trained to the scratch folder, in the place of what lay there."""
    trained = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
    staged = scratch / f"{_NAME}.tmp"
    write_tensors(
        staged,
        [spec_of(name, parameter) for name, parameter in trained.items()],
        ([tensor_bytes(parameter.detach().cpu())] for parameter in trained.values()),
    )
    staged.rename(scratch / _NAME)


def restore_weights(model: Any, scratch: Path) -> None:
    """Give a model back what `keep_weights` wrote."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for stored in read_tensors(scratch / _NAME):
            parameters[stored.spec.name].copy_(load_tensor(stored))
