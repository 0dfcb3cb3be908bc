"""What all training methods share: load, watch, resume, report, save.

A method brings its trainer class and what is its own; this file makes the same action give the
same bytes, in one go or after a kill, and stops it as soon as it goes wrong.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ftbuild.api import Adapter, Context, Model, Place, RewardModel, RuleError, Tokens
from ftbuild_rules.models._card import data_card, read_card, write_card
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.training._checkpoints import Checkpoints
from ftbuild_rules.training._evaluation import (
    best_of,
    evaluated_in,
    evaluations,
    restore_weights,
)
from ftbuild_rules.training._lora import lora_config, require_base, save_adapter
from ftbuild_rules.training._model import save_model
from ftbuild_rules.training._settings import TrainingParams
from ftbuild_rules.training._shards import (
    Form,
    TokenRows,
    has_other_template,
    read_tokens,
    require_fit,
    require_template,
)

_FIGURES_NAME = "figures.json"


class MethodInputs(Protocol):
    """The inputs of every method; what `adapter` may be differs."""

    @property
    def model(self) -> Model: ...
    @property
    def adapter(self) -> Adapter | RewardModel | None: ...
    @property
    def data(self) -> Tokens: ...
    @property
    def eval_data(self) -> Tokens | None: ...


class LoadModel(Protocol):
    """How a method loads its network: what it is, its type, its attention."""

    def __call__(self, model: Model, dtype: Any, attention: str) -> Any: ...


@dataclass(frozen=True)
class Run:
    """One training: what it reads, how, and whom it tells."""

    ctx: Context
    inputs: MethodInputs
    params: TrainingParams
    data: TokenRows
    eval_data: TokenRows | None
    rule: str


def prepare(
    ctx: Context,
    inputs: MethodInputs,
    params: TrainingParams,
    *,
    form: Form,
    rule: str,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Check all that can be checked before a model is loaded; `settings` change its config.

    Raises:
        RuleError: E0901 to E0907: tokens, model and adapter do not belong together.
    """
    if inputs.adapter is not None:
        require_base(inputs.adapter, inputs.model)
    given = [tokens for tokens in (inputs.data, inputs.eval_data) if tokens is not None]
    rows = [read_tokens(tokens, form, rule=rule) for tokens in given]
    for each in rows:
        require_fit(each, inputs.model, settings=settings)
        if not params.other_template:
            require_template(each, inputs.model)
    return Run(ctx, inputs, params, rows[0], rows[1] if len(rows) > 1 else None, rule)


class Fixed(Protocol):
    """The attributes that numbers hang on."""

    @property
    def seed(self) -> int: ...
    @property
    def threads(self) -> int: ...


def make_deterministic(params: Fixed) -> None:
    """Fix all that may change numbers besides the library versions."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    transformers.set_seed(params.seed)


def load_base(model: Model, dtype: Any, attention: str) -> Any:
    """Return the causal language model of an artifact; its path is where it came from."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model.path, dtype=dtype, attn_implementation=attention, local_files_only=True
    )


def load_policy(run: Run, load: LoadModel = load_base) -> Any:
    """Return the model to train: with the adapter to continue, else as it is."""
    import torch

    frozen = run.inputs.adapter is not None or run.params.lora is not None
    # What is trained stays float32; frozen weights may be as coarse as the computation.
    dtype = getattr(torch, run.params.dtype) if frozen else torch.float32
    model = load(run.inputs.model, dtype, run.params.attention)
    if run.inputs.adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, run.inputs.adapter.path, is_trainable=True)


def trl_arguments(run: Run) -> dict[str, Any]:
    """Return the settings that all trainers of TRL share."""
    return {**trainer_arguments(run), "max_length": None}  # `tokens` has cut the rows


def trainer_arguments(run: Run) -> dict[str, Any]:
    """Return the settings that all trainers of TRL and Transformers share."""
    import torch

    params = run.params
    length = (
        {"num_train_epochs": params.epochs}
        if params.max_steps is None
        else {"max_steps": params.max_steps}
    )
    return {
        **length,
        "output_dir": str(Checkpoints.of(run.ctx.scratch).folder),
        "per_device_train_batch_size": params.batch_size,
        "per_device_eval_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation,
        "learning_rate": params.learning_rate,
        "lr_scheduler_type": params.schedule,
        "lr_scheduler_kwargs": dict(params.schedule_settings),
        "warmup_steps": params.warmup,
        "weight_decay": params.weight_decay,
        "max_grad_norm": params.max_grad_norm,
        "optim": params.optimizer,
        "bf16": params.dtype == "bfloat16",
        "fp16": False,
        "activation_checkpointing": params.activation_checkpointing,
        "seed": params.seed,
        "data_seed": params.seed,
        "use_cpu": not torch.cuda.is_available(),
        "eval_strategy": "no",  # when to evaluate is a callback's business too
        "save_strategy": "no",  # when to save is the callback's business
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide them behind the average
        "disable_tqdm": True,
        "report_to": [],
        "remove_unused_columns": False,  # `row` is taken out in `training_step`
        "dataloader_num_workers": 0,
    }


def trl_inputs(run: Run) -> dict[str, Any]:
    """Return what the trainers of TRL that wrap the model themselves are given besides it."""
    lora = run.params.lora
    return {**trainer_inputs(run), "peft_config": None if lora is None else lora_config(lora)}


def trainer_inputs(run: Run) -> dict[str, Any]:
    """Return what all trainers are given besides model and settings."""
    from transformers import AutoTokenizer

    return {
        "train_dataset": run.data.dataset(with_row=True),
        "eval_dataset": None if run.eval_data is None else run.eval_data.dataset(with_row=False),
        "processing_class": AutoTokenizer.from_pretrained(
            run.inputs.model.path, local_files_only=True
        ),
    }


def watched(trainer_class: type, run: Run, *, zero_is_wrong: bool) -> type:
    """Return `trainer_class` with a `training_step` that stops at the first impossible loss."""
    import torch

    class Watched(trainer_class):
        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> Any:
            rows = inputs.pop("row").tolist()
            loss = super().training_step(model, inputs, num_items_in_batch)
            value = loss.item()
            if not math.isfinite(value) or (zero_is_wrong and value == 0.0):
                raise _bad_step(run, self.state.global_step + 1, f"loss is {value}", rows=rows)
            self.rows_of_step += rows  # emptied when a step begins
            return loss

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            # Evaluating draws a seed, and a resumed run may not repeat the evaluation.
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                return super().evaluate(*args, **kwargs)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """A card with versions and paths is no part of a checkpoint."""

    return Watched


def _bad_step(run: Run, step: int, what: str, *, rows: list[int]) -> RuleError:
    label = run.data.label
    return RuleError(
        f"the {what} at step {step}; training stopped, nothing was kept",
        code="E0910",
        where=Place(path=label, within=f"rows {', '.join(map(str, rows))}"),
        fix=f"look at `ftbuild inspect {label} --row {rows[0]}`; lower `learning_rate`",
    )


def train(run: Run, trainer: Any) -> None:
    """Train to the end, from the last checkpoint of this action if there is one.

    Raises:
        RuleError: E0910: a loss or a gradient is NaN or infinite, or a loss exactly zero.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # the context is told all that it would print
    trainer.data_collator = _with_rows(trainer.data_collator)
    checkpoints = Checkpoints.of(run.ctx.scratch)
    trainer.add_callback(_reporter(run, trainer, checkpoints))
    if run.eval_data is not None:
        trainer.add_callback(evaluations(run.params, run.ctx.scratch))
    resume = checkpoints.newest()
    if resume is not None:
        run.ctx.log(f"resuming from {resume.name}")
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if run.params.keep == "best":
        restore_weights(trainer.model, run.ctx.scratch)
    _record(run, trainer)


def _with_rows(collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    import torch

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collator(examples)
        if "row" in examples[0]:
            batch["row"] = torch.tensor([example["row"] for example in examples])
        return batch

    return collate


def _reporter(run: Run, trainer: Any, checkpoints: Checkpoints) -> Any:
    from transformers import TrainerCallback

    started = time.monotonic()
    first_tokens: list[float] = []

    class Reporter(TrainerCallback):
        """Tells the context of each step, and says when a checkpoint is due."""

        save_began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.rows_of_step = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step < state.max_steps and checkpoints.is_due():
                self.save_began = time.monotonic()
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoints.seal(state.global_step, began=self.save_began)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            if "loss" not in logs:
                _tell_evaluation(run, state, logs)
                return
            norm = logs.get("grad_norm", 0.0)
            if not math.isfinite(norm):
                raise _bad_step(
                    run,
                    state.global_step,
                    f"gradient has the norm {norm}",
                    rows=trainer.rows_of_step,
                )
            metrics = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
            metrics.pop("epoch", None)
            if (tokens := metrics.pop("num_tokens", None)) is not None:
                first_tokens.append(tokens)
                elapsed = time.monotonic() - started
                metrics["tokens_per_s"] = (tokens - first_tokens[0]) / elapsed
            run.ctx.progress(state.global_step, state.max_steps, **metrics)

    return Reporter()


def _tell_evaluation(run: Run, state: Any, logs: dict[str, float]) -> None:
    """Tell the context of the loss on `eval_data`, if that is what was logged.

    Raises:
        RuleError: E0910: it is NaN or infinite.
    """
    loss = logs.get("eval_loss")
    if loss is None:
        return
    if not math.isfinite(loss):
        assert run.eval_data is not None
        raise RuleError(
            f"the loss on `{run.eval_data.label}` is {loss} after step {state.global_step}; "
            "training stopped, nothing was kept",
            code="E0910",
            where=Place(path=run.eval_data.label),
            fix="lower `learning_rate`",
        )
    run.ctx.progress(state.global_step, state.max_steps, eval_loss=loss)


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
    (run.ctx.scratch / _FIGURES_NAME).write_text(json.dumps(facts))
    run.ctx.facts(**facts)


def save(run: Run, model: Any, *, settings: Mapping[str, Any] | None = None) -> None:
    """Write what was trained: an adapter if the model has one, else the model.

    `settings` are laid over those of the base model's `config.json`.

    Raises:
        RuleError: E0913: a value is not finite, or nothing was learned.
    """
    out: Path = run.ctx.out
    if hasattr(model, "peft_config"):
        save_adapter(model, out, base=run.inputs.model)
    else:
        save_model(model, out, base=run.inputs.model, settings=settings)
    if run.data.template is not None and has_other_template(run.data, run.inputs.model):
        (out / TEMPLATE_NAME).write_text(run.data.template, encoding="utf-8")
    write_card(out, _card(run))


def _card(run: Run) -> dict[str, Any]:
    """Return what was trained on what, and how it went.

    What only watches, such as `eval_data`, is left out: it would change what lies above.
    """
    watches = () if run.params.keep == "best" else ("evaluate_every",)
    figures = json.loads((run.ctx.scratch / _FIGURES_NAME).read_bytes())
    card: dict[str, Any] = {
        "method": run.rule,
        "parameters": run.params.model_dump(
            mode="json", exclude_defaults=True, exclude=set(watches)
        ),
        "base": read_card(run.inputs.model),
        "data": [data_card(run.inputs.data)],
        "figures": {k: v for k, v in figures.items() if not k.startswith(("eval_", "best_"))},
    }
    if run.inputs.adapter is not None:
        card["adapter"] = read_card(run.inputs.adapter)
    return card
