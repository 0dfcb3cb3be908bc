"""A trainer for losses of our own: those that TRL dropped or keeps as experimental."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ftbuild_rules.training import _arguments, _loop, _run

Loss = Callable[[Any, dict[str, Any], Any], tuple[Any, dict[str, float]]]
"""(model, batch, number of labels in the whole step or None) -> the loss, and figures to show.

With a number the loss is a sum divided by it; with None a mean, and steps average it over their
micro-batches."""


def train_own(
    run: _run.Run, model: Any, loss: Loss, collator: Any, *, counts_labels: bool = False
) -> Any:
    """Train `model` by `loss` and return it; the batches are made by `collator`.

    With `counts_labels` all micro-batches of a step share one denominator: the number of labels.
    """
    from transformers import Trainer, TrainingArguments

    class Own(Trainer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.model_accepts_loss_kwargs = counts_labels
            self.loss_is_scaled_for_ga = counts_labels
            self._loss_shifts_labels = False
            self.can_return_loss = True
            self.label_names: list[str] = []
            self.figures: dict[str, list[float]] = defaultdict(list)

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            found, figures = loss(model, inputs, num_items_in_batch)
            for name, value in figures.items():
                self.figures[name if model.training else f"eval_{name}"].append(value)
            if num_items_in_batch is not None:
                # A sum over this process's labels by the number of all: gradients are averaged.
                found = found * self.accelerator.num_processes
            return (found, {}) if return_outputs else found

        def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            import torch

            with torch.no_grad(), self.compute_loss_context_manager():
                found = self.compute_loss(model, self._prepare_inputs(inputs))
            return found.detach(), None, None

        def log(self, logs: dict[str, float], *args: Any, **settings: Any) -> None:
            for name in sorted(self.figures):
                logs[name] = sum(self.figures[name]) / len(self.figures[name])
            self.figures.clear()
            super().log(logs, *args, **settings)

    trainer = _loop.watched(Own, run, zero_is_wrong=True)(
        model=model,
        args=TrainingArguments(**_arguments.trainer_arguments(run)),
        data_collator=collator,
        **_arguments.trainer_inputs(run),
    )
    _loop.train(run, trainer)
    return trainer.model


def padded(rows: list[list[int]], value: int) -> Any:
    """Return rows of numbers as one tensor, padded at their ends.

    Shapes: (len(rows), length of the longest).
    """
    import torch

    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def pad_id(run: _run.Run) -> int:
    """Return the id that rows are padded with; no loss and no attention sees it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.inputs.model.path, local_files_only=True)
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return int(found)


def next_token_logps(logits: Any, ids: Any) -> Any:
    """Return log p of each token but the first, given all before it, in nats."""
    import torch

    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
    )
    return -losses
