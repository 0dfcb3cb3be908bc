"""What all training methods share: watch, resume, save.

A method brings its trainer class and what is its own; this file makes the same action give the
same bytes, in one go or after a kill, and stops it as soon as it goes wrong.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ftbuild_rules.models._card import training_card, write_card
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.training._checkpoints import Checkpoints
from ftbuild_rules.training._evaluation import (
    best_of,
    evaluated_in,
    evaluations,
    restore_weights,
)
from ftbuild_rules.training._launch import is_first
from ftbuild_rules.training._lora import (
    expose_bias,
    fill_reference,
    note_base,
    remember_start,
    save_adapter,
)
from ftbuild_rules.training._model import save_model
from ftbuild_rules.training._quantized import restore_precision
from ftbuild_rules.training._report import bad_step, reporter
from ftbuild_rules.training._run import Run
from ftbuild_rules.training._sharding import (
    confirmation,
    gathered,
    told_by_first,
    use_fsdp,
    wait_for_all,
)
from ftbuild_rules.training._shards import own_template, template_digest
from ftbuild_rules.training._start import begin
from ftbuild_rules.training._trackers import Trackers

_STEPS_NAME = "steps"


def watched(trainer_class: type, run: Run, *, zero_is_wrong: bool) -> type:
    """Return `trainer_class` with a `training_step` that stops at the first impossible loss."""
    import torch

    launch = run.params.launch
    on_cpu = not torch.cuda.is_available()

    class Watched(trainer_class):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if launch is not None and launch.strategy == "fsdp" and on_cpu:
                use_fsdp(self, launch)

        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> Any:
            rows = _take_rows(inputs)
            loss = super().training_step(model, inputs, num_items_in_batch)
            value = loss.item()
            if not math.isfinite(value) or (zero_is_wrong and value == 0.0):
                raise bad_step(run, self.state.global_step + 1, f"loss is {value}", rows=rows)
            self.rows_of_step += rows  # emptied when a step begins
            return loss

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            # Evaluating draws a seed, and a resumed run may not repeat the evaluation.
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                return super().evaluate(*args, **kwargs)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """A card with versions and paths is no part of a checkpoint."""

    return Watched


def _take_rows(inputs: Any) -> list[int]:
    """Return the numbers of a batch's rows; a batch of examples has its own use for them."""
    if isinstance(inputs, list):
        return sorted({example["row"] for example in inputs})
    rows: list[int] = inputs.pop("row").tolist()
    return rows


def train(run: Run, trainer: Any, *, every: int = 1) -> None:
    """Train to the end, from the last checkpoint of this action if there is one.

    Checkpoints are taken at multiples of `every` steps only.

    Raises:
        RuleError: E0910: a loss or a gradient is NaN or infinite, or a loss exactly zero.
    """
    from transformers import PrinterCallback

    fill_reference(trainer.model)
    expose_bias(trainer.model)
    restore_precision(trainer.model)
    begin(run, trainer.model)
    remember_start(trainer.model, run.params.lora)
    trainer.remove_callback(PrinterCallback)  # the context is told all that it would print
    trainer.data_collator = _with_rows(trainer.data_collator)
    checkpoints = Checkpoints.of(run.ctx.scratch)
    trackers = Trackers.start(run.ctx) if is_first() else Trackers(run.ctx)
    trainer.add_callback(reporter(run, trainer, checkpoints, trackers, every=every))
    if run.params.launch is not None:
        trainer.add_callback(confirmation(run.ctx, run.params.launch, trainer))
    if run.eval_data is not None:
        trainer.add_callback(evaluations(run.params, run.ctx.scratch))
    resume = told_by_first(checkpoints.newest() if is_first() else None)
    if resume is not None:
        run.ctx.log(f"resuming from {resume.name}")
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    finally:
        trackers.close()
    if run.params.keep == "best":
        wait_for_all()
        restore_weights(trainer.model, run.ctx.scratch)
    _record(run, trainer)


def _with_rows(collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    import torch

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collator(examples)
        if "row" in examples[0] and not isinstance(batch, list):
            batch["row"] = torch.tensor([example["row"] for example in examples])
        return batch

    return collate


def _record(run: Run, trainer: Any) -> None:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluated = evaluated_in(trainer.state)
    facts: dict[str, Any] = {
        "rows": run.data.num_rows,
        "steps": trainer.state.global_step,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    if evaluated:
        best = best_of(evaluated)
        facts["eval_loss"] = evaluated[-1].loss
        if run.params.keep == "best":
            facts |= {"eval_loss": best.loss, "best_step": best.step}
    if is_first():
        (run.ctx.scratch / _STEPS_NAME).write_text(str(trainer.state.global_step))
    run.ctx.facts(**facts)


def save(run: Run, model: Any, *, settings: Mapping[str, Any] | None = None) -> None:
    """Write what was trained: an adapter if the model has one, else the model.

    `settings` are laid over those of the base model's `config.json`.

    Raises:
        RuleError: E0913: a value is not finite, or nothing was learned.
    """
    out: Path = run.ctx.out
    trained = gathered(model)
    if not is_first():
        return
    is_adapter = hasattr(model, "peft_config")
    if is_adapter:
        note = note_base(run.inputs.model, run.inputs.adapter, run.params.lora)
        save_adapter(model, out, note=note, trained=trained)
    else:
        save_model(model, out, base=run.inputs.model, settings=settings, trained=trained)
    _save_template(run, is_adapter=is_adapter)
    steps = int((run.ctx.scratch / _STEPS_NAME).read_text())
    write_card(out, training_card(run.inputs, run.params, run.rule, steps=steps))


def _save_template(run: Run, *, is_adapter: bool) -> None:
    """Write the chat template of the rows beside an adapter; a model has that of its base."""
    adapter, own = run.inputs.adapter, own_template(run.inputs.model)
    template = run.data.template or ("" if adapter is None else own_template(adapter))
    if template_digest(template) == template_digest(own):
        template = own if is_adapter else ""
    if template:
        (run.ctx.out / TEMPLATE_NAME).write_text(template, encoding="utf-8")
