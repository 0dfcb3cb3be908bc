"""LLaMA-Factory's YAML file -> targets.

What LLaMA-Factory does where a key is not given is written out wherever ftbuild's own default
differs. Source: https://github.com/hiyouga/LLaMA-Factory at ff6d4d12e, `hparams`.
"""

from pathlib import Path
from typing import Any

from ftbuild.api import Imported
from ftbuild_rules.importers._chain import MODEL, QUANTIZED, Chain
from ftbuild_rules.importers._llama_factory_rows import read_rows
from ftbuild_rules.importers._method import (
    choice,
    length,
    optimizer,
    schedule_settings,
    when_to_evaluate,
)
from ftbuild_rules.importers._reading import Reading

TITLE = "LLaMA-Factory"
_OURS = ("stage", "finetuning_type", "template", "dataset")
_STAGES = {"sft": "sft", "pt": "pretrain", "rm": "reward_model", "dpo": "dpo", "kto": "kto"}
_LOSSES = {"sigmoid": "dpo", "hinge": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "orpo"}
TEMPLATES = {
    "chatml": "chatml",
    "gemma": "gemma3",
    "gemma2": "gemma3",
    "gemma3": "gemma3",
    "llama3": "llama3",
    "mistral": "mistral-v3",
    "phi4": "phi4",
    "qwen": "qwen2.5",
    "smollm": "chatml",
}
"""Templates that write the same here, with and without a system message: both were rendered."""
_NEWLINE = ("chatml", "gemma", "gemma2", "gemma3", "qwen", "smollm")
"""Those of them that train the line feed after an answer's last token."""
_ATTENTION = {"auto": "sdpa", "sdpa": "sdpa", "disabled": "eager", "fa2": "flash_attention_2"}
_SETTINGS = (
    "do_train",
    "do_eval",
    "do_predict",
    "overwrite_output_dir",
    "plot_loss",
    "dataloader_num_workers",
    "save_only_model",
    "ddp_timeout",
)
_LOOK = "look at the tokens: `ftbuild inspect train_tokens --row 0`"


def recognises(config: dict[str, Any]) -> bool:
    """Say whether this is a configuration of LLaMA-Factory."""
    return "model_name_or_path" in config and any(name in config for name in _OURS)


def convert(config: dict[str, Any], folder: Path) -> Imported:
    """Return the targets that train what LLaMA-Factory would.

    Raises:
        ImportProblem: a key has no counterpart without which nothing can be trained.
    """
    reading = Reading(config)
    chain = Chain(folder, reading.notes)
    method = _method(reading)
    dtype = _dtype(reading)
    template = _template(reading, method)
    _model(reading, chain, dtype, template)
    is_adapter = _is_adapter(reading)
    train, evaluation = read_rows(reading, chain, method)
    how = _tokens(reading, method)
    made = chain.tokens(train, evaluation, how)
    changes = not how.keys().isdisjoint(("default_system_message", "template_variables"))
    attributes = {
        "model": chain.trained_model,
        **_adapter(reading, chain, is_adapter=is_adapter),
        **made,
        **_training(reading, dtype, has_eval=evaluation is not None),
        **_of_the_method(reading, method),
        "other_template": True if changes else None,
    }
    trained = chain.train(method, attributes)
    reading.ignore(_SETTINGS, "there is nothing to set")
    reading.finish()
    return chain.finish(trained, merges=is_adapter and method != "reward_model")


def _method(config: Reading) -> str:
    """Return the rule that trains."""
    stage = config.text("stage", "sft")
    if stage not in _STAGES:
        raise config.problem(
            "stage",
            f"`stage: {stage}` cannot be imported",
            f"{', '.join(f'`{name}`' for name in _STAGES)} can; `ftbuild rules` lists the methods",
        )
    if stage != "dpo":
        return _STAGES[stage]
    loss = config.text("pref_loss", "sigmoid")
    if loss not in _LOSSES:
        raise config.problem(
            "pref_loss",
            f"`pref_loss: {loss}` cannot be imported",
            f"{', '.join(f'`{name}`' for name in _LOSSES)} can; `ftbuild rules dpo` lists losses",
        )
    return _LOSSES[loss]


def _dtype(config: Reading) -> str:
    """Return the type to compute in."""
    if config.take("pure_bf16"):
        config.note(
            "pure_bf16", "what is trained is kept in float32 here, and computed in bfloat16"
        )
        return "bfloat16"
    if config.take("bf16"):
        return "bfloat16"
    if config.take("fp16"):
        return "float16"
    config.note(
        "bf16",
        "neither `bf16` nor `fp16` is given: LLaMA-Factory then takes the type "
        "of the model's file; `float32` was written",
    )
    return "float32"


def _template(config: Reading, method: str) -> str | None:
    """Return the chat template that the base model gets, None for its own."""
    name = config.text("template")
    if name is None or method == "pretrain":
        return None
    if name == "smollm2":
        config.note("template", f"its system message is the model's own; {_LOOK}")
        return None
    if name not in TEMPLATES:
        config.note(
            "template",
            f"ftbuild has no template that is known to write what `{name}` does; the model's own "
            f"is used; {_LOOK}",
        )
        return None
    if name in _NEWLINE:
        config.note(
            "template",
            f"`{TEMPLATES[name]}` writes the same; LLaMA-Factory also trains the line feed after "
            "the token that ends an answer",
        )
    return TEMPLATES[name]


def _model(config: Reading, chain: Chain, dtype: str, template: str | None) -> None:
    """Add the base model, and what it is quantized to."""
    name = config.take("model_name_or_path")
    if not isinstance(name, str):
        raise config.problem("model_name_or_path", "it should be text", "name a model")
    chain.add(
        "base_model",
        MODEL,
        source=chain.model_source(name, config.take("model_revision")),
        chat_template=template,
        add_tokens=config.names("add_tokens") or None,
        add_special_tokens=config.names("add_special_tokens") or None,
    )
    bits = config.number("quantization_bit")
    if bits is None:
        return
    method = config.text("quantization_method", "bnb")
    if bits not in (4, 8) or method not in ("bnb", "bitsandbytes"):
        raise config.problem(
            "quantization_bit",
            f"{bits} bits by `{method}` cannot be imported",
            "4 and 8 bits by `bnb` can; `ftbuild rules quantize` lists the methods",
        )
    if bits == 8:
        chain.add("quantize", QUANTIZED, model=MODEL, method="int8")
        return
    chain.add(
        "quantize",
        QUANTIZED,
        model=MODEL,
        method=config.take("quantization_type", "nf4"),
        double_quantization=bool(config.take("double_quantization", True)),
        compute_dtype=dtype,
    )


def _is_adapter(config: Reading) -> bool:
    """Say whether an adapter is trained."""
    kind = config.take("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        raise config.problem(
            "finetuning_type", f"`{kind}` cannot be imported", "`lora` and `full` can"
        )
    return bool(kind == "lora")


def _adapter(config: Reading, chain: Chain, *, is_adapter: bool) -> dict[str, Any]:
    """Return `lora`, or `adapter` where one is continued."""
    starts = config.names("adapter_name_or_path")
    if not is_adapter:
        return {}
    if starts and not config.take("create_new_adapter"):
        if len(starts) > 1:
            raise config.problem(
                "adapter_name_or_path",
                "several adapters cannot be imported",
                "merge all but the last into the model first",
            )
        config.ignore(
            [name for name in config.values if name.startswith(("lora_", "pissa_"))],
            "the adapter that is continued says it",
        )
        source = chain.model_source(starts[0])
        return {"adapter": chain.add("adapter", "start", source=source, model=MODEL)}
    if starts:
        raise config.problem(
            "create_new_adapter",
            "a new adapter on top of others cannot be imported",
            "merge those into the model first",
        )
    return {"lora": _lora(config)}


def _lora(config: Reading) -> dict[str, Any]:
    rank = int(config.number("lora_rank", 8))
    names = config.names("lora_target") or ["all"]
    lora = {
        "r": rank,
        "alpha": config.number("lora_alpha", 2 * rank),
        "dropout": config.number("lora_dropout") or None,
        "target_modules": "all-linear" if names == ["all"] else names,
        "modules_to_save": config.names("additional_target") or None,
        "rslora": config.take("use_rslora") or None,
        "dora": config.take("use_dora") or None,
    }
    if config.take("pissa_init"):
        lora["init"] = "pissa"
        iterations = config.number("pissa_iter", 16)
        lora["pissa_iterations"] = iterations if iterations != -1 else None
    return {key: value for key, value in lora.items() if value is not None}


def _tokens(config: Reading, method: str) -> dict[str, Any]:
    """Return the attributes of the tokens."""
    how: dict[str, Any] = {"max_length": int(config.number("cutoff_len", 2048))}
    packs, neatly = config.take("packing"), config.take("neat_packing")
    if method == "pretrain":
        if packs is False:
            how["overflow"] = "truncate"
        else:
            how["packing"] = "wrapped"
            config.note(
                "packing",
                "texts are cut where a row is full, as there; the last one, which is not full, is "
                "kept here",
            )
        return how
    how["overflow"] = "truncate"
    config.note(
        "cutoff_len",
        "longer rows are cut at their end; LLaMA-Factory shortens prompt and answer of each turn "
        "in proportion",
    )
    if method == "sft" and (packs or neatly):
        how["packing"] = "bfd"
        key = "neat_packing" if neatly else "packing"
        config.note(key, "other rows share a sequence here, and none sees another")
    if method == "sft":
        how["train_on_inputs"] = True if config.take("train_on_prompt") else None
        how["last_turn_only"] = True if config.take("mask_history") else None
    how["default_system_message"] = config.take("default_system")
    if config.take("enable_thinking") is not None:
        how["template_variables"] = {"enable_thinking": bool(config.take("enable_thinking"))}
        config.note("enable_thinking", f"it is a variable of the chat template; {_LOOK}")
    return {key: value for key, value in how.items() if value is not None}


def _training(config: Reading, dtype: str, *, has_eval: bool) -> dict[str, Any]:
    """Return the attributes that every method has; the defaults are those of Transformers."""
    steps, ratio = config.number("warmup_steps", 0), config.number("warmup_ratio", 0)
    if steps and ratio:
        config.note("warmup_ratio", "`warmup_steps` is set, and beats it")
    found = {
        **length(config, "num_train_epochs", 3.0),
        "batch_size": int(config.number("per_device_train_batch_size", 8)),
        "gradient_accumulation": int(config.number("gradient_accumulation_steps", 1)),
        "learning_rate": config.number("learning_rate", 5e-5),
        "schedule": choice(config, "lr_scheduler_type", "schedule", "linear"),
        "schedule_settings": schedule_settings(config),
        "warmup": (steps or ratio) or None,
        "weight_decay": config.number("weight_decay") or None,
        "max_grad_norm": config.number("max_grad_norm"),
        **optimizer(config, "optim"),
        "dtype": dtype,
        "attention": _attention(config, dtype),
        "liger": True if config.take("enable_liger_kernel") else None,
        "activation_checkpointing": not config.take("disable_gradient_checkpointing", False),
        "neftune_noise_alpha": config.number("neftune_noise_alpha"),
        "seed": config.number("seed"),
        **when_to_evaluate(config, has_eval=has_eval),
    }
    patience = config.number("early_stopping_steps")
    if patience is not None and has_eval:
        found["early_stopping"] = patience
    return found


def _attention(config: Reading, dtype: str) -> str | None:
    given = config.text("flash_attn")
    if given is None:
        return None
    wanted = _ATTENTION.get(given)
    if wanted is None or (wanted == "flash_attention_2" and dtype == "float32"):
        config.note("flash_attn", f"`{given}` cannot be had here; `sdpa` was written")
        return "sdpa"
    if wanted == "flash_attention_2":
        text = "needs a GPU and the extra `flash-attn`; without it remove `attention`"
        config.note("flash_attn", text)
    return wanted


def _of_the_method(config: Reading, method: str) -> dict[str, Any]:
    """Return what a method has of its own."""
    if method not in ("dpo", "ipo", "kto", "orpo"):
        return {}
    found: dict[str, Any] = {"beta": config.number("pref_beta", 0.1)}
    loss = config.text("pref_loss", "sigmoid")
    if method == "orpo":
        found["loss"] = loss
        if loss == "simpo":
            found["gamma"] = config.number("simpo_gamma", 0.5)
    if method == "kto":
        found["desirable_weight"] = float(config.number("kto_chosen_weight", 1.0))
        found["undesirable_weight"] = float(config.number("kto_rejected_weight", 1.0))
    if method == "dpo":
        extra = config.number("pref_ftx", 0)
        found["loss"] = [loss, "sft"] if extra else loss
        found["loss_weights"] = [1.0, float(extra)] if extra else None
        found["ld_alpha"] = config.number("ld_alpha")
        if extra:
            text = "the loss `sft` is over all tokens of a batch here, there by row"
            config.note("pref_ftx", text)
    return found
