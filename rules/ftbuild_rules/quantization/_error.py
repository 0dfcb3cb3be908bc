"""How far a quantized weight is from the original.

Differences and squares are single operations of float32; sums are in float64, so that their first
six digits are the same on every machine: the figures stand in the artifact, whose digest is the
base of adapters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ftbuild_rules.quantization._threads import in_threads

CHUNK = 1 << 16  # so that all in between stays in the cache


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


def measure(
    original: Any, values: Callable[[int, int], Any], *, step: int = CHUNK, threads: int = 1
) -> LayerError:
    """Return how far a weight is from `original`; both may be of any type.

    `values(first, last)` gives the flat values of a stretch of the weight, `step` long.
    """
    import torch

    flat = original.reshape(-1)

    def worker() -> Callable[[int], tuple[float, float, float]]:
        floats, others = torch.empty(step), torch.empty(step)

        def work(first: int) -> tuple[float, float, float]:
            last = min(first + step, flat.numel())
            value, difference = floats[: last - first], others[: last - first]
            value.copy_(flat[first:last])
            difference.copy_(values(first, last))
            torch.sub(value, difference, out=difference)
            least, most = (float(end) for end in torch.aminmax(difference))
            squares = float(difference.square_().sum(dtype=torch.float64))
            return squares, float(value.square_().sum(dtype=torch.float64)), max(-least, most)

        return work

    found = in_threads(worker, range(0, flat.numel(), step), threads)
    squares, norm_squares, largest = zip(*found, strict=True) if found else ((), (), (0.0,))
    return LayerError(sum(squares), sum(norm_squares), max(largest))


def stretches(weight: Any) -> Callable[[int, int], Any]:
    """Return the function that gives a stretch of the values of a tensor in memory."""
    flat = weight.reshape(-1)
    return lambda first, last: flat[first:last]


def overall(errors: Mapping[str, LayerError]) -> float:
    """Return the relative error of all layers together."""
    squares = sum(error.squares for error in errors.values())
    return _rounded(_ratio(squares, sum(error.norm_squares for error in errors.values())))


def _ratio(squares: float, norm_squares: float) -> float:
    return float((squares / norm_squares) ** 0.5) if norm_squares else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
