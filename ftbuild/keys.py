"""The action key: the only file that decides what a key is made of.

A key is the digest of a key document, a JSON value that is kept beside the action record so
that `why` and `diff` can compare two of them:

    {"format": 1, "rule": "tokens", "version": 1,
     "params": {"max_length": 512},
     "inputs": {"dataset": "dataset:6b1f…", "model": "tokenizer:90aa…"},
     "sources": {}, "variables": {}, "libraries": {"tokenizers": "0.23.3"}}

Not in it, ever: paths, user, host, time, number of jobs, the machine's hardware, names of
targets. An input stands there by the digest of its content, so a producer that ran again and
gave the same bytes leaves the key as it is: that is early cutoff, and needs no code of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ftbuild.digest import Digest, hash_value
from ftbuild.graph import RuleFacts, Target, pins_of

FORMAT = 1
"""Raised when the form of the document changes; then every key changes."""

Document = dict[str, Any]


def key_document(
    target: Target,
    facts: RuleFacts,
    *,
    inputs: Mapping[str, Any],
    sources: Mapping[str, Any],
    variables: Mapping[str, Mapping[str, str | None]],
    libraries: Mapping[str, str],
) -> Document:
    """Return all that may change the output of `target`, and nothing else.

    `inputs` holds `input_part` values, `sources` holds `source_part` values, `variables` the
    digests of the values of declared environment variables, `libraries` the locked versions: of
    a rule with a toolchain all that it resolved to.
    """
    identity = {"version": facts.version} if facts.version is not None else {"source": facts.source}
    return {
        "format": FORMAT,
        "rule": target.rule,
        **identity,
        "params": target.params,
        "inputs": dict(inputs),
        "sources": dict(sources),
        "variables": {name: dict(values) for name, values in variables.items()},
        "libraries": {
            name: libraries[name]
            for name in (libraries if facts.toolchain else pins_of(target, facts))
        },
    }


def input_part(kind: str, part: str | None, digest: Digest) -> str:
    """Return how an input stands in a key document: what it is seen as, and its digest.

    A part stands for itself: a tokenizer is the same whether its model is quantized or not.
    """
    return f"{part or kind}:{digest}"


def source_part(files: Sequence[tuple[str, Digest]]) -> list[list[str]]:
    """Return how a source stands in a key document: its files in order, by content."""
    return [[relative, digest] for relative, digest in files]


def action_key(document: Document) -> Digest:
    """Return the key of the action that `document` describes."""
    return hash_value(document)


def fragment_document(
    document: Document, *, of: str | tuple[str, ...], function: str, identity: Any
) -> Document:
    """Return the key document of one piece of an action.

    It is the action's own, in which the input or source `of`, or each of several, gives way to
    the piece's identity.

    Raises:
        KeyError: the action has no input or source of that name.
    """
    names = (of,) if isinstance(of, str) else of
    rest = {
        side: {name: part for name, part in document[side].items() if name not in names}
        for side in ("inputs", "sources")
    }
    for name in names:
        if name not in document["inputs"] and name not in document["sources"]:
            raise KeyError(name)
    told = of if isinstance(of, str) else list(of)
    return {**document, **rest, "fragment": {"of": told, "function": function, "piece": identity}}


def family_document(document: Document) -> Document:
    """Return what the key documents of all fragments have in common that only the piece sets apart.

    `document` is that of one of them.
    """
    fragment = {name: part for name, part in document["fragment"].items() if name != "piece"}
    return {**document, "fragment": fragment}
