"""SHA-256 digests of files and values: the one place where anything is hashed for identity.

A digest is 64 lowercase hex digits. Values are hashed through their canonical JSON: sorted
keys, no spaces, UTF-8, no NaN, so that equal values have equal digests on every machine.
SHA-256 and not a faster hash because digests are shared with other people (RFC 6234).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NewType

Digest = NewType("Digest", str)

_BLOCK_BYTES = 1 << 20
_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of `value` that is ever hashed or compared.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: `value` holds something JSON has no form for.
    """
    return _encode(value).encode("utf-8", "surrogatepass")


def hash_value(value: Any) -> Digest:
    """Return the digest of a JSON value."""
    return Digest(hashlib.sha256(canonical_json(value)).hexdigest())


def hash_bytes(data: bytes | bytearray) -> Digest:
    """Return the digest of `data`."""
    return Digest(hashlib.sha256(data).hexdigest())


def hash_file(path: Path | str) -> Digest:
    """Return the digest of the bytes of the file at `path`.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        first = file.read(_BLOCK_BYTES)
        hasher = hashlib.sha256(first)
        if len(first) == _BLOCK_BYTES:
            while block := file.read(_BLOCK_BYTES):
                hasher.update(block)
    return Digest(hasher.hexdigest())


def is_digest(text: object) -> bool:
    """Say whether `text` has the form of a digest."""
    return isinstance(text, str) and len(text) == 64 and not set(text) - set("0123456789abcdef")
