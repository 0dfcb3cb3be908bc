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


def load_tensor(stored: StoredTensor) -> Any:
    """Return a stored tensor as a torch tensor of its own type, on the CPU."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[stored.spec.dtype])
    data = bytearray(stored.read())
    if not data:
        return torch.empty(stored.spec.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.spec.shape)


def spec_of(name: str, tensor: Any) -> TensorSpec:
    """Return what `tensor` is, as safetensors says it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, SAFETENSORS_NAMES[dtype], tuple(tensor.shape))


def tensor_bytes(tensor: Any) -> Any:
    """Return the values of a tensor as bytes, without a copy where it lies in one piece."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
