"""Messages: what we write Google's protobuf reads, and the other way round."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbuild.digest import Digest, hash_bytes
from ftbuild.remote.result import (
    BadMessage,
    Blob,
    OutputDirectory,
    OutputFile,
    Result,
    decode_manifest,
    encode_manifest,
)
from remote_kit import TYPES

sizes = st.integers(min_value=0, max_value=(1 << 63) - 1)
digests = st.binary(max_size=4).map(hash_bytes)
blobs = st.builds(Blob, digests, sizes)
paths = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
results = st.builds(
    Result,
    st.binary(min_size=1, max_size=300),
    st.lists(st.builds(OutputFile, paths, blobs, st.booleans()), max_size=4).map(tuple),
    st.lists(st.builds(OutputDirectory, paths, blobs), max_size=4).map(tuple),
)


@given(results)
def test_protobuf_reads_what_we_write(result: Result) -> None:
    data = result.encode()
    read = TYPES["ActionResult"]()
    read.ParseFromString(data)
    assert read.stdout_raw == result.record
    assert read.exit_code == 0
    files = [
        (f.path, f.digest.hash, f.digest.size_bytes, f.is_executable) for f in read.output_files
    ]
    assert files == [(f.path, *f.blob, f.is_executable) for f in result.files]
    named = [
        (d.path, d.tree_digest.hash, d.tree_digest.size_bytes) for d in read.output_directories
    ]
    assert named == [(d.path, *d.manifest) for d in result.directories]
    assert read.SerializeToString(deterministic=True) == data


@given(results)
def test_we_read_what_protobuf_writes(result: Result) -> None:
    message = TYPES["ActionResult"]()
    message.ParseFromString(result.encode())
    message.exit_code = 3  # passed over
    assert Result.decode(message.SerializeToString()) == result


@given(st.lists(blobs, max_size=20))
def test_manifest_is_a_tree_with_its_files_in_order(chunks: list[Blob]) -> None:
    data = encode_manifest(chunks)
    tree = TYPES["Tree"]()
    tree.ParseFromString(data)
    assert [(f.digest.hash, f.digest.size_bytes) for f in tree.root.files] == chunks
    names = [f.name for f in tree.root.files]
    assert names == sorted(names)
    assert decode_manifest(data) == tuple(chunks)


@settings(max_examples=500)
@given(results, st.data())
def test_damaged_message_is_refused_or_another_one(result: Result, data: st.DataObject) -> None:
    encoded = bytearray(result.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    del encoded[data.draw(st.integers(0, len(encoded))) :]
    with suppress(BadMessage):
        assert Result.decode(bytes(encoded)).record


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it holds no record"),
        (b"<html>log in</html>", "it has a field of type 4"),
        (b"\x2a\x05abc", "it is cut short"),
        (b"\x2a" + b"\xff" * 11, "a number in it has no end"),
        (b"\x10\x01", "a field has the wrong type"),
        (b"\x12\x02\x0a\x00", "a field has the wrong type"),
    ],
)
def test_no_message_is_told_why(data: bytes, why: str) -> None:
    with pytest.raises(BadMessage, match=why):
        Result.decode(data)


def test_chunks_out_of_order_are_refused() -> None:
    tree = TYPES["Tree"]()
    for name in ("00000001", "00000000"):
        tree.root.files.add(name=name).digest.hash = Digest("0" * 64)
    with pytest.raises(BadMessage, match="not in order"):
        decode_manifest(tree.SerializeToString())
