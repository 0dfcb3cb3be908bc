"""What the checked graph is made of: plain data, so that loading it imports nothing else."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Edge:
    """One target that another reads."""

    field: str
    place: str | int | None
    """The key where the field takes a table, the index where it takes a list."""
    label: str
    part: str | None
    """The part of the artifact that is read, if not all of it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One node of the graph."""

    label: str
    package: str
    name: str
    family: str
    rule: str
    kind: str
    params: dict[str, Any]
    """Validated JSON values; only those that differ from their default."""
    edges: tuple[Edge, ...]
    sources: dict[str, Any]
    """Field to {"one": spec}, {"list": [spec, …]} or {"table": {name: spec}}, as written."""
    variables: tuple[tuple[str, str], ...]
    """Field and name of each environment variable."""
    resources: dict[str, int]
    """`cpus`, `gpus`, and `memory` in bytes; only what was given."""
    description: str
    tags: tuple[str, ...]
    pins: tuple[str, ...] = ()
    """The libraries that shape it, where its rule says so by target."""


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """What the engine needs to know about a rule once its attributes are checked: plain data."""

    name: str
    version: int | None
    source: str | None
    """The digest of its normalised source where it has no version."""
    pins: tuple[str, ...]
    """The libraries that shape each target; none where that differs from target to target."""
    parts: dict[str, tuple[str, ...]]
    """The patterns of each input field that takes a part of an artifact."""
    runs: Literal["worker", "process"]
    cpus: Literal["one", "all"]
    gpus: int
    preload: tuple[str, ...]
    module: str
    file: str
    """Relative to the root for a rule of the project, else absolute."""
    files: tuple[str, ...]
    """Files whose bytes `source` depends on, named likewise; none where there is a version."""
    is_reproducible: bool
    toolchain: tuple[str, ...] = ()
    """What it needs in a Python environment of its own."""


def pins_of(target: Target, facts: RuleFacts) -> tuple[str, ...]:
    """Return the libraries whose versions shape what a target is."""
    return (*facts.pins, *target.pins)
