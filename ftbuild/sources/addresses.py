"""Addresses: which sources are remote, and by what the lock knows them."""

from collections.abc import Iterator
from typing import Any

from ftbuild import localfiles, queries
from ftbuild.graph import Target

_SCHEMES = frozenset({*localfiles.SCHEMES, "sql"})


def scheme(spec: object) -> str | None:
    """Return the scheme of a remote source's address, or None for a local one."""
    if not isinstance(spec, str):
        return None
    head, colon, _ = spec.partition(":")
    return head if colon and (head in _SCHEMES or localfiles.is_bucket(spec)) else None


def addresses(spec: Any) -> list[str]:
    """Return by what the lock knows the remote ones among the sources that `spec` names."""
    if isinstance(spec, list):
        return [address for one in spec for address in addresses(one)]
    if isinstance(spec, dict):
        return [] if queries.is_sqlite(spec) else [queries.address(spec)]
    return [spec] if scheme(spec) else []


def addresses_of(target: Target) -> list[str]:
    """Return by what the lock knows the remote sources of a target."""
    return [address for _, spec in specs_of(target) for address in addresses(spec)]


def specs_of(target: Target) -> Iterator[tuple[str, Any]]:
    """Yield field and spec of each source that is no function."""
    for name, shape in target.sources.items():
        if shape.keys().isdisjoint(("function", "functions")):
            [given] = shape.values()
            yield name, list(given.values()) if "table" in shape else given


def name_for_people(name: str, relative: str) -> str:
    """Return how a message names a file of a source."""
    if scheme(name) == "sql":
        return queries.shown(queries.table_of(name))
    is_alone = scheme(name) is None or relative.startswith("file.")
    return name if is_alone else f"{name}/{relative}"
