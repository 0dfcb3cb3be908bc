"""Lineage: which actions and sources an artifact follows from, read from the records alone.

The records say what was built; nothing is looked up anew. As an in-toto Statement with a
predicate of SLSA provenance v1 others' tools can check it, and signed, in a DSSE envelope.

Source: https://github.com/in-toto/attestation, spec/v1/statement.md;
    https://slsa.dev/spec/v1.0/provenance; https://github.com/secure-systems-lab/dsse.
"""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftbuild.digest import Digest, canonical_json
from ftbuild.graph import Edge, Target
from ftbuild.lockfile import Lock
from ftbuild.signing import Signer
from ftbuild.sources.addresses import addresses_of
from ftbuild.store.actions import Record

if TYPE_CHECKING:
    from ftbuild.project import Project

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "urn:ftbuild:action:v1"
BUILDER = "urn:ftbuild:cli"


@dataclass(frozen=True)
class Step:
    """One action of a lineage, or an input of which there is no record any more."""

    label: str
    kind: str
    digest: Digest
    """Of the artifact's tree, or of the part of it that is read."""
    record: Record | None
    inputs: Mapping[str, str]
    """By name of the input: the label of the step that made it."""
    pins: Mapping[str, str]
    """Commits of remote sources by address, as the lock holds them."""
    specs: Mapping[str, Any]
    """The sources of each field as FTBUILD.toml names them now."""


def lineage(project: "Project", label: str, record: Record) -> list[Step]:
    """Return all steps from the sources to the artifact of `label`, which comes last."""
    steps: dict[str, Step] = {}
    _walk(project, project.graph.targets[label], record, steps)
    return list(steps.values())


def _walk(project: "Project", target: Target, record: Record, steps: dict[str, Step]) -> None:
    inputs = {}
    for edge in target.edges:
        kind, digest = _input(record, edge)
        name = edge.field if edge.place is None else f"{edge.field}.{edge.place}"
        inputs[name] = edge.label
        if edge.label in steps:
            continue
        below = _record_of(project, edge, digest)
        if below is None:
            steps[edge.label] = Step(edge.label, kind, digest, None, {}, {}, {})
        else:
            _walk(project, project.graph.targets[edge.label], below, steps)
    pins = _pins(target, project.locked)
    steps[target.label] = Step(
        target.label, target.kind, record.tree.digest, record, inputs, pins, target.sources
    )


def _input(record: Record, edge: Edge) -> tuple[str, Digest]:
    """Return kind and digest of an input as the key document has it."""
    found = record.document["inputs"][edge.field]
    if edge.place is not None:
        found = found[edge.place]
    kind, _, digest = found.partition(":")
    return kind, Digest(digest)


def _record_of(project: "Project", edge: Edge, digest: Digest) -> Record | None:
    """Return the record of the build of an input that gave the digest that was read."""
    for built in (project.history.built.get(edge.label), project.history.previous.get(edge.label)):
        if built is not None and digest in (built.tree, *built.parts.values()):
            return project.store.find(built.key) or project.store.known(built.key)
    return None


def _pins(target: Target, lock: Lock) -> dict[str, str]:
    found = {}
    for spec in addresses_of(target):
        pin = lock.sources.get(spec)
        if pin is not None and pin.revision is not None:
            found[spec] = pin.revision
    return found


def to_plain(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return a lineage as JSON values, the artifact itself last."""
    return [_plain(step) for step in steps]


def _plain(step: Step) -> dict[str, Any]:
    plain: dict[str, Any] = {"label": step.label, "kind": step.kind, "digest": step.digest}
    record = step.record
    if record is None:
        return plain | {"recorded": False}
    document, provenance = record.document, record.provenance
    plain |= {
        "recorded": True,
        "key": record.key,
        "rule": document["rule"],
        "version": document.get("version"),
        "source": document.get("source"),
        "params": document["params"],
        "libraries": document["libraries"],
        "variables": document["variables"],
        "inputs": dict(step.inputs),
        "sources": document["sources"],
        "specs": dict(step.specs),
        "revisions": dict(step.pins),
        "files": [[e.path, e.size, e.digest] for e in record.tree.entries],
        "is_reproducible": provenance.get("is_reproducible"),
        "seconds": provenance.get("seconds"),
        "finished_at": provenance.get("finished_at"),
        "ftbuild": provenance.get("ftbuild"),
        "python": provenance.get("python"),
        "signed_by": None if record.signature is None else record.signature.public,
    }
    return plain


def statement(steps: Sequence[Step]) -> dict[str, Any]:
    """Return a lineage as an in-toto Statement about the files of the artifact."""
    last = steps[-1]
    record = last.record
    assert record is not None
    document, provenance = record.document, record.provenance
    ended = int(provenance.get("finished_at", 0))
    began = ended - round(float(provenance.get("seconds", 0)))
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": entry.path, "digest": {"sha256": entry.digest}}
            for entry in record.tree.entries
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"target": last.label, "document": document},
                "internalParameters": {"lineage": to_plain(steps)},
                "resolvedDependencies": list(_dependencies(steps)),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"ftbuild": provenance.get("ftbuild")}},
                "metadata": {
                    "invocationId": record.key,
                    "startedOn": _moment(began),
                    "finishedOn": _moment(ended),
                },
            },
        },
    }


def _dependencies(steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
    """Yield the files of all sources, each once, and the artifacts of all other steps."""
    seen = set()
    for step in steps:
        if step is not steps[-1]:
            yield {"name": step.label, "digest": {"sha256": step.digest}}
        if step.record is None:
            continue
        for name, digest in source_files(step.record):
            if (name, digest) not in seen:
                seen.add((name, digest))
                yield {"name": f"{step.label}/{name}", "digest": {"sha256": digest}}


def source_files(record: Record) -> Iterator[tuple[str, Digest]]:
    """Yield name and digest of each source file that an action read."""
    for field, value in record.document["sources"].items():
        tables = value if isinstance(value, dict) else {"": value}
        for place, files in tables.items():
            for relative, digest in files:
                yield "/".join(part for part in (field, place, relative) if part), digest


def _moment(seconds: int) -> str:
    """Return a time of RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def envelope(payload: Mapping[str, Any], signer: Signer) -> dict[str, Any]:
    """Return a DSSE envelope that holds `payload`, signed."""
    data = canonical_json(payload)
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(data).decode(),
        "signatures": [{"keyid": signer.public, "sig": signer.sign(authentication_encoding(data))}],
    }


def authentication_encoding(data: bytes) -> bytes:
    """Return what DSSE signs: type and body, each with its length (its protocol.md, PAE)."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(data), data)
