"""A record as a remote store holds it: a message `ActionResult` of Bazel's remote execution API.

The record's own bytes are its `stdout_raw`. The rest tells a server that understands the message
(bazel-remote does, and wants nothing else) which blobs belong to it: `output_files` are blobs
as they are; an entry of `output_directories` is one large file, whose message `Tree` lists the
chunks by their number. Such a server gives out no record whose blobs it has dropped.

Of protobuf two wire types are needed: varints (0) and bytes with their length (2).
Source: build/bazel/remote/execution/v2/remote_execution.proto (REAPI 2.x);
protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ftbuild.digest import Digest, is_digest

# ActionResult
_OUTPUT_FILES, _OUTPUT_DIRECTORIES, _STDOUT_RAW = 2, 3, 5
# OutputFile: path, digest, is_executable; FileNode has name and digest at the same numbers
_PATH, _DIGEST, _IS_EXECUTABLE = 1, 2, 4
_TREE_DIGEST = 3  # of OutputDirectory
_HASH, _SIZE = 1, 2  # of Digest
_ROOT = 1  # of Tree
_FILES = 1  # of Directory

_MAX_VARINT_BYTES = 10


class BadMessage(ValueError):
    """The bytes are no such message."""


class Blob(NamedTuple):
    """Bytes that a remote store holds as one object."""

    digest: Digest
    size: int


class OutputFile(NamedTuple):
    """A file that is one object."""

    path: str
    blob: Blob
    is_executable: bool = False


class OutputDirectory(NamedTuple):
    """A large file in chunks, which the blob `manifest` lists."""

    path: str
    manifest: Blob


@dataclass(frozen=True)
class Result:
    """A record, and where a remote store has the bytes of its files."""

    record: bytes
    files: tuple[OutputFile, ...] = ()
    directories: tuple[OutputDirectory, ...] = ()

    def encode(self) -> bytes:
        """Return the message."""
        parts = []
        for file in self.files:
            message = _text(_PATH, file.path) + _field(_DIGEST, _blob(file.blob))
            if file.is_executable:
                message += _number(_IS_EXECUTABLE, 1)
            parts.append(_field(_OUTPUT_FILES, message))
        for directory in self.directories:
            message = _text(_PATH, directory.path)
            parts.append(
                _field(
                    _OUTPUT_DIRECTORIES, message + _field(_TREE_DIGEST, _blob(directory.manifest))
                )
            )
        parts.append(_field(_STDOUT_RAW, self.record))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "Result":
        """Return what a message says; what it says of other things is passed over.

        Raises:
            BadMessage: it is none, or holds no record.
        """
        record = b""
        files: list[OutputFile] = []
        directories: list[OutputDirectory] = []
        for number, value in _fields(data):
            if number == _OUTPUT_FILES:
                found = dict(_fields(_bytes(value)))
                files.append(
                    OutputFile(
                        _as_text(found.get(_PATH)),
                        _as_blob(found.get(_DIGEST)),
                        bool(found.get(_IS_EXECUTABLE, 0)),
                    )
                )
            elif number == _OUTPUT_DIRECTORIES:
                found = dict(_fields(_bytes(value)))
                directories.append(
                    OutputDirectory(_as_text(found.get(_PATH)), _as_blob(found.get(_TREE_DIGEST)))
                )
            elif number == _STDOUT_RAW:
                record = _bytes(value)
        if not record:
            raise BadMessage("it holds no record")
        return cls(record, tuple(files), tuple(directories))


def encode_manifest(chunks: Sequence[Blob]) -> bytes:
    """Return the message `Tree` that lists the chunks of a file, in their order."""
    nodes = (
        _text(_PATH, f"{number:08d}") + _field(_DIGEST, _blob(chunk))
        for number, chunk in enumerate(chunks)
    )
    return _field(_ROOT, b"".join(_field(_FILES, node) for node in nodes))


def decode_manifest(data: bytes) -> tuple[Blob, ...]:
    """Return the chunks that a manifest lists.

    Raises:
        BadMessage: it is none.
    """
    root = [_bytes(value) for number, value in _fields(data) if number == _ROOT]
    if len(root) != 1:
        raise BadMessage("it has no root")
    nodes = [dict(_fields(_bytes(value))) for number, value in _fields(root[0]) if number == _FILES]
    if [node.get(_PATH) for node in nodes] != [b"%08d" % n for n in range(len(nodes))]:
        raise BadMessage("its chunks are not in order")
    return tuple(_as_blob(node.get(_DIGEST)) for node in nodes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _blob(blob: Blob) -> bytes:
    size = _number(_SIZE, blob.size) if blob.size else b""
    return _text(_HASH, blob.digest) + size


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of each field of a message."""
    place = 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _read_varint(data, place)
            yield number, value
        elif wire == 2:
            size, place = _read_varint(data, place)
            if place + size > len(data):
                raise BadMessage("it is cut short")
            yield number, data[place : place + size]
            place += size
        elif wire in (1, 5):  # fixed numbers: in no field that is read here
            place += 8 if wire == 1 else 4
            if place > len(data):
                raise BadMessage("it is cut short")
        else:
            raise BadMessage(f"it has a field of type {wire}")


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(_MAX_VARINT_BYTES):
        if place >= len(data):
            raise BadMessage("it is cut short")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place
    raise BadMessage("a number in it has no end")


def _bytes(value: bytes | int | None) -> bytes:
    if not isinstance(value, bytes):
        raise BadMessage("a field has the wrong type")
    return value


def _as_text(value: bytes | int | None) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError as error:
        raise BadMessage("a path is not UTF-8") from error


def _as_blob(value: bytes | int | None) -> Blob:
    found = dict(_fields(_bytes(value)))
    digest, size = _as_text(found.get(_HASH)), found.get(_SIZE, 0)
    if not is_digest(digest) or not isinstance(size, int) or size >= 1 << 63:
        raise BadMessage("a digest is none")
    return Blob(Digest(digest), size)
