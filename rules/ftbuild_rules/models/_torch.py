"""Between the bytes of a safetensors file and torch tensors."""

from typing import Any

from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec

TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
SAFETENSORS_NAMES = {name: key for key, name in TORCH_NAMES.items()}


def load_tensor(stored: StoredTensor, memory: Any = None) -> Any:
    """Return a stored tensor as a torch tensor of its own type, on the CPU.

    `memory`, where it is given, is where it lies then: bytes, at least as many.
    """
    if memory is None:
        return load_rows(stored, (0, stored.spec.shape[0] if stored.spec.shape else 1))
    import torch

    spec = stored.spec
    value = memory[: spec.size_bytes].view(getattr(torch, TORCH_NAMES[spec.dtype]))
    if spec.size_bytes:
        stored.read_into(tensor_bytes(value))
    return value.view(spec.shape)


def load_rows(stored: StoredTensor, rows: tuple[int, int]) -> Any:
    """Return the rows `rows[0]` to `rows[1]` of a stored tensor, reading no others."""
    import torch

    spec, (first, last) = stored.spec, rows
    shape = (last - first, *spec.shape[1:]) if spec.shape else ()
    value = torch.empty(shape, dtype=getattr(torch, TORCH_NAMES[spec.dtype]))
    if value.numel():
        row_bytes = spec.size_bytes // max(1, spec.shape[0] if spec.shape else 1)
        stored.read_into(tensor_bytes(value), offset=first * row_bytes)
    return value


def spec_of(name: str, tensor: Any) -> TensorSpec:
    """Return what `tensor` is, as safetensors says it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, SAFETENSORS_NAMES[dtype], tuple(tensor.shape))


def tensor_bytes(tensor: Any) -> Any:
    """Return the values of a tensor as bytes, without a copy where it lies in one piece."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
