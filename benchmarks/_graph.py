"""The graphs that every tool builds: steps that run a shell command on files.

A command names its inputs `@in` (all of them, in order) and its output `@out`; each tool puts
its own paths there. Steps of one kind share a command, so that a tool with pattern rules
(Snakemake, ninja, make) can state it once.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step; `name` begins with `kind`."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    """Names of steps, or paths of sources, which alone contain a slash."""


@dataclass(frozen=True)
class Graph:
    """Steps in build order; the last one is what is asked for."""

    commands: Mapping[str, str]
    """By the kind of step."""
    steps: tuple[Step, ...]
    filters: tuple[str, ...] = ()
    """Kinds whose output often stays what it was; ninja has to be told."""

    @property
    def goal(self) -> str:
        """The name of the last step."""
        return self.steps[-1].name


def is_source(name: str) -> bool:
    """Return whether an input is a source rather than a step."""
    return "/" in name


def synthetic(num_targets: int) -> Graph:
    """Return the graph of the tables, of `num_targets` - 1 steps.

    n = `num_targets` / 10 sources `src/0.txt`, …; on each a chain of nine steps, of which the
    first drops comment lines and the others copy: 9 n steps. Then the chains' ends are joined
    two by two, and the joined ones again, an odd one waiting for the next round: n - 1 steps.
    """
    chains = num_targets // 10
    steps, ends = [], []
    for chain in range(chains):
        steps.append(Step("strip", f"strip_{chain}", (f"src/{chain}.txt",)))
        for place in range(1, 9):
            steps.append(Step("copy", f"copy_{chain}_{place}", (steps[-1].name,)))
        ends.append(steps[-1].name)
    level = 0
    while len(ends) > 1:
        joined = []
        for place in range(0, len(ends) - 1, 2):
            pair = (ends[place], ends[place + 1])
            steps.append(Step("join", f"join_{level}_{place // 2}", pair))
            joined.append(steps[-1].name)
        ends = joined + ends[len(ends) // 2 * 2 :]
        level += 1
    commands = {"strip": "grep -v '^#' @in > @out", "copy": "cp @in @out", "join": "cat @in > @out"}
    return Graph(commands, tuple(steps), filters=("strip",))


def source_text(number: int, *, data: str = "one", comment: str = "first") -> str:
    """Return a source of twenty-one lines, of which `data` and `comment` stand in two."""
    rows = "".join(f"row {row} of {number}\n" for row in range(19))
    return f"# {comment}\n{rows}data {data}\n"


def contents(graph: Graph, sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the right bytes of every source and step of a graph like `synthetic`'s."""
    known = dict(sources)
    for step in graph.steps:
        data = b"".join(known[name] for name in step.inputs)
        if step.kind == "strip":
            data = b"".join(x for x in data.splitlines(keepends=True) if not x.startswith(b"#"))
        known[step.name] = data
    return known
