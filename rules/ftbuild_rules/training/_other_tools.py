"""What Axolotl, LLaMA-Factory, TRL and PEFT call the attributes of training, for error messages."""

from ftbuild_rules.models._files import OF_THE_MODEL

TRAINING_NAMES = {
    "base_model": "model",
    "model_name_or_path": "model",
    "lora_model_dir": "adapter",
    "adapter_name_or_path": "adapter",
    "dataset": "data",
    "datasets": "data",
    "tokens": "data",
    "train_dataset": "data",
    "eval_dataset": "eval_data",
    "test_datasets": "eval_data",
    "micro_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "lr_scheduler_kwargs": "schedule_settings",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "adam_beta1": "optimizer_settings.beta1",
    "adam_beta2": "optimizer_settings.beta2",
    "adam_epsilon": "optimizer_settings.eps",
    "optim_args": "optimizer_settings",
    "gradient_clipping": "max_grad_norm",
    "gradient_checkpointing": "activation_checkpointing",
    "attn_implementation": "attention",
    "use_liger_kernel": "liger",
    "enable_liger_kernel": "liger",
    "liger_kernel": "liger",
    "eval_steps": "evaluate_every",
    "early_stopping_patience": "early_stopping",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora_target_parameters": "lora.target_parameters",
    "lora_modules_to_save": "lora.modules_to_save",
    "additional_target": "lora.modules_to_save",
    "peft_use_dora": "lora.dora",
    "use_dora": "lora.dora",
    "peft_use_rslora": "lora.rslora",
    "use_rslora": "lora.rslora",
    "peft_init_lora_weights": "lora.init",
}
"""Their name -> ours."""

LORA_NAMES = {
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "init_lora_weights": "init",
    "trainable_token_indices": "trainable_tokens",
}

_BETA = {"pref_beta": "beta", "dpo_beta": "beta", "rl_beta": "beta", "kl_coef": "beta"}
_LOSS = {"pref_loss": "loss", "loss_type": "loss"}
IPO_NAMES = {**TRAINING_NAMES, **_BETA}
PREFERENCE_NAMES = {**IPO_NAMES, **_LOSS}
KTO_NAMES = {
    **PREFERENCE_NAMES,
    "kto_desirable_weight": "desirable_weight",
    "kto_chosen_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
    "kto_rejected_weight": "undesirable_weight",
}

_QUANTIZE = (
    "quantize the base model once, as a target: `[quantize.base_{0}]` with `model = …` and "
    '`method = "{0}"`; then `model = "base_{0}"` here'
)
_TOKENS = "it shapes the tokens: write `{}` in the table of the `tokens` target"
_DTYPE = 'write `dtype = "{}"`'
_ATTENTION = 'write `attention = "{}"`'
_LAUNCH = 'write `launch = {{ processes = 2, strategy = "{}" }}`'
_CHECKPOINTS = (
    "there is nothing to set: a run that is stopped goes on from its last checkpoint, and only "
    "the result is kept"
)

TRAINING_REMEDIES = {
    **OF_THE_MODEL,
    "bf16": _DTYPE.format("bfloat16"),
    "pure_bf16": _DTYPE.format("bfloat16"),
    "bfloat16": _DTYPE.format("bfloat16"),
    "fp16": _DTYPE.format("float16"),
    "float16": _DTYPE.format("float16"),
    "flash_attention": _ATTENTION.format("flash_attention_2"),
    "flash_attn": _ATTENTION.format("flash_attention_2"),
    "sdp_attention": _ATTENTION.format("sdpa"),
    "eager_attention": _ATTENTION.format("eager"),
    "load_in_4bit": _QUANTIZE.format("nf4"),
    "quantization_bit": _QUANTIZE.format("nf4"),
    "load_in_8bit": _QUANTIZE.format("int8"),
    "finetuning_type": "with a table `lora` an adapter is trained, without one all weights",
    "lora_target": 'write `lora.target_modules = "all-linear"`, or a list of names',
    "lora_target_linear": 'write `lora.target_modules = "all-linear"`, which is what it is anyway',
    "deepspeed": _LAUNCH.format("deepspeed"),
    "fsdp": _LAUNCH.format("fsdp"),
    "fsdp_config": _LAUNCH.format("fsdp"),
    "load_best_model_at_end": 'write `keep = "best"`',
    "val_set_size": "make a `split` target of the dataset, tokens of both halves, and write "
    "`eval_data = …` here",
    "sequence_len": _TOKENS.format("max_length"),
    "cutoff_len": _TOKENS.format("max_length"),
    "max_length": _TOKENS.format("max_length"),
    "max_seq_length": _TOKENS.format("max_length"),
    "model_max_length": _TOKENS.format("max_length"),
    "sample_packing": _TOKENS.format("packing"),
    "packing": _TOKENS.format("packing"),
    "chat_template": _TOKENS.format("chat_template"),
    "template": _TOKENS.format("chat_template"),
    "train_on_inputs": _TOKENS.format("train_on_inputs"),
    "output_dir": "there is nothing to set: the result of a target is at `ftbuild-out/TARGET`",
    "save_steps": _CHECKPOINTS,
    "save_strategy": _CHECKPOINTS,
    "save_total_limit": _CHECKPOINTS,
    "resume_from_checkpoint": _CHECKPOINTS,
    "logging_steps": "there is nothing to set: each step is shown, and recorded",
    "report_to": 'it is no part of the target: write `trackers = ["tensorboard"]` under [run]',
    "wandb_project": 'it is no part of the target: write `trackers = ["wandb"]` under [run], and '
    "set WANDB_PROJECT",
    "rl": "the method is the rule: `[dpo.NAME]`, `[kto.NAME]`; `ftbuild rules` lists all",
    "stage": "the method is the rule: `[sft.NAME]`, `[dpo.NAME]`; `ftbuild rules` lists all",
    "trust_remote_code": "it is the model's: `ftbuild rules base_model` shows `code`",
}
"""Their name -> what to write where there is no one attribute for it."""
