"""The attributes of training that both tools hand on to Transformers, read alike."""

from typing import Any, get_args

from ftbuild_rules.importers._reading import Reading
from ftbuild_rules.training._settings import TrainingParams

_SETTINGS = {
    name: get_args(TrainingParams.model_fields[name].annotation)
    for name in ("schedule", "optimizer", "attention")
}
_SAME = {
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_hf": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit",
    "lion_32bit": "lion_32bit",
    "cosine_with_min_lr": "cosine_with_min_lr",
}
"""Other names that Transformers has for one thing."""


def choice(config: Reading, key: str, attribute: str, default: str) -> str:
    """Return the value of `attribute`; one that there is not here is a note, and the default."""
    given = str(config.take(key, default))
    value = _SAME.get(given, given)
    if value in _SETTINGS[attribute]:
        return value
    config.note(key, f"there is no `{attribute}` `{given}`; `{default}` was written")
    return default


def optimizer(config: Reading, key: str) -> dict[str, Any]:
    """Return the optimizer, and what AdamW has of its own."""
    name = choice(config, key, "optimizer", "adamw_torch_fused")
    found: dict[str, Any] = {"optimizer": name}
    if "adamw" in name:
        names = (("adam_beta1", "beta1"), ("adam_beta2", "beta2"), ("adam_epsilon", "eps"))
        given = {ours: config.number(theirs) for theirs, ours in names if theirs in config}
        found["optimizer_settings"] = given or None
    return found


def length(config: Reading, key: str, default: float) -> dict[str, Any]:
    """Return `max_steps` or `epochs`."""
    epochs = config.number(key, default)
    steps = config.number("max_steps")
    if steps is not None and steps > 0:
        if key in config:
            config.note(key, "`max_steps` is set, and beats it")
        return {"max_steps": steps}
    return {"epochs": float(epochs)}


def when_to_evaluate(config: Reading, *, has_eval: bool) -> dict[str, Any]:
    """Return `evaluate_every` and `keep`; without rows to evaluate on they mean nothing."""
    if not has_eval:
        names = ("eval_steps", "eval_strategy", "evals_per_epoch", "load_best_model_at_end")
        config.ignore(names, "there is nothing to evaluate on")
        return {}
    found: dict[str, Any] = {}
    steps = config.number("eval_steps")
    strategy = config.take("eval_strategy", "steps" if steps else "epoch")
    if strategy == "steps" and isinstance(steps, int) and steps >= 1:
        found["evaluate_every"] = steps
    elif steps is not None:
        config.note("eval_steps", "here it is done at the end of each epoch")
    if strategy == "no":
        config.note("eval_strategy", "the loss is measured after each epoch nevertheless")
    if config.take("load_best_model_at_end"):
        found["keep"] = "best"
    return found


def schedule_settings(config: Reading) -> dict[str, Any] | None:
    """Return the settings of the schedule, which have the names of Transformers."""
    value = config.take("lr_scheduler_kwargs")
    return value if isinstance(value, dict) and value else None
