"""TRL's `GRPOTrainer` on prompts that are tokenized already, resumable at any step."""

from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.training import _report, _run

_NOT_FINITE = "probability tensor"
"""How torch begins to say that it cannot draw from NaN or infinite values."""


def trainer_class(run: _run.Run) -> type:
    """Return the trainer of a run, whose examples are {"prompt": ids, "metadata", "row"}."""
    import torch
    from trl import GRPOTrainer

    sampler_class = _sampler_class()

    class Tokenized(GRPOTrainer):
        rows_drawn: list[int]

        def _tokenize_prompts(self, prompts: list[list[int]]) -> Any:
            return prompts, None, {}

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return sampler_class(
                data_source=self.train_dataset,
                mini_repeat_count=self.num_generations,
                batch_size=self.args.generation_batch_size // self.num_generations,
                repeat_count=self.num_iterations * self.args.steps_per_generation,
                shuffle=True,
                seed=self.args.seed,
            )

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
            self.rows_drawn = [example["row"] for example in inputs]
            return super()._generate_and_score_completions(inputs)

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super()._generate_single_turn(*args, **kwargs)
            except RuntimeError as error:
                raise _drawing_failed(run, self, error) from error

        def _calculate_rewards(self, *args: Any) -> Any:
            found = super()._calculate_rewards(*args)
            _require_rewards(run, found, self.rows_drawn)
            return found

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            torch.manual_seed(self.args.seed)  # the same draws each time; the caller forks
            return super().evaluate(*args, **kwargs)

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "eval_loss" in logs:
                drawn = self._metrics["eval"]["reward"]
                logs["eval_loss"] = -sum(drawn) / len(drawn)
            super().log(logs, *args, **kwargs)

    return Tokenized


def _sampler_class() -> Any:
    from trl.trainer.utils import RepeatSampler

    class EpochSampler(RepeatSampler):
        """TRL's order of prompts, which a resumed run finds again in any epoch."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            self.generator.manual_seed(self.seed + self.epoch)
            return super().__iter__()

    return EpochSampler


def _drawing_failed(run: _run.Run, trainer: Any, error: RuntimeError) -> Exception:
    if not str(error).startswith(_NOT_FINITE):
        return error
    step = trainer.state.global_step + 1
    rows = sorted(set(trainer.rows_drawn))
    return _report.bad_step(run, step, "probability of a next token is NaN or infinite", rows=rows)


def _require_rewards(run: _run.Run, rewards_NF: Any, rows: list[int]) -> None:
    """Refuse completions of which no reward has anything to say.

    Shapes: (completions, rewards).

    Raises:
        RuleError: E0914.
    """
    silent = rewards_NF.isnan().all(dim=1).nonzero().flatten().tolist()
    if not silent:
        return
    row = rows[silent[0]]
    raise RuleError(
        f"no reward has anything to say on a completion of row {row}",
        code="E0914",
        where=Place(path=run.data.label, within=f"row {row}"),
        fix="let one of the functions return a number for each completion",
    )
