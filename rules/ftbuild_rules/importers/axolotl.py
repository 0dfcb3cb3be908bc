"""Axolotl's YAML file -> targets.

What Axolotl does where a key is not given is written out wherever ftbuild's own default differs.
Source: https://github.com/axolotl-ai-cloud/axolotl at 067b021c8, `utils/schemas` and
`core/builders`.
"""

from pathlib import Path
from typing import Any

from ftbuild.api import Imported
from ftbuild_rules.importers._axolotl_rows import Rows, read_rows
from ftbuild_rules.importers._chain import MODEL, QUANTIZED, Chain
from ftbuild_rules.importers._method import (
    choice,
    length,
    optimizer,
    schedule_settings,
    when_to_evaluate,
)
from ftbuild_rules.importers._reading import Reading

TITLE = "Axolotl"
_OURS = ("datasets", "pretraining_dataset", "micro_batch_size", "sequence_len", "num_epochs")
_METHODS = {"dpo": "dpo", "ipo": "ipo", "kto": "kto", "orpo": "orpo", "simpo": "orpo"}
_OVERFLOW = {"drop": "drop", "truncate": "truncate", "raise": "error"}
_INITS = ("gaussian", "orthogonal", "pissa", "olora")
_MAX_WARMUP_STEPS = 100


def recognises(config: dict[str, Any]) -> bool:
    """Say whether this is a configuration of Axolotl."""
    return "base_model" in config and any(name in config for name in _OURS)


def convert(config: dict[str, Any], folder: Path) -> Imported:
    """Return the targets that train what Axolotl would.

    Raises:
        ImportProblem: a key has no counterpart without which nothing can be trained.
    """
    reading = Reading(config)
    chain = Chain(folder, reading.notes)
    method = _method(reading)
    dtype = _dtype(reading)
    is_adapter = _model(reading, chain, dtype)
    rows = read_rows(reading, chain, method)
    chain.tables[0].attributes.update(rows.model)
    how = _tokens(reading, rows, method)
    made = chain.tokens(rows.train, rows.evaluation, how)
    attributes = {
        "model": chain.trained_model,
        **_adapter(reading, chain, is_adapter=is_adapter),
        **made,
        **_training(reading, dtype, has_eval=rows.evaluation is not None),
        **_of_the_method(reading, method),
        "other_template": True if rows.changes_template else None,
    }
    trained = chain.train(method, attributes)
    reading.finish()
    return chain.finish(trained, merges=is_adapter and method not in ("reward_model", "prm"))


def _method(config: Reading) -> str:
    """Return the rule that trains."""
    if config.take("reward_model"):
        return "reward_model"
    if config.take("process_reward_model"):
        return "prm"
    if config.take("pretraining_dataset"):
        return "pretrain"
    given = config.text("rl")
    if given is None:
        return "sft"
    if given not in _METHODS:
        raise config.problem(
            "rl",
            f"`rl: {given}` cannot be imported",
            "its rows come from a function of yours: write the targets by hand; `ftbuild rules` "
            "lists the methods, and docs/rewards.md shows `grpo`",
        )
    return _METHODS[given]


def _dtype(config: Reading) -> str:
    """Return the type to compute in; `bf16` is `auto` where it is not given."""
    bf16 = config.take("bf16", "auto")
    fp16 = config.take("fp16") or config.take("float16")
    if config.take("bfloat16") or bf16 in (True, "full"):
        return "bfloat16"
    if fp16:
        return "float16"
    if bf16 == "auto":
        text = "`auto` is bfloat16 where the GPU has it; `bfloat16` was written"
        config.note("bf16", text)
        return "bfloat16"
    return "float32"


def _model(config: Reading, chain: Chain, dtype: str) -> bool:
    """Add the base model and what it is quantized to; return whether an adapter is trained."""
    name = config.take("base_model")
    if not isinstance(name, str):
        raise config.problem("base_model", "`base_model` should be text", "name a model")
    special = config.table("special_tokens")
    chain.add(
        "base_model",
        MODEL,
        source=chain.model_source(name, config.take("revision_of_model")),
        pad_token=special.take("pad_token"),
        add_tokens=config.take("tokens"),
    )
    special.finish()
    adapter = config.text("adapter")
    if adapter not in (None, "lora", "qlora"):
        raise config.problem(
            "adapter", f"there is no adapter `{adapter}`", "`lora` and `qlora` can be imported"
        )
    _quantize(config, chain, adapter, dtype)
    if adapter is None and dtype != "float32":
        config.note(
            "bf16" if dtype == "bfloat16" else "fp16",
            "Axolotl holds weights that are all trained in this type; ftbuild keeps them in "
            "float32 and computes in it (more exact, more memory)",
        )
    return adapter is not None


def _quantize(config: Reading, chain: Chain, adapter: str | None, dtype: str) -> None:
    in_4bit, in_8bit = config.take("load_in_4bit"), config.take("load_in_8bit")
    if in_4bit and adapter == "qlora":
        more = config.table("bnb_config_kwargs")
        chain.add(
            "quantize",
            QUANTIZED,
            model=MODEL,
            method=more.take("bnb_4bit_quant_type", "nf4"),
            double_quantization=bool(more.take("bnb_4bit_use_double_quant", True)),
            compute_dtype=dtype,
        )
        more.finish()
    elif in_8bit and adapter == "lora":
        chain.add("quantize", QUANTIZED, model=MODEL, method="int8")
    elif in_4bit or in_8bit:
        name = "load_in_4bit" if in_4bit else "load_in_8bit"
        wanted = "qlora" if in_4bit else "lora"
        config.note(name, f"Axolotl quantizes with `adapter: {wanted}` alone, so it is not done")


def _adapter(config: Reading, chain: Chain, *, is_adapter: bool) -> dict[str, Any]:
    """Return `lora`, or `adapter` where one is continued."""
    start = config.take("lora_model_dir")
    if start is not None and is_adapter:
        config.ignore(
            [name for name in config.values if name.startswith(("lora_", "peft_"))],
            "the adapter that is continued says it",
        )
        source = chain.model_source(str(start))
        return {"adapter": chain.add("adapter", "start", source=source, model=MODEL)}
    return {"lora": _lora(config)} if is_adapter else {}


def _lora(config: Reading) -> dict[str, Any]:
    lora: dict[str, Any] = {}
    for key, name in (("lora_r", "r"), ("lora_alpha", "alpha")):
        lora[name] = config.number(key)
        if lora[name] is None:
            raise config.problem(key, f"`{key}` is not given", f"write `{key}: …`")
    lora["dropout"] = config.number("lora_dropout") or None
    lora["target_modules"] = _targets(config)
    lora["target_parameters"] = config.take("lora_target_parameters")
    lora["modules_to_save"] = config.take("lora_modules_to_save")
    lora["dora"] = config.take("peft_use_dora")
    lora["rslora"] = config.take("peft_use_rslora")
    lora["rank_pattern"] = config.take("lora_rank_pattern")
    lora["alpha_pattern"] = config.take("lora_alpha_pattern")
    init = config.take("peft_init_lora_weights", True)
    if init in _INITS:
        lora["init"] = init
    elif init is not True:
        config.note("peft_init_lora_weights", f"there is no `lora.init` `{init}`")
    return {key: value for key, value in lora.items() if value not in (None, False)}


def _targets(config: Reading) -> str | list[str]:
    names = config.take("lora_target_modules")
    if config.take("lora_target_linear"):
        if names:
            config.note("lora_target_modules", "`lora_target_linear` adapts all linear layers")
        return "all-linear"
    if names:
        return [names] if isinstance(names, str) and names.isidentifier() else names
    raise config.problem(
        "adapter",
        "neither `lora_target_linear` nor `lora_target_modules` is given",
        "write `lora_target_linear: true`",
    )


def _tokens(config: Reading, rows: Rows, method: str) -> dict[str, Any]:
    """Return the attributes of the tokens."""
    strategy = str(config.take("excess_length_strategy", "drop")).lower()
    overflow = "split" if rows.is_split else _OVERFLOW.get(strategy)
    if overflow is None:
        raise config.problem(
            "excess_length_strategy", f"there is no strategy `{strategy}`", "write `drop`"
        )
    how = {"max_length": int(config.number("sequence_len", 512)), "overflow": overflow}
    if config.take("sample_packing") and method in ("sft", "pretrain"):
        how["packing"] = "bfd"
        config.note(
            "sample_packing",
            "documents stay apart here too, but other rows share a sequence, so the steps differ",
        )
    if config.take("train_on_inputs") and method == "sft":
        how["train_on_inputs"] = True
    return {**how, **rows.tokens}


def _warmup(config: Reading) -> float:
    """Return the warm-up: given, or what Axolotl makes of nothing."""
    steps, ratio = config.number("warmup_steps"), config.number("warmup_ratio")
    if steps is not None:
        if ratio is not None:
            config.note("warmup_ratio", "`warmup_steps` is set, and beats it")
        if steps == 1:
            config.note("warmup_steps", "Axolotl makes two steps of one; 2 was written")
        return 2 if steps == 1 else steps
    if ratio is not None:
        return float(ratio)
    config.note(
        "warmup_steps",
        "not given: Axolotl's warm-up is 3 % of the steps, and 100 at most; `warmup = 0.03` was "
        f"written: above 3,333 steps write {_MAX_WARMUP_STEPS}",
    )
    return 0.03


def _schedule(config: Reading) -> dict[str, Any]:
    schedule = choice(config, "lr_scheduler", "schedule", "cosine")
    settings = schedule_settings(config)
    least = config.number("cosine_min_lr_ratio")
    if least is not None and schedule == "cosine":
        config.note("cosine_min_lr_ratio", "Transformers' schedule `cosine_with_min_lr` does it")
        return {"schedule": "cosine_with_min_lr", "schedule_settings": {"min_lr_rate": least}}
    return {"schedule": schedule, "schedule_settings": settings}


def _training(config: Reading, dtype: str, *, has_eval: bool) -> dict[str, Any]:
    """Return the attributes that every method has."""
    rate = config.number("learning_rate")
    if rate is None:
        raise config.problem("learning_rate", "`learning_rate` is not given", "write it")
    found = {
        **length(config, "num_epochs", 1.0),
        "batch_size": int(config.number("micro_batch_size", 1)),
        "gradient_accumulation": _accumulation(config),
        "learning_rate": rate,
        **_schedule(config),
        "warmup": _warmup(config),
        "weight_decay": config.number("weight_decay") or None,
        "max_grad_norm": config.number("max_grad_norm"),
        **optimizer(config, "optimizer"),
        "dtype": dtype,
        "attention": _attention(config, dtype),
        "activation_checkpointing": _checkpointing(config),
        "neftune_noise_alpha": config.number("neftune_noise_alpha"),
        "seed": config.number("seed"),
        **when_to_evaluate(config, has_eval=has_eval),
    }
    patience = config.number("early_stopping_patience")
    if patience is not None and has_eval:
        found["early_stopping"] = patience
    return found


def _accumulation(config: Reading) -> int:
    """Return the micro-batches of a step."""
    steps = config.number("gradient_accumulation_steps")
    whole = config.number("batch_size")
    if whole is not None:
        if steps is None:
            steps = max(1, int(whole // config.number("micro_batch_size", 1)))
        config.note("batch_size", f"Axolotl's is of a whole step; {steps} micro-batches of one GPU")
    return int(steps or 1)


def _checkpointing(config: Reading) -> bool | None:
    given = config.take("gradient_checkpointing")
    if isinstance(given, str):
        config.note("gradient_checkpointing", "activations are recomputed, none is moved away")
    return True if given else None


def _attention(config: Reading, dtype: str) -> str | None:
    wanted = None
    if "attn_implementation" in config:
        wanted = choice(config, "attn_implementation", "attention", "sdpa")
    elif config.take("flash_attention"):
        wanted = "flash_attention_2"
    elif config.take("eager_attention"):
        wanted = "eager"
    elif config.take("sdp_attention"):
        wanted = "sdpa"
    if wanted == "flash_attention_2":
        key = "flash_attention" if "flash_attention" in config else "attn_implementation"
        if dtype == "float32":
            config.note(key, "it does not compute in float32; `sdpa` was written")
            return "sdpa"
        config.note(key, "needs a GPU and the extra `flash-attn`; without it remove `attention`")
    return wanted


def _of_the_method(config: Reading, method: str) -> dict[str, Any]:
    """Return what a method has of its own."""
    if method not in ("dpo", "ipo", "kto", "orpo"):
        return {}
    found: dict[str, Any] = {}
    beta = config.number("rl_beta")
    if beta is None and method == "orpo":
        beta = config.number("orpo_alpha")
    found["beta"] = 0.1 if beta is None else beta
    if config.text("rl") == "simpo":
        found |= {
            "loss": "simpo",
            "gamma": config.number("simpo_gamma", 0.5),
            "nll_weight": config.number("cpo_alpha"),
        }
        config.note("rl", "SimPO is a loss of `orpo`; look at `gamma` and `nll_weight`")
    if method == "kto":
        found["desirable_weight"] = float(config.number("kto_desirable_weight", 1.0))
        found["undesirable_weight"] = float(config.number("kto_undesirable_weight", 1.0))
    if method == "dpo":
        found["loss"] = config.take("dpo_loss_type")
        found["loss_weights"] = config.take("dpo_loss_weights")
    return found
