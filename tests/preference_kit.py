"""What the tests of the preference methods share: log-probabilities row by row, and TRL's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftbuild.api import Artifact
from tiny_models import preference_rows

LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


def load(model: Artifact, adapter: Artifact | None = None) -> Any:
    """Return the network of a model, with an adapter or without, in evaluation mode."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.path)
    return (network if adapter is None else PeftModel.from_pretrained(network, adapter.path)).eval()


def token_logps(network: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Return log p of each token of a completion, in nats, without padding or batches."""
    import torch

    ids = [*prompt, *completion]
    with torch.no_grad():
        log_probs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(log_probs[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]


def plain_losses(trainer: Any) -> list[float]:
    """Train and return the loss of each step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plain_settings(directory: Path, **settings: Any) -> dict[str, Any]:
    """Return the arguments of a plain TRL script that runs on a CPU and keeps nothing."""
    return {
        "output_dir": str(directory / "trl"),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 5,
        "learning_rate": 1e-2,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }


def plain_lora(task_type: str = "CAUSAL_LM", **settings: Any) -> Any:
    """Return PEFT's own configuration of `LORA`."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=task_type,
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules="all-linear",
        **settings,
    )


def plain_dpo(model: Artifact, directory: Path, *, lora: bool, **settings: Any) -> list[float]:
    """Return the losses of TRL's `DPOTrainer` on `preference_rows`."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    class Pretokenized(DPOTrainer):  # type: ignore[misc]  # untyped library
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    set_seed(42)
    return plain_losses(
        Pretokenized(
            str(model.path),
            args=DPOConfig(**plain_settings(directory, **settings)),
            train_dataset=Dataset.from_list(preference_rows()),
            peft_config=plain_lora() if lora else None,
        )
    )
