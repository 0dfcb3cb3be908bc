"""GPTQ: round weights one input after the other, and let the rest make up for each error.

    q_i = round(w_i),  e = (w_i - q_i) / U_ii,  w_j -= e U_ij  for j > i

with U the upper Cholesky factor of the inverse of H = 2 X X^T + damping, X the inputs that the
layer sees on the calibration rows. Layers are taken block by block, each on inputs that already
went through the quantized blocks below it.
Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1. The format is that of AutoGPTQ and
gptqmodel (`checkpoint_format = "gptq"`): see `pack`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COLUMNS = 128  # inputs whose errors are passed on to the rest in one product
PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Grid:
    """The values that a weight may take: scale * (q - zero), q of so many bits."""

    bits: int
    group_size: int
    """Inputs that share a scale; all of them with -1."""
    act_order: bool
    """Take inputs that are used most first."""
    damping: float
    """What is added to the diagonal of H, as a share of its mean."""

    @property
    def zero(self) -> int:
        """The number that stands for 0; the grid is symmetric around it."""
        return int(2 ** (self.bits - 1))


@dataclass(frozen=True)
class Rounded:
    """A quantized weight.

    Shapes: numbers (out, in), scales (out, groups), groups (in,).
    """

    numbers: Any
    scales: Any
    groups: Any

    def value(self, zero: int) -> Any:
        """Return the weight that these stand for, in float32."""
        return (self.numbers - zero).float() * self.scales.float()[:, self.groups.long()]


def round_weight(weight: Any, hessian: Any, grid: Grid) -> Rounded:
    """Return the numbers of a weight by GPTQ.

    Shapes: `weight` (out, in); `hessian` (in, in).
    """
    import torch

    w, h = weight.float().clone(), hessian.float().clone()
    inputs = w.shape[1]
    unused = h.diagonal() == 0
    h[unused, unused] = 1.0
    w[:, unused] = 0.0
    order = torch.arange(inputs)
    if grid.act_order:
        order = torch.argsort(h.diagonal(), descending=True, stable=True)
        w, h = w[:, order], h[order][:, order]
    h.diagonal().add_(grid.damping * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True)
    size = inputs if grid.group_size == -1 else grid.group_size
    numbers = torch.zeros(w.shape, dtype=torch.int32)
    scales = torch.zeros((w.shape[0], inputs // size), dtype=torch.float16)
    top = 2**grid.bits - 1
    step = size if grid.group_size != -1 else _COLUMNS  # one scale for all of a stretch
    for first in range(0, inputs, step):
        last = min(first + step, inputs)
        if first % size == 0:
            scales[:, first // size] = _scale(w[:, first : first + size], top)
        scale = scales[:, first // size].float()
        errors = torch.zeros((w.shape[0], last - first))
        for i in range(first, last):
            numbers[:, i] = torch.clamp(torch.round(w[:, i] / scale) + grid.zero, 0, top).int()
            value = (numbers[:, i] - grid.zero) * scale
            error = (w[:, i] - value) / upper[i, i]
            w[:, i:last] -= error.unsqueeze(1) * upper[i, i:last]
            errors[:, i - first] = error
        w[:, last:] -= errors @ upper[first:last, last:]
    back = torch.argsort(order)
    return Rounded(numbers[:, back], scales, (torch.arange(inputs) // size)[back].int())


def _scale(weight: Any, top: int) -> Any:
    """Return the step between values such that the largest is on the grid; 1 for zeros."""
    import torch

    largest = weight.abs().amax(1)
    step = (2 * largest / top).to(torch.float16)
    return torch.where(step > 0, step, torch.ones_like(step))


def pack(name: str, rounded: Rounded, grid: Grid) -> dict[str, Any]:
    """Return the tensors that stand for the weight `name`.

    Shapes: with p = 32 / bits numbers in an int32, the first in its lowest bits: qweight
        (in / p, out), qzeros (groups, out / p), scales (groups, out), g_idx (in,). What is stored
        of a zero is one less.
    """
    import torch

    module = name.removesuffix(".weight")
    zeros = torch.full(rounded.scales.T.shape, grid.zero - 1, dtype=torch.int32)
    return {
        f"{module}.qweight": _packed(rounded.numbers.T.contiguous(), grid.bits),
        f"{module}.qzeros": _packed(zeros.T.contiguous(), grid.bits).T.contiguous(),
        f"{module}.scales": rounded.scales.T.contiguous(),
        f"{module}.g_idx": rounded.groups,
    }


def _packed(numbers: Any, bits: int) -> Any:
    """Pack the rows of (n, columns) into (n / p, columns)."""
    import torch

    count = 32 // bits
    lanes = numbers.long().reshape(-1, count, numbers.shape[1])
    shifts = (torch.arange(count) * bits).view(1, count, 1)
    whole = (lanes << shifts).sum(1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def _unpacked(packed: Any, bits: int) -> Any:
    import torch

    count = 32 // bits
    shifts = (torch.arange(count) * bits).view(1, count, 1)
    lanes = (packed.long().unsqueeze(1) >> shifts) & (2**bits - 1)
    return lanes.reshape(-1, packed.shape[1])


def unpack(parts: Mapping[str, Any], bits: int) -> Any:
    """Return the weight (out, in) in float32 that packed tensors stand for."""
    numbers = _unpacked(parts["qweight"], bits)
    zeros = _unpacked(parts["qzeros"].T.contiguous(), bits).T + 1
    groups = parts["g_idx"].long()
    return ((numbers - zeros[groups]).float() * parts["scales"].float()[groups]).T


class _EnoughSeen(Exception):
    """Ends a forward pass behind the block that is looked at."""


def quantize_blocks(
    network: Any, names: Sequence[str], rows: Sequence[Sequence[int]], grid: Grid
) -> Iterator[tuple[str, Any, Rounded]]:
    """Yield each weight's name, its value before, and its numbers; `network` gets the rounded.

    `names` are weights of linear layers within the network's blocks; `rows` are ids.
    """
    modules = dict(network.named_modules())
    for block, layers in _by_block(names).items():
        hessians = _hessians(network, modules[block], {n: modules[n] for n in layers}, rows)
        for layer in layers:
            weight = modules[layer].weight.data
            rounded = round_weight(weight, hessians[layer], grid)
            yield f"{layer}.weight", weight.clone(), rounded
            weight.copy_(rounded.value(grid.zero))


def _by_block(names: Sequence[str]) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in names:
        parts = name.removesuffix(".weight").split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        blocks.setdefault(".".join(parts[: number + 1]), []).append(".".join(parts))
    return blocks


def _hessians(
    network: Any, block: Any, layers: Mapping[str, Any], rows: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return 2 X X^T for each layer of a block, X the inputs of all rows."""
    import torch

    found = {n: torch.zeros((m.in_features, m.in_features)) for n, m in layers.items()}

    def seen_by(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).float()
            found[name].addmm_(x.T, x, alpha=2.0)

        return hook

    def stop(*_: Any) -> None:
        raise _EnoughSeen

    hooks = [m.register_forward_pre_hook(seen_by(n)) for n, m in layers.items()]
    hooks.append(block.register_forward_hook(stop))
    try:
        with torch.no_grad():
            for ids in rows:
                try:
                    network(input_ids=torch.tensor([list(ids)]), use_cache=False)
                except _EnoughSeen:
                    continue
    finally:
        for hook in hooks:
            hook.remove()
    return found
