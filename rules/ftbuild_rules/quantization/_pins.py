"""The library of quantized weights, in the keys of those who compute with such."""

from collections.abc import Callable, Mapping
from typing import Any

LIBRARY = "bitsandbytes"


def is_quantized(kinds: Mapping[str, tuple[str, ...]]) -> bool:
    """Say whether an input is a quantized model."""
    return any("quantized_model" in each for each in kinds.values())


def with_quantized(
    *always: str,
) -> Callable[[Mapping[str, tuple[str, ...]], Any], tuple[str, ...]]:
    """Return the `pins` of a rule that takes quantized models too, and `always` uses the others."""

    def pins(kinds: Mapping[str, tuple[str, ...]], _: Any) -> tuple[str, ...]:
        return (*always, *((LIBRARY,) if is_quantized(kinds) else ()))

    pins.__doc__ = f"{', '.join(always)}, and {LIBRARY} where an input is quantized"
    return pins
