"""What Axolotl, LLaMA-Factory and TRL call the attributes of `tokens`, for error messages."""

from ftbuild_rules.models._files import OF_THE_MODEL

TOKENS_NAMES = {
    "data": "dataset",
    "datasets": "dataset",
    "base_model": "model",
    "tokenizer": "model",
    "tokenizer_config": "model",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "model_max_length": "max_length",
    "template": "chat_template",
    "chat_template_path": "chat_template_file",
    "roles_to_train": "train_on",
    "train_on_eos": "train_on_eot",
    "train_on_prompt": "train_on_inputs",
    "mask_history": "last_turn_only",
    "default_system": "default_system_message",
    "excess_length_strategy": "overflow",
    "truncation_mode": "overflow",
    "packing_strategy": "packing",
    "chat_template_kwargs": "template_variables",
}
"""Their name -> ours."""

_PACKING = 'write `packing = "bfd"`: documents stay apart, in as few rows as they fit'

TOKENS_REMEDIES = {
    **OF_THE_MODEL,
    "sample_packing": _PACKING,
    "neat_packing": _PACKING,
    "pad_to_sequence_len": "there is nothing to set: rows are padded, or packed, as they are used",
    "dataset_num_proc": "there is nothing to set: the cores that are free are used",
    "preprocessing_num_workers": "there is nothing to set: the cores that are free are used",
    "overwrite_cache": "there is nothing to set: what changed is made again",
    "dataset_prepared_path": "there is nothing to set: what changed is made again",
    "assistant_only_loss": "there is nothing to set: answers alone are trained on; `train_on` and "
    "`train_on_inputs` say otherwise",
    "completion_only_loss": "there is nothing to set: answers alone are trained on; `train_on` and "
    "`train_on_inputs` say otherwise",
    "special_tokens": "they are the model's: write `add_special_tokens` or `pad_token` in the "
    "table of the `base_model` target",
    "tokens": "they are the model's: write `add_tokens` in the table of the `base_model` target",
}
"""Their name -> what to write where there is no one attribute for it."""
