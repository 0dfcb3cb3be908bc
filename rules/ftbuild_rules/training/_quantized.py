"""What is different about an adapter of a quantized model (QLoRA).

TRL rounds the weights of such an adapter to bfloat16. Here what is trained stays float32, as it
does on any other base; `dtype` is the type to compute in.
"""

from typing import Any

_KEPT = "ftbuild_kept"
"""The attribute of a PEFT model that holds the weights it continues."""


def keep_precision(policy: Any) -> None:
    """Remember the weights of an adapter that is continued on a quantized model."""
    if is_quantized(policy):
        kept = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
        setattr(policy, _KEPT, kept)


def restore_precision(policy: Any) -> None:
    """Give the trained weights of an adapter of a quantized model the type float32 again.

    A continued adapter begins as it was; a new one begins with the random values rounded.
    """
    if not is_quantized(policy):
        return
    kept = getattr(policy, _KEPT, {})
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parameter.data = kept.get(name, parameter.data).float()


def is_quantized(network: Any) -> bool:
    """Say whether bitsandbytes holds the weights."""
    return any(getattr(network, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
