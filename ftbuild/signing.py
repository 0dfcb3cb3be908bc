"""Signatures: ed25519 keys as one line of text, and what they sign (RFC 8032).

    ed25519:MCowBQ…           a public key, for `trusted_keys` in FTBUILD.toml
    ed25519-private:MC4C…     a private one, for `~/.config/ftbuild/key` or FTBUILD_SIGNING_KEY

The 32 bytes of either stand there in base64. A private key is in no message, record or log.
"""

import base64
import binascii
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ftbuild.errors import MachineError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "FTBUILD_SIGNING_KEY"
_PUBLIC = "ed25519:"
_PRIVATE = "ed25519-private:"
_KEY_BYTES = 32


@dataclass(frozen=True)
class Signer:
    """A private key; the library that computes with it is loaded when it is first needed."""

    _seed: bytes

    def __repr__(self) -> str:
        return "Signer(…)"

    @cached_property
    def _key(self) -> "Ed25519PrivateKey":
        _need_library()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self._seed)

    @cached_property
    def public(self) -> str:
        """The public key as text."""
        return _PUBLIC + base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` in base64."""
        return base64.b64encode(self._key.sign(data)).decode()

    def to_text(self) -> str:
        """Return the private key as text."""
        return _PRIVATE + base64.b64encode(self._seed).decode()


def generate() -> Signer:
    """Return a new key."""
    return Signer(os.urandom(_KEY_BYTES))  # any 32 bytes are a private key (RFC 8032, 5.1.5)


def parse_private(text: str, where: str) -> Signer:
    """Return the key of its text, which came from `where`.

    Raises:
        UsageError: E0030, it is none; what it is instead is not shown.
    """
    seed = _bytes_of(text.strip(), _PRIVATE)
    if seed is None:
        raise UsageError(
            f"{where} holds no private key",
            code="E0030",
            fix="`ftbuild keys` makes one: a line that begins with `ed25519-private:`",
        )
    return Signer(seed)


def is_public(text: object) -> bool:
    """Say whether `text` is a public key."""
    return isinstance(text, str) and _bytes_of(text, _PUBLIC) is not None


def verifies(public: str, signature: str, data: bytes) -> bool:
    """Say whether the owner of the public key has signed `data`."""
    key = _bytes_of(public, _PUBLIC)
    if key is None:
        return False
    _need_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            base64.b64decode(signature, validate=True), data
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _bytes_of(text: str, head: str) -> bytes | None:
    if not text.startswith(head):
        return None
    try:
        found = base64.b64decode(text.removeprefix(head), validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == _KEY_BYTES else None


def _need_library() -> None:
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError as e:
        raise MachineError(
            "signatures need the library `cryptography`",
            code="E0670",
            fix="pip install 'ftbuild[sign]'",
        ) from e


def user_key_path() -> Path:
    """Return where the user's own key is, or would be."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "ftbuild" / "key"


def find() -> Signer | None:
    """Return the key of FTBUILD_SIGNING_KEY or of the user; None where there is neither."""
    named = os.environ.get(VARIABLE)
    if named:
        return parse_private(named, f"the environment variable {VARIABLE}")
    return read(user_key_path())


def read(path: Path) -> Signer | None:
    """Return the key in a file; None if there is no such file."""
    try:
        return parse_private(path.read_text(encoding="utf-8"), f"`{path}`")
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: Path, signer: Signer) -> None:
    """Keep a key in a file that must not exist yet, for its owner's eyes alone.

    Raises:
        FileExistsError: there is one; it is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(signer.to_text() + "\n")


def read_or_make(path: Path) -> Signer:
    """Return the key in a file, made if there is none; of two who make one, one wins."""
    found = read(path)
    if found is not None:
        return found
    with suppress(FileExistsError):
        write(path, generate())
    made = read(path)
    assert made is not None
    return made
