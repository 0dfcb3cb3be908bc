"""Frontier: how far each target of a build is, and which are to be decided next."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ftbuild.action import Output
from ftbuild.graph import Target
from ftbuild.store.trees import Tree


@dataclass
class Node:
    """How far one target is."""

    target: Target
    waits_for: set[str]
    readers: list[str] = field(default_factory=list)
    output: Output | None = None
    tree: Tree | None = None
    """The output's, where it is known."""
    runs: int = 0
    must_run: bool = False
    """Whether it runs though the store knows its key: the bytes are gone."""
    is_over: bool = False
    is_cut_off: bool = False


class Frontier:
    """The targets of one build; a target is ready as soon as all that it needs is over."""

    def __init__(self, targets: Iterable[Target]) -> None:
        """Take targets in build order."""
        self.nodes: dict[str, Node] = {}
        self.ready: deque[str] = deque()
        for target in targets:
            needs = {edge.label for edge in target.edges}
            self.nodes[target.label] = Node(target, set(needs))
            for label in needs:
                self.nodes[label].readers.append(target.label)
            if not needs:
                self.ready.append(target.label)

    def output_of(self, label: str) -> Output:
        """Return the output of a target that is done."""
        output = self.nodes[label].output
        assert output is not None
        return output

    def outputs(self) -> dict[str, Output]:
        """Return the outputs of all targets that are done."""
        return {label: n.output for label, n in self.nodes.items() if n.output is not None}

    def finish(self, node: Node, output: Output) -> None:
        """Note what a target gave; those that waited for it alone are ready."""
        node.output, node.is_over = output, True
        for label in node.readers:
            reader = self.nodes[label]
            if node.target.label in reader.waits_for:
                reader.waits_for.discard(node.target.label)
                if not reader.waits_for and not reader.is_over:
                    self.ready.append(label)

    def again(self, node: Node) -> None:
        """Have a target run though its output is known."""
        node.must_run, node.is_over = True, False
        self.ready.append(node.target.label)

    def give_up(self, label: str) -> Iterator[tuple[str, str]]:
        """End a target without an output, and all above it; return these, each with what it needs.

        No recursion: a chain may be longer than Python's stack.
        """
        self.nodes[label].is_over = True
        lost = deque([label])
        while lost:
            below = lost.popleft()
            for reader in self.nodes[below].readers:
                if not self.nodes[reader].is_over:
                    self.nodes[reader].is_over = True
                    lost.append(reader)
                    yield reader, below
