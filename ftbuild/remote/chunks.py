"""Large files in content-defined chunks: where two files share bytes, they share chunks.

A boundary follows from the bytes before it (FastCDC: Xia et al., IEEE TPDS 2020, "The Design of
Fast Content-Defined Chunking"), so an edit changes the chunks that it touches and moves no other.
The library's own table and masks are used, 2 GB/s on one core. Other boundaries are no error:
what is lost with them is that chunks are found again, so a test pins them.

An average of 64 KiB serves datasets, whose edits are small; 1 MiB serves weights, where the
unit of change is a tensor, and keeps the number of requests for a model in the thousands.
"""

from collections.abc import Iterator

SMALL_BYTES = 1 << 20
"""A file smaller than this is one object."""
_LARGE_BYTES = 64 << 20
_FINE, _COARSE = 64 << 10, 1 << 20


def average(size: int) -> int:
    """Return the average size of the chunks of a file of `size` bytes; the largest is 4 times."""
    return _FINE if size < _LARGE_BYTES else _COARSE


def cut(path: str, size: int) -> Iterator[bytes]:
    """Yield the chunks of a file, in order; never more than a few of them are in memory.

    Raises:
        OSError: the file cannot be read.
    """
    from pyfastcdc import FastCDC

    with open(path, "rb", buffering=0) as file:
        for chunk in FastCDC(average(size)).cut_stream(file):
            yield bytes(chunk.data)
