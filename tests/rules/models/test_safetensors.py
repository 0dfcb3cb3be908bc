import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import RuleError
from ftbuild_rules.models._files import files_of, weight_files
from ftbuild_rules.models._safetensors import TensorSpec, read_tensors, write_tensors
from ftbuild_rules.models._torch import load_tensor, spec_of, tensor_bytes


def save(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "uint8", "bool"])
def test_what_we_write_the_library_reads_and_the_other_way_round(
    tmp_path: Path, dtype: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    values = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    tensors = {"b.weight": values, "a.scalar": values[0, 1].clone(), "empty": values[:0].clone()}
    specs = [spec_of(name, tensor) for name, tensor in tensors.items()]
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, specs, ([tensor_bytes(tensor)] for tensor in tensors.values()))
    save_file(tensors, theirs)
    loaded = load_file(ours)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    read = {stored.spec.name: load_tensor(stored) for stored in read_tensors(theirs)}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_header_is_compact_padded_and_in_the_given_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    specs = [TensorSpec("b", "F16", (2,)), TensorSpec("a", "U8", (1,))]
    write_tensors(path, specs, [[b"\x00\x3c", b"\x00\x40"], [b"\x07"]])
    header = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}'
    )
    padded = header + b" " * (-len(header) % 8)
    assert path.read_bytes() == struct.pack("<Q", len(padded)) + padded + b"\x00\x3c\x00\x40\x07"


ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ({"a": ENTRY}, b"\x00", "it has 69 bytes where its header promises 70"),
        ({"a": ENTRY}, b"\x00" * 3, "it has 71 bytes where its header promises 70"),
        (
            {"a": {**ENTRY, "shape": [3]}},
            b"\x00\x00",
            "the bytes of `a` do not fit its shape",
        ),
        (
            {"a": ENTRY, "b": {**ENTRY, "data_offsets": [1, 3]}},
            b"\x00" * 3,
            "the bytes of `b` do not fit its shape",
        ),
        ({"a": {"dtype": "U8"}}, b"", "its header cannot be read ('data_offsets')"),
        ({"a": {**ENTRY, "dtype": "Q9"}}, b"\x00\x00", "its header cannot be read ('Q9')"),
    ],
)
def test_damaged_file_is_refused(
    tmp_path: Path, header: dict[str, Any], data: bytes, why: str
) -> None:
    path = save(tmp_path / "x.safetensors", header, data)
    with pytest.raises(RuleError) as caught:
        read_tensors(path)
    assert caught.value.render() == (
        "error[E0924]: `x.safetensors` is damaged\n"
        "  --> x.safetensors\n"
        f"  why: {why}\n"
        "  fix: fetch or save the file again"
    )


def test_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(ENTRY)
    text = f'{{"a":{entry},"a":{entry}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\x00\x00")
    with pytest.raises(RuleError, match=r"`x\.safetensors` is damaged") as caught:
        read_tensors(path)
    assert caught.value.problems[0].why == "its header cannot be read (it lists `a` twice)"


def test_truncated_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(RuleError) as caught:
        read_tensors(path)
    assert caught.value.problems[0].why == "its header is longer than the file"


def test_index_that_names_an_absent_file_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RuleError) as caught:
        weight_files(files_of(tmp_path))
    assert caught.value.problems[0].why == (
        "it names `model-00001-of-00001.safetensors`, which is not among the files"
    )
