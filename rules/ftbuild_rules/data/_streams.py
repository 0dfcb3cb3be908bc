"""Files as streams of bytes: decompressed by their ending, seekable where a reader needs that."""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ftbuild.api import Place, RuleError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_BUFFER_BYTES = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file as it is."""
    with open(path, "rb", buffering=_BUFFER_BYTES) as binary:
        yield cast(io.BufferedReader, binary)


def decompressed(binary: BinaryIO, name: str) -> io.BufferedReader:
    """Return the content of a file of that name."""
    lower = name.lower()
    if lower.endswith(".tgz"):
        return _buffered(_open_as(".gz", binary))
    for ending in COMPRESSED:
        if lower.endswith(ending):
            return _buffered(_open_as(ending, binary))
    return binary if isinstance(binary, io.BufferedReader) else _buffered(binary)


def _buffered(raw: Any) -> io.BufferedReader:
    return io.BufferedReader(raw, _BUFFER_BYTES)


def _open_as(ending: str, binary: BinaryIO) -> Any:
    if ending == ".gz":
        return gzip.GzipFile(fileobj=binary)
    if ending == ".bz2":
        return bz2.BZ2File(binary)
    if ending == ".xz":
        return lzma.LZMAFile(binary)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(binary, "r"), "zstd")


@contextmanager
def seekable(binary: BinaryIO) -> Iterator[BinaryIO]:
    """Give a stream that can be read from any place: a copy on disk, unless it is a file itself."""
    if isinstance(getattr(binary, "raw", None), io.FileIO):
        yield binary
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(binary, copy, _BUFFER_BYTES)
        copy.seek(0)
        yield cast(BinaryIO, copy)


@contextmanager
def decompression_errors(name: str) -> Iterator[None]:
    """Tell of a damaged file by its name.

    Raises:
        RuleError: the compressed bytes are not whole, or not of the type their ending says.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RuleError(
            "the file cannot be decompressed",
            code="E0841",
            where=Place(name),
            why=str(error),
            fix="was it copied whole? get it again, or rename it if it is not compressed",
        ) from None
