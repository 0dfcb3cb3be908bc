"""The settings of each optimizer, and how Transformers is given them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ftbuild.api import AttributeProblem

_ADAM = ("beta1", "beta2", "eps")
SETTINGS: dict[str, tuple[str, ...]] = {
    "adamw_torch": _ADAM,
    "adamw_torch_fused": _ADAM,
    "adamw_8bit": _ADAM,
    "paged_adamw_8bit": _ADAM,
    "paged_adamw_32bit": _ADAM,
    "ademamix": (*_ADAM, "beta3", "alpha", "t_alpha", "t_beta3"),
    "lion_32bit": ("beta1", "beta2"),
    "lion_8bit": ("beta1", "beta2"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps"),
    "sgd": ("momentum", "dampening"),
}
"""The settings of each optimizer that has some."""
_FIRST = {"beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon"}
"""What Transformers calls those that it has a setting of its own for."""


def optimizer_arguments(optimizer: str, settings: Mapping[str, float]) -> dict[str, Any]:
    """Return the settings under the names of Transformers' `TrainingArguments`."""
    own = {theirs: settings[name] for name, theirs in _FIRST.items() if name in settings}
    rest = ",".join(f"{name}={value!r}" for name, value in sorted(settings.items()))
    return {"optim": optimizer, **own, "optim_args": rest or None}


def check_optimizer(optimizer: str, settings: Mapping[str, float]) -> None:
    """Hold that an optimizer is given settings that it has, within their bounds.

    Raises:
        AttributeProblem: it is not.
    """
    known = SETTINGS.get(optimizer, ())
    for name, value in settings.items():
        require_known("optimizer", optimizer, name, known)
        if name.startswith("t_"):
            bound, is_within = "a whole number, at least 1", isinstance(value, int) and value >= 1
        elif name.startswith("beta") or name in ("momentum", "dampening"):
            bound, is_within = "at least 0 and less than 1", 0 <= value < 1
        else:
            bound, is_within = "at least 0", value >= 0
        if not is_within:
            raise AttributeProblem(
                "optimizer_settings", f"`{name}` should be {bound}; found {value}"
            )


def require_known(what: str, chosen: str, name: str, known: Sequence[str]) -> None:
    """Hold that the chosen optimizer or schedule has a setting of that name.

    Raises:
        AttributeProblem: it has not.
    """
    if name not in known:
        has = f"it has {', '.join(f'`{each}`' for each in known)}" if known else "it has none"
        raise AttributeProblem(f"{what}_settings", f"the {what} `{chosen}` has no `{name}`", has)
