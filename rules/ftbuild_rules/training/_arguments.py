"""What trainers of TRL and Transformers are given: the attributes under their names."""

from typing import Any

from ftbuild_rules.training._checkpoints import Checkpoints
from ftbuild_rules.training._lora import lora_config
from ftbuild_rules.training._optimizer import optimizer_arguments
from ftbuild_rules.training._run import Run
from ftbuild_rules.training._sharding import strategy_arguments


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
        **optimizer_arguments(params.optimizer, params.optimizer_settings),
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
