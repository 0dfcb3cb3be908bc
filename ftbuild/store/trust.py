"""Trust: whose records are believed.

A digest proves that bytes are those that a record names. Nothing but a signature proves that the
record says what the action gave: whoever can write a shared cache can put a wrong result under a
right key (CVE-2025-36852). What a signature covers is the whole record and the project that it
was made for, so no part of it can be moved to another key, format or result.
"""

from dataclasses import dataclass, replace

from ftbuild.digest import canonical_json
from ftbuild.signing import Signer, verifies
from ftbuild.store.actions import RECORD_FORMAT, Record, Signature


@dataclass(frozen=True)
class Trust:
    """Whose records one project believes, and with what it signs its own."""

    project: str = ""
    trusted: frozenset[str] = frozenset()
    """Public keys besides its own."""
    is_required: bool = False
    """A record without a signature of one of them counts as absent."""
    signer: Signer | None = None

    def sign(self, record: Record) -> Record:
        """Return a record that was made here, signed if there is a key."""
        if self.signer is None:
            return record
        value = self.signer.sign(signed_bytes(record, self.project))
        return replace(record, signature=Signature(self.signer.public, self.project, value))

    def objection(self, record: Record) -> str | None:
        """Return why a record is not believed; None if it is."""
        signature = record.signature
        if signature is None:
            return "it is not signed" if self.is_required else None
        if not self.is_required and not self.trusted:
            return None
        if not self._knows(signature.public):
            return f"it is signed with `{signature.public}`, which `trusted_keys` does not name"
        if not verifies(signature.public, signature.value, signed_bytes(record, signature.project)):
            return "its signature is not of this record"
        return None

    def _knows(self, public: str) -> bool:
        if public in self.trusted:
            return True
        return self.signer is not None and public == self.signer.public


def signed_bytes(record: Record, project: str) -> bytes:
    """Return what the signature of a record is made of."""
    return canonical_json(
        {
            "signed": "ftbuild action record",
            "format": RECORD_FORMAT,
            "project": project,
            "key": record.key,
            "tree": record.tree.digest,
            "value": record.value,
            "document": record.document,
            "provenance": record.provenance,
        }
    )
