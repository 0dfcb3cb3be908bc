"""What is told of each step: figures, and the first of them that is impossible."""

import math
import time
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.training._checkpoints import Checkpoints
from ftbuild_rules.training._launch import is_first
from ftbuild_rules.training._run import Run
from ftbuild_rules.training._sharding import told_by_first, wait_for_all
from ftbuild_rules.training._trackers import Trackers


def bad_step(run: Run, step: int, what: str, *, rows: list[int]) -> RuleError:
    """Return the error that a step with these rows went wrong."""
    label = run.data.label
    return RuleError(
        f"the {what} at step {step}; training stopped, nothing was kept",
        code="E0910",
        where=Place(path=label, within=f"rows {', '.join(map(str, rows))}"),
        fix=f"look at `ftbuild inspect {label} --row {rows[0]}`; lower `learning_rate`",
    )


def reporter(
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
            scaler = trainer.accelerator.scaler
            trainer.scale_of_step = 1.0 if scaler is None else scaler.get_scale()

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
    metrics = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
    metrics.pop("epoch", None)
    if math.isfinite(norm):
        return metrics
    if not _was_left_out(trainer):
        what = f"gradient has the norm {norm}"
        raise bad_step(run, trainer.state.global_step, what, rows=trainer.rows_of_step)
    metrics.pop("grad_norm")
    return metrics


def _was_left_out(trainer: Any) -> bool:
    """Say whether the step was left out for a loss that was scaled too high, as in float16.

    The scale begins high and is lowered each time; below 1 the gradient itself is at fault.
    """
    accelerator = trainer.accelerator
    if accelerator.scaler is None:  # DeepSpeed has its own, which gives up by itself
        return bool(accelerator.optimizer_step_was_skipped)
    # Accelerate does not see it where the optimizer is a fused one.
    scale: float = accelerator.scaler.get_scale()
    return 1 <= scale < trainer.scale_of_step


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
