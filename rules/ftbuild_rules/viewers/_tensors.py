"""Tensors of safetensors files as figures: one at a time, with numpy alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftbuild.api import hash_file
from ftbuild.view import Span
from ftbuild_rules.models._safetensors import StoredTensor

Line = tuple[Span, ...]
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_NUMPY |= {"I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


def _numbers(block: bytes, dtype: str) -> Any:
    """Return the values of some bytes as float64."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        wide = np.frombuffer(block, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").astype(np.float64)
    return np.frombuffer(block, dtype=_NUMPY[dtype]).astype(np.float64)


def describe(tensor: StoredTensor) -> dict[str, Any]:
    """Return name, shape, type and Euclidean norm of a tensor; null where it is not finite."""
    import numpy as np

    spec = tensor.spec
    described = {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype, "norm": None}
    if spec.dtype in _NUMPY or spec.dtype == "BF16":
        squares = sum(
            float(np.square(_numbers(block, spec.dtype)).sum()) for block in tensor.blocks()
        )
        described["norm"] = squares**0.5 if np.isfinite(squares) else None
    return described


def compare(a: StoredTensor, b: StoredTensor) -> dict[str, Any] | None:
    """Return how two tensors of one name differ, None where they are equal bit for bit."""
    import numpy as np

    if (a.spec.dtype, a.spec.shape) != (b.spec.dtype, b.spec.shape):
        return {"name": a.spec.name, "a": _form(a), "b": _form(b)}
    largest, squares, is_equal = 0.0, 0.0, True
    for block_a, block_b in zip(a.blocks(), b.blocks(), strict=True):
        if block_a == block_b:
            continue
        is_equal = False
        distance = np.abs(_numbers(block_a, a.spec.dtype) - _numbers(block_b, b.spec.dtype))
        largest = max(largest, float(distance.max()))
        squares += float(np.square(distance).sum())
    if is_equal:
        return None
    finite = np.isfinite(largest) and np.isfinite(squares)
    return {
        "name": a.spec.name,
        "max_difference": largest if finite else None,
        "norm_of_difference": squares**0.5 if finite else None,
    }


def _form(tensor: StoredTensor) -> str:
    return f"{tensor.spec.dtype} {list(tensor.spec.shape)}"


def compare_all(a: Sequence[StoredTensor], b: Sequence[StoredTensor]) -> dict[str, Any]:
    """Return which tensors are in one alone, which differ and by how much, how many are equal."""
    in_a = {tensor.spec.name: tensor for tensor in a}
    in_b = {tensor.spec.name: tensor for tensor in b}
    both = [name for name in in_a if name in in_b]
    changed = [found for name in both if (found := compare(in_a[name], in_b[name])) is not None]
    changed.sort(key=lambda found: (-(found.get("max_difference") or 0.0), found["name"]))
    return {
        "only_in_a": sorted(set(in_a) - set(in_b)),
        "only_in_b": sorted(set(in_b) - set(in_a)),
        "changed": changed,
        "equal": len(both) - len(changed),
    }


def distance(found: Mapping[str, Any], others_are_equal: bool) -> float | None:
    """Return the largest difference of a comparison; None where more than numbers differs."""
    if not others_are_equal or found["only_in_a"] or found["only_in_b"]:
        return None
    figures = [changed.get("max_difference") for changed in found["changed"]]
    return None if None in figures else max(figures, default=0.0)


def are_equal_but_for(a: Path, b: Path, names: Iterable[str]) -> bool:
    """Say whether two folders hold the same files, not looking into those of `names`."""
    skipped = set(names)
    ours, theirs = (
        {p.relative_to(top).as_posix(): p for p in top.rglob("*") if p.is_file()} for top in (a, b)
    )
    return ours.keys() == theirs.keys() and all(
        hash_file(path) == hash_file(theirs[name])
        for name, path in ours.items()
        if name not in skipped
    )


def compare_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the keys whose values differ, with both values; null where a key is absent."""
    keys = sorted(set(a) | set(b))
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}


def tensor_lines(described: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield one line for each described tensor."""
    width = max((len(tensor["name"]) for tensor in described), default=0)
    for tensor in described:
        shape = "x".join(map(str, tensor["shape"])) or "scalar"
        norm = "not finite" if tensor["norm"] is None else f"{tensor['norm']:.6g}"
        yield (
            Span(f"{tensor['name']:<{width}}  ", "cyan"),
            Span(f"{tensor['dtype']:<5} {shape:<14}"),
            Span(f" norm {norm}", "dim"),
        )


def difference_lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the lines of a comparison, largest difference first."""
    for name in found["only_in_a"]:
        yield (Span(f"- {name}", "red"),)
    for name in found["only_in_b"]:
        yield (Span(f"+ {name}", "green"),)
    width = max((len(changed["name"]) for changed in found["changed"]), default=0)
    for changed in found["changed"]:
        if "a" in changed:
            text = f"{changed['a']} -> {changed['b']}"
        elif changed["max_difference"] is None:
            text = "a value is not finite"
        else:
            text = (
                f"largest difference {changed['max_difference']:.6g}, "
                f"norm {changed['norm_of_difference']:.6g}"
            )
        yield (Span(f"~ {changed['name']:<{width}}  ", "yellow"), Span(text))
    yield (Span(f"{found['equal']} equal tensors", "dim"),)


def setting_lines(found: Mapping[str, list[Any]]) -> Iterator[Line]:
    """Yield one line for each setting that differs."""
    for key, (before, after) in found.items():
        yield (Span(f"~ {key}: ", "yellow"), Span(f"{before!r} -> {after!r}"))
