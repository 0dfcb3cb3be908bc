"""Action records: what an action gave, in one JSON file per key.

    {"self":"<sha256>","document":{…},"format":1,"key":"<key>","provenance":{…},
     "tree":[["answer.txt","f",3,"<sha256>"]],"value":null}

`self` is the digest of the same canonical JSON without `self`. It always stands first, so a
reader checks it on the bytes as they are. Its aim is damage, not deceit: whoever can write
here can also make a right `self`.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from ftbuild.digest import Digest, canonical_json, hash_bytes, is_digest
from ftbuild.store.trees import Tree

RECORD_FORMAT = 1
_HEAD = b'{"self":"'
_BODY = len(_HEAD) + 64 + 2


@dataclass(frozen=True)
class Signature:
    """Who vouches for a record."""

    public: str
    """The public key."""
    project: str
    """For which the record was made."""
    value: str
    """In base64; of what `trust.signed_bytes` returns."""


@dataclass(frozen=True)
class Record:
    """The result of an action; that it exists says that the action was done."""

    key: Digest
    tree: Tree
    value: Any
    """A JSON value beside the tree, such as what a fragment returned."""
    document: dict[str, Any]
    """The key document: what was hashed to `key`."""
    provenance: dict[str, Any]
    """Who, where, when, how long; in no key."""
    signature: Signature | None = None


class DamagedRecord(ValueError):
    """The bytes are no record, or another one's."""


def encode(record: Record) -> bytes:
    """Return the bytes of a record.

    Raises:
        ValueError: a number in it is NaN or infinite.
        TypeError: something in it has no JSON form.
    """
    plain = {
        "format": RECORD_FORMAT,
        "key": record.key,
        "tree": record.tree.to_plain(),
        "value": record.value,
        "document": record.document,
        "provenance": record.provenance,
    }
    if record.signature is not None:
        plain["signature"] = asdict(record.signature)
    body = canonical_json(plain)
    return _HEAD + hash_bytes(body).encode() + b'",' + body[1:]


def decode(data: bytes, key: Digest) -> Record:
    """Return the record of `key`.

    Raises:
        DamagedRecord: these are not its bytes.
    """
    if data[: len(_HEAD)] != _HEAD or data[_BODY - 2 : _BODY] != b'",':
        raise DamagedRecord("it does not begin as a record does")
    if hash_bytes(b"{" + data[_BODY:]).encode() != data[len(_HEAD) : _BODY - 2]:
        raise DamagedRecord("its bytes do not have the digest that it names")
    try:
        plain = json.loads(data)
        tree = Tree.from_plain(plain["tree"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRecord(f"it cannot be read: {error}") from error
    if plain.get("format") != RECORD_FORMAT or plain.get("key") != key or not is_digest(key):
        raise DamagedRecord("it is of another action or another format")
    document, provenance = plain.get("document"), plain.get("provenance")
    if not isinstance(document, dict) or not isinstance(provenance, dict):
        raise DamagedRecord("its document or its provenance is missing")
    signature = _signature(plain.get("signature"))
    return Record(key, tree, plain.get("value"), document, provenance, signature)


def _signature(plain: Any) -> Signature | None:
    if plain is None:
        return None
    names = [field.name for field in fields(Signature)]
    if not isinstance(plain, dict) or not all(isinstance(plain.get(name), str) for name in names):
        raise DamagedRecord("its signature is none")
    return Signature(**{name: plain[name] for name in names})
