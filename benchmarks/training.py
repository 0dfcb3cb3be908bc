"""Time per step of each training rule beside a plain TRL script, in turns in one process.

    python benchmarks/training.py [METHOD…]

Both train the same random model (1.7 M weights, LoRA) on the same ids with the same settings on
one CPU thread, and both log each step. They take turns, ROUNDS times, each first in every other;
a time is the median of all steps but the first two of each run, in CPU time, which other work on
the machine disturbs least. The ratio is the median of those of two steps that are the same work,
made one shortly after the other: a machine that becomes slower by and by does not enter it. Beside
it stands what half of the rounds lie between. The losses are compared too: a faster loop that
computes something else would be no gain.
"""

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "rules"), str(ROOT / "tests")]

from ftbuild.api import Artifact, Model, Tokens  # noqa: E402
from ftbuild.testing import RecordingContext, artifact, context, run_rule  # noqa: E402
from tiny_models import make_model, make_tokens  # noqa: E402

ROUNDS, STEPS, SKIPPED, BATCH, LENGTH = 8, 20, 2, 4, 64
SIZE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 512,
}
LORA = {"r": 8, "alpha": 16}
Timed = tuple[list[float], list[float]]
"""The seconds of each step, and the losses."""


def ids(random: Any, count: int) -> list[int]:
    return [random.randrange(3, 300) for _ in range(count)]


def rows_of(form: str) -> list[dict[str, Any]]:
    import random

    source = random.Random(0)
    rows = []
    for _ in range(BATCH * STEPS):
        if form == "sft":
            row = ids(source, LENGTH)
            rows.append({"input_ids": row, "labels": [-100] * 30 + row[30:]})
        else:
            sides = {f"{name}_ids": ids(source, LENGTH // 2) for name in ("chosen", "rejected")}
            rows.append({"prompt_ids": ids(source, LENGTH // 2), **sides})
    return rows


class TimedContext(RecordingContext):
    """Notes when each step was reported."""

    def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
        super().progress(step, steps, **metrics)
        self.times = [*getattr(self, "times", []), time.process_time()]


def with_ftbuild(rule: Any, inputs: dict[str, Artifact], directory: Path) -> Timed:
    folders = context(directory)
    ctx = TimedContext(folders.out, folders.scratch)
    params = {"batch_size": BATCH, "max_steps": STEPS, "learning_rate": 1e-3, "lora": LORA}
    run_rule(rule, inputs, params, directory, ctx=ctx)
    return steps_between(ctx.times), [metrics["loss"] for _, _, metrics in ctx.steps]


def steps_between(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)][SKIPPED:]


def with_trl(make: Callable[..., Any], directory: Path) -> Timed:
    import torch
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback, set_seed

    class Clock(TrainerCallback):
        times: list[float] = []  # noqa: RUF012

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                self.times.append(time.process_time())

    torch.set_num_threads(1)
    set_seed(42)
    settings = {
        "output_dir": str(directory / "trl"),
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make(settings, lora)
    clock = Clock()
    clock.times = []
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return steps_between(clock.times), losses


def pretokenized(trainer_class: type) -> type:
    """TRL's preference trainers tokenize texts; this takes ids, as everywhere in its issues."""

    class Pretokenized(trainer_class):  # type: ignore[misc]  # untyped library
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Pretokenized


def plain_sft(model: Path) -> Callable[..., Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return lambda settings, lora: SFTTrainer(
        str(model),
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(rows_of("sft")),
        peft_config=lora,
    )


def plain_dpo(model: Path, **more: Any) -> Callable[..., Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    return lambda settings, lora: pretokenized(DPOTrainer)(
        str(model),
        args=DPOConfig(**settings, **more),
        train_dataset=Dataset.from_list(rows_of("preference")),
        peft_config=lora,
    )


def plain_reward(model: Path) -> Callable[..., Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    rows = [
        {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}
        for row in rows_of("preference")
    ]
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules="all-linear",
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )
    return lambda settings, _: RewardTrainer(
        str(model),
        args=RewardConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
    )


def plain_kto(model: Path) -> Callable[..., Any]:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class Pretokenized(KTOTrainer):  # type: ignore[misc]  # untyped library
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            def turn(examples: dict[str, Any]) -> dict[str, Any]:
                own = examples["completion_ids"]
                return {**examples, "KL_completion_ids": [own[-1], *own[:-1]]}

            return dataset.map(turn, batched=True, batch_size=BATCH)

    rows = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[side],
            "label": side == "chosen_ids",
        }
        for side in ("chosen_ids", "rejected_ids")
        for row in rows_of("preference")
    ]
    return lambda settings, lora: Pretokenized(
        str(model),
        args=KTOConfig(**settings, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(rows).shuffle(seed=42),
        peft_config=lora,
    )


def plain_orpo(model: Path) -> Callable[..., Any]:
    import json

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class Pretokenized(ORPOTrainer):  # type: ignore[misc]  # untyped library
        def tokenize_row(self, feature: dict[str, str], *_: Any) -> dict[str, list[int]]:
            row = json.loads(feature["prompt"])
            prompt = row["prompt_ids"]
            found = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
            for side in ("chosen", "rejected"):
                ids = prompt + row[f"{side}_ids"]
                found[f"{side}_input_ids"] = ids
                found[f"{side}_attention_mask"] = [1] * len(ids)
                found[f"{side}_labels"] = [-100] * len(prompt) + row[f"{side}_ids"]
            return found

    rows = [
        {"prompt": json.dumps(row), "chosen": "a", "rejected": "b"} for row in rows_of("preference")
    ]
    return lambda settings, lora: Pretokenized(
        AutoModelForCausalLM.from_pretrained(model),
        args=ORPOConfig(**settings, max_length=2 * LENGTH),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=lora,
    )


def main() -> None:
    from ftbuild_rules.training.dpo import dpo
    from ftbuild_rules.training.ipo import ipo
    from ftbuild_rules.training.kto import kto
    from ftbuild_rules.training.orpo import orpo
    from ftbuild_rules.training.reward_model import reward_model
    from ftbuild_rules.training.sft import sft

    directory = Path(tempfile.mkdtemp())
    path = make_model(directory / "model", **SIZE)
    model = artifact(Model, path)
    data = {
        form: artifact(Tokens, make_tokens(directory / form, rows_of(form)))
        for form in ("sft", "preference")
    }
    methods = {
        "sft": (sft, "sft", plain_sft(path)),
        "dpo": (dpo, "preference", plain_dpo(path)),
        "ipo": (ipo, "preference", plain_dpo(path, loss_type=["ipo"])),
        "kto": (kto, "preference", plain_kto(path)),
        "orpo": (orpo, "preference", plain_orpo(path)),
        "reward_model": (reward_model, "preference", plain_reward(path)),
    }
    print(
        f"{platform.machine()}, Python {platform.python_version()}, one thread, "
        f"{ROUNDS} rounds of {STEPS} steps in turns\n\n"
        "| method | TRL, ms a step | ftbuild, ms a step | ratio | half of the rounds "
        "| largest difference of a loss |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for name in sys.argv[1:] or methods:
        rule, form, make = methods[name]

        def plain(make: Any = make) -> Timed:
            return with_trl(make, directory)

        def own(rule: Any = rule, form: str = form) -> Timed:
            return with_ftbuild(rule, {"model": model, "data": data[form]}, directory)

        compare(name, plain, own)


def compare(name: str, plain: Callable[[], Timed], own: Callable[[], Timed]) -> None:
    """Let both train in turns and print a line of the table."""
    theirs: list[list[float]] = []
    ours: list[list[float]] = []
    apart = 0.0
    for number in range(ROUNDS):
        runs = {"plain": plain, "own": own}
        order = ("plain", "own") if number % 2 == 0 else ("own", "plain")
        done = {each: runs[each]() for each in order}
        theirs.append(done["plain"][0])
        ours.append(done["own"][0])
        pairs = zip(done["plain"][1], done["own"][1], strict=True)
        apart = max(apart, *(abs(a - b) for a, b in pairs))
    rounds = [
        [b / a for a, b in zip(first, second, strict=True)]
        for first, second in zip(theirs, ours, strict=True)
    ]
    low, _, high = statistics.quantiles([statistics.median(each) for each in rounds])
    ratio = statistics.median(chain.from_iterable(rounds))
    trl, ftb = (statistics.median(chain.from_iterable(each)) * 1e3 for each in (theirs, ours))
    print(
        f"| {name} | {trl:.1f} | {ftb:.1f} | {ratio:.3f} | {low:.3f} to {high:.3f} | {apart:.1e} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
