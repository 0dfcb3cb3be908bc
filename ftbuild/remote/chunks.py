"""Large files in content-defined chunks: where two files share bytes, they share chunks.

A boundary follows from the bytes before it (FastCDC: Xia et al., IEEE TPDS 2020, "The Design of
Fast Content-Defined Chunking"), so an edit changes the chunks that it touches and moves no other.
The library's own table and masks are used, 2 GB/s on one core. Other boundaries are no error:
what is lost with them is that chunks are found again, so a test pins them.

An average of 64 KiB serves datasets, whose edits are small; 1 MiB serves weights, where the
unit of change is a tensor, and keeps the number of requests for a model in the thousands.

The store keeps the list of what a file was cut into, so that it is not cut, nor read, to find
out that all of it is there already.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ftbuild.digest import Digest, hash_bytes
from ftbuild.remote.result import Blob, encode_manifest

SMALL_BYTES = 1 << 20
"""A file smaller than this is one object."""
_LARGE_BYTES = 64 << 20
_FINE, _COARSE = 64 << 10, 1 << 20
_ENTRY = struct.Struct("<32sI")


class ChunkList(NamedTuple):
    """What a large file was cut into."""

    manifest: Blob
    """The message that lists them."""
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return sum(blob.size for blob in self.blobs)

    def message(self) -> bytes:
        """Return the bytes of the manifest."""
        return encode_manifest(self.blobs)

    def encode(self) -> bytes:
        """Return the form in which the store keeps it: 36 bytes for each, the manifest first."""
        return b"".join(_ENTRY.pack(bytes.fromhex(d), size) for d, size in (self[0], *self.blobs))


def listed(blobs: Sequence[Blob]) -> ChunkList:
    """Return the list of chunks."""
    message = encode_manifest(blobs)
    return ChunkList(Blob(hash_bytes(message), len(message)), tuple(blobs))


def decode(data: bytes | None, size: int) -> ChunkList | None:
    """Return the kept list of a file of `size` bytes; None if this is none."""
    if not data or len(data) % _ENTRY.size:
        return None
    manifest, *blobs = (Blob(Digest(d.hex()), size) for d, size in _ENTRY.iter_unpack(data))
    found = ChunkList(manifest, tuple(blobs))
    return found if found.size == size else None


def average(size: int) -> int:
    """Return the average size of the chunks of a file of `size` bytes; the largest is 4 times."""
    return _FINE if size < _LARGE_BYTES else _COARSE


def cut(path: str, size: int) -> Iterator[int]:
    """Yield the sizes of the chunks of a file, in order; few of them are in memory at a time.

    Raises:
        OSError: the file cannot be read.
    """
    from pyfastcdc import FastCDC

    with open(path, "rb", buffering=0) as file:
        for chunk in FastCDC(average(size)).cut_stream(file):
            yield chunk.length
