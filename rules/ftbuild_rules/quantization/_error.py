"""How far a quantized weight is from the original.

Differences and squares are single operations of float32; sums are in float64, so that their first
six digits are the same on every machine: the figures stand in the artifact, whose digest is the
base of adapters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CHUNK = 1 << 16  # so that all in between stays in the cache


@dataclass(frozen=True)
class LayerError:
    """The difference of two tensors of one shape."""

    squares: float
    """Sum of the squared differences."""
    norm_squares: float
    """Sum of the squares of the original."""
    largest: float

    def figures(self) -> dict[str, float]:
        """Return what a report says: both norms' ratio, and the largest difference."""
        return {
            "relative_error": _rounded(_ratio(self.squares, self.norm_squares)),
            "largest_difference": _rounded(self.largest),
        }


def measure(original: Any, quantized: Any) -> LayerError:
    """Return how far `quantized` is from `original`; both may be of any type."""
    import torch

    squares = norm_squares = largest = 0.0
    flat, other = original.reshape(-1), quantized.reshape(-1)
    for first in range(0, flat.numel(), _CHUNK):
        value = flat[first : first + _CHUNK].float()
        difference = value - other[first : first + _CHUNK].float()
        largest = max(largest, float(difference.abs().max()))
        squares += float(difference.square_().sum(dtype=torch.float64))
        norm_squares += float(value.square().sum(dtype=torch.float64))
    return LayerError(squares, norm_squares, largest)


def overall(errors: Mapping[str, LayerError]) -> float:
    """Return the relative error of all layers together."""
    squares = sum(error.squares for error in errors.values())
    return _rounded(_ratio(squares, sum(error.norm_squares for error in errors.values())))


def _ratio(squares: float, norm_squares: float) -> float:
    return float((squares / norm_squares) ** 0.5) if norm_squares else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
