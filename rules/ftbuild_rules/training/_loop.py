"""What all training methods share: load, watch, resume, report, save.

A method brings its trainer class and what is its own; this file makes the same action give the
same bytes, in one go or after a kill, and stops it as soon as it goes wrong.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ftbuild.api import (
    Adapter,
    Context,
    Place,
    RewardModel,
    RuleError,
    Tokens,
)
from ftbuild_rules.models._card import training_card, write_card
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._load import load_network
from ftbuild_rules.training._checkpoints import Checkpoints
from ftbuild_rules.training._evaluation import (
    best_of,
    evaluated_in,
    evaluations,
    restore_weights,
)
from ftbuild_rules.training._launch import is_first
from ftbuild_rules.training._lora import (
    Rows,
    expose_bias,
    fill_reference,
    lora_config,
    remember_start,
    require_base,
    save_adapter,
)
from ftbuild_rules.training._machine import require_machine
from ftbuild_rules.training._model import save_model
from ftbuild_rules.training._quantized import keep_precision, restore_precision
from ftbuild_rules.training._settings import TrainingParams
from ftbuild_rules.training._sharding import (
    confirmation,
    gathered,
    strategy_arguments,
    told_by_first,
    use_fsdp,
    wait_for_all,
)
from ftbuild_rules.training._shards import (
    Form,
    TokenRows,
    own_template,
    read_tokens,
    require_fit,
    require_one_template,
    require_template,
    template_digest,
)
from ftbuild_rules.training._targets import require_targets
from ftbuild_rules.training._trackers import Trackers

_STEPS_NAME = "steps"


class MethodInputs(Protocol):
    """The inputs of every method; what `adapter` may be differs."""

    @property
    def model(self) -> Base: ...
    @property
    def adapter(self) -> Adapter | RewardModel | None: ...
    @property
    def data(self) -> Tokens: ...
    @property
    def eval_data(self) -> Tokens | None: ...


class LoadModel(Protocol):
    """How a method loads its network: what it is, its type, its attention."""

    def __call__(self, model: Base, dtype: Any, attention: str) -> Any: ...


@dataclass(frozen=True)
class Run:
    """One training: what it reads, how, and whom it tells."""

    ctx: Context
    inputs: MethodInputs
    params: TrainingParams
    data: TokenRows
    eval_data: TokenRows | None
    rule: str
    token_rows: Rows | None = None
    """The rows of embeddings that `lora.trainable_tokens` stands for."""


def prepare(
    ctx: Context,
    inputs: MethodInputs,
    params: TrainingParams,
    *,
    form: Form,
    rule: str,
    settings: Mapping[str, Any] | None = None,
    room: int = 0,
) -> Run:
    """Check all that can be checked before a model is loaded; `settings` change its config.

    Behind each row there must be `room` for so many more tokens.

    Raises:
        RuleError: E0901 to E0907: tokens, model and adapter do not belong together; E0950: nor
            does the `lora` table; E0951, E0954: this machine cannot do what is asked for.
    """
    require_machine(params)
    if inputs.adapter is not None:
        require_base(inputs.adapter, inputs.model)
    given = [tokens for tokens in (inputs.data, inputs.eval_data) if tokens is not None]
    rows = [read_tokens(tokens, form, rule=rule) for tokens in given]
    for each in rows:
        require_fit(each, inputs.model, settings=settings, room=room)
        if not params.other_template:
            require_template(each, inputs.model, inputs.adapter)
    require_one_template(rows)
    token_rows = None if params.lora is None else require_targets(params.lora, inputs.model)
    return Run(ctx, inputs, params, rows[0], rows[1] if len(rows) > 1 else None, rule, token_rows)


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


def load_base(model: Base, dtype: Any, attention: str) -> Any:
    """Return the causal language model of an artifact; its path is where it came from."""
    from transformers import AutoModelForCausalLM

    return load_network(AutoModelForCausalLM, model, dtype=dtype, attn_implementation=attention)


def load_policy(run: Run, load: LoadModel = load_base) -> Any:
    """Return the model to train: with the adapter to continue, else as it is."""
    import torch

    frozen = run.inputs.adapter is not None or run.params.lora is not None
    launch = run.params.launch
    # What is trained stays float32; frozen weights may be as coarse as the computation, but where
    # they are sharded together with those they must be of one type.
    is_mixed = launch is not None and launch.strategy == "fsdp"
    dtype = getattr(torch, run.params.dtype) if frozen and not is_mixed else torch.float32
    model = load(run.inputs.model, dtype, run.params.attention)
    if run.inputs.adapter is None:
        return model
    from peft import PeftModel

    policy = PeftModel.from_pretrained(model, run.inputs.adapter.path, is_trainable=True)
    keep_precision(policy)
    return policy


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
        "fp16": params.dtype == "float16",
        "use_liger_kernel": params.liger,
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
        **strategy_arguments(params.launch),
    }


def trl_inputs(run: Run) -> dict[str, Any]:
    """Return what the trainers of TRL that wrap the model themselves are given besides it."""
    return {**trainer_inputs(run), "peft_config": peft_config(run)}


def peft_config(run: Run) -> Any:
    """Return PEFT's configuration of a new adapter; None where there is none."""
    lora = run.params.lora
    return None if lora is None else lora_config(lora, rows=run.token_rows)


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


def bad_step(run: Run, step: int, what: str, *, rows: list[int]) -> RuleError:
    """Return the error that a step with these rows went wrong."""
    label = run.data.label
    return RuleError(
        f"the {what} at step {step}; training stopped, nothing was kept",
        code="E0910",
        where=Place(path=label, within=f"rows {', '.join(map(str, rows))}"),
        fix=f"look at `ftbuild inspect {label} --row {rows[0]}`; lower `learning_rate`",
    )


def train(run: Run, trainer: Any, *, every: int = 1) -> None:
    """Train to the end, from the last checkpoint of this action if there is one.

    Checkpoints are taken at multiples of `every` steps only.

    Raises:
        RuleError: E0910: a loss or a gradient is NaN or infinite, or a loss exactly zero.
    """
    from transformers import PrinterCallback

    remember_start(trainer.model)
    fill_reference(trainer.model)
    expose_bias(trainer.model)
    restore_precision(trainer.model)
    trainer.remove_callback(PrinterCallback)  # the context is told all that it would print
    trainer.data_collator = _with_rows(trainer.data_collator)
    checkpoints = Checkpoints.of(run.ctx.scratch)
    trackers = Trackers.start(run.ctx) if is_first() else Trackers(run.ctx)
    trainer.add_callback(_reporter(run, trainer, checkpoints, trackers, every=every))
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


def _reporter(
    run: Run, trainer: Any, checkpoints: Checkpoints, trackers: Trackers, *, every: int
) -> Any:
    from transformers import TrainerCallback

    started = time.monotonic()
    first_tokens: list[float] = []

    class Reporter(TrainerCallback):
        """Tells the context of each step, and says when a checkpoint is due."""

        save_began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.rows_of_step = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            may_save = state.global_step < state.max_steps and state.global_step % every == 0
            if may_save and told_by_first(checkpoints.is_due()):
                self.save_began = time.monotonic()
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait_for_all()
            if is_first():
                checkpoints.seal(state.global_step, began=self.save_began)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            if "loss" not in logs:
                trackers.log(state.global_step, _tell_evaluation(run, state, logs))
                return
            metrics = _metrics_of(run, trainer, logs)
            if (tokens := metrics.pop("num_tokens", None)) is not None:
                first_tokens.append(tokens)
                elapsed = time.monotonic() - started
                metrics["tokens_per_s"] = (tokens - first_tokens[0]) / elapsed
            run.ctx.progress(state.global_step, state.max_steps, **metrics)
            trackers.log(state.global_step, metrics)

    return Reporter()


def _metrics_of(run: Run, trainer: Any, logs: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a step.

    Raises:
        RuleError: E0910: its gradient is NaN or infinite.
    """
    norm = logs.get("grad_norm") or 0.0
    if not math.isfinite(norm):
        what = f"gradient has the norm {norm}"
        raise bad_step(run, trainer.state.global_step, what, rows=trainer.rows_of_step)
    metrics = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
    metrics.pop("epoch", None)
    return metrics


def _tell_evaluation(run: Run, state: Any, logs: dict[str, float]) -> dict[str, float]:
    """Tell the context of the figures on `eval_data`, if that is what was logged; return them.

    Raises:
        RuleError: E0910: it is NaN or infinite.
    """
    loss = logs.get("eval_loss")
    if loss is None:
        return {}
    if not math.isfinite(loss):
        assert run.eval_data is not None
        raise RuleError(
            f"the loss on `{run.eval_data.label}` is {loss} after step {state.global_step}; "
            "training stopped, nothing was kept",
            code="E0910",
            where=Place(path=run.eval_data.label),
            fix="lower `learning_rate`",
        )
    others = {
        name: float(value)
        for name, value in logs.items()
        if name.startswith("eval_")
        and isinstance(value, int | float)
        and not name.endswith(("_runtime", "_per_second", "_num_tokens"))
    }
    run.ctx.progress(state.global_step, state.max_steps, **others)
    return others


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
    if hasattr(model, "peft_config"):
        save_adapter(model, out, base=run.inputs.model, trained=trained)
    else:
        save_model(model, out, base=run.inputs.model, settings=settings, trained=trained)
    adapter = run.inputs.adapter
    carried = run.data.template or ("" if adapter is None else own_template(adapter))
    if carried and template_digest(carried) != template_digest(own_template(run.inputs.model)):
        (out / TEMPLATE_NAME).write_text(carried, encoding="utf-8")
    steps = int((run.ctx.scratch / _STEPS_NAME).read_text())
    write_card(out, training_card(run.inputs, run.params, run.rule, steps=steps))
