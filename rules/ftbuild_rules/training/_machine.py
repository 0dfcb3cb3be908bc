"""Whether this machine can do what the attributes ask for; asked before a model is loaded."""

from importlib.util import find_spec
from typing import Protocol

from ftbuild.api import RuleError


class Asked(Protocol):
    """The attributes that need more than a CPU."""

    @property
    def attention(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def require_machine(params: Asked) -> None:
    """Refuse what this machine or its libraries have not; there is no other way to fall back to.

    Raises:
        RuleError: E0951: a library is missing; E0954: there is no GPU, or it is too old.
    """
    if params.attention == "flash_attention_2":
        _require_library("flash_attn", "FlashAttention", "flash-attn", 'set `attention = "sdpa"`')
        require_gpu('`attention = "flash_attention_2"`', 'set `attention = "sdpa"`')
    if getattr(params, "liger", False):
        _require_library("liger_kernel", "Liger", "liger", "remove `liger`")
        require_gpu("`liger = true`", "remove it")
    optimizer = getattr(params, "optimizer", "")
    if optimizer.startswith("paged_"):
        same = optimizer.removeprefix("paged_").replace("adamw_32bit", "adamw_torch")
        require_gpu(f'`optimizer = "{optimizer}"`', f'set `optimizer = "{same}"`')
    if params.dtype == "float16":
        require_gpu('`dtype = "float16"`', 'set `dtype = "float32"`, or "bfloat16"')
    if params.dtype == "bfloat16":
        _require_bfloat16()


def _require_library(module: str, name: str, extra: str, instead: str) -> None:
    if find_spec(module) is None:
        raise RuleError(
            f"{name} is not installed",
            code="E0951",
            fix=f'pip install "ftbuild[{extra}]" where there is a GPU; or {instead}',
        )


def require_gpu(what: str, instead: str) -> None:
    """Refuse what works on a GPU alone where there is none.

    Raises:
        RuleError: E0954.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuleError(
            f"{what} needs a GPU, and this action has none",
            code="E0954",
            fix=f"{instead}; where the machine has one, `resources = {{ gpus = 1 }}` gives it",
        )


def _require_bfloat16() -> None:
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise RuleError(
            f"{torch.cuda.get_device_name()} has no bfloat16",
            code="E0954",
            fix='set `dtype = "float16"`, or "float32"',
        )
