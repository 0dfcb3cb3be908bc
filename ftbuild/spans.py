"""Where a value stands in FTBUILD.toml, looked up only when there is an error.

The fast TOML parser knows no positions. What is wrong is therefore first noted as a
`Finding`, which names a value by its keys; once there is one, its file is parsed a second
time, by tree-sitter, and the finding becomes a `Problem` with line, column and text.
"""

import functools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ftbuild.errors import Place, Problem
from ftbuild.redaction import of_environment
from ftbuild.wording import as_key

if TYPE_CHECKING:
    from tree_sitter import Node

KeyPath = tuple[str | int, ...]
_HEADER_DEPTH = {"project": 1, "run": 1, "cache": 1, "profile": 3}
_WIDEST_LINE = 160


class Spot(NamedTuple):
    """A stretch of one line, 1-based, counted in characters."""

    line: int
    column: int
    width: int


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a value, before its position is known."""

    code: str
    what: str
    file: str
    """Relative to the root; or the option of the command line that is to blame."""
    path: KeyPath = ()
    of: Literal["key", "value"] = "value"
    why: str | None = None
    fix: str | None = None
    first: KeyPath | None = None
    """The other of two declarations; the finding is reported at the later of them."""
    spot: Spot | None = None
    """Known already where the file is no TOML."""


def problems(findings: Iterable[Finding], texts: Mapping[str, bytes]) -> list[Problem]:
    """Return findings as problems with their positions, each once."""
    return [_problem(finding, texts) for finding in dict.fromkeys(findings)]


def _problem(finding: Finding, texts: Mapping[str, bytes]) -> Problem:
    text = texts.get(finding.file)
    if text is None:
        where = Place(finding.file)
        return Problem(finding.code, finding.what, where, finding.why, finding.fix)
    path, spot, why = finding.path, finding.spot, finding.why
    if spot is None and path:
        spot = locate(text, path, of=finding.of)
        if finding.first is not None:
            earlier = locate(text, finding.first, of=finding.of)
            if earlier > spot:
                path, spot, earlier = finding.first, earlier, spot
            why = f"first declared at {finding.file}:{earlier.line}"
    where = place(finding.file, text, spot, within=_within(path))
    return Problem(finding.code, finding.what, where, why, finding.fix)


def place(file: str, text: bytes, spot: Spot | None, *, within: str | None = None) -> Place:
    """Return the place of `spot` in a file whose bytes are `text`."""
    if spot is None:
        return Place(file)
    lines = text.decode("utf-8", "replace").split("\n")
    raw = lines[spot.line - 1].rstrip("\r") if spot.line <= len(lines) else ""
    line: str | None = "".join(c if c == "\t" or c.isprintable() else "\ufffd" for c in raw)
    # Before it is cut: half a password is one as well.
    line = of_environment().masked(line or "")
    if len(raw) > _WIDEST_LINE:
        line = None if spot.column > _WIDEST_LINE else line[:_WIDEST_LINE] + "…"
    width = min(spot.width, max(1, len(line or "") - spot.column + 1))
    return Place(file, spot.line, spot.column, line, width, within)


def _within(path: KeyPath) -> str | None:
    """Return the table around a value, as its header reads; None above all tables."""
    depth = _HEADER_DEPTH.get(str(path[0]), 2) if path else 0
    if not depth or len(path) < depth:
        return None
    return f"[{'.'.join(as_key(str(key)) for key in path[:depth])}]"


def locate(text: bytes, path: Sequence[str | int], *, of: Literal["key", "value"]) -> Spot:
    """Return where the key or the value at `path` stands; where it is absent, what is around it."""
    spots = _index(text)
    wanted = tuple(path)
    if wanted in spots:
        return spots[wanted][0 if of == "key" else 1]
    while wanted and wanted not in spots:
        wanted = wanted[:-1]
    return spots[wanted][0] if wanted else Spot(1, 1, 1)


@functools.lru_cache(maxsize=4)  # the findings of one file come one after another
def _index(text: bytes) -> dict[KeyPath, tuple[Spot, Spot]]:
    """Return the spots of the key and of the value of everything in a TOML text."""
    import tree_sitter
    import tree_sitter_toml

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
    collector = _Collector(text.split(b"\n"), {}, {})
    for node in parser.parse(text).root_node.named_children:
        collector.statement(node)
    return collector.spots


@dataclass(frozen=True)
class _Collector:
    """Walks a tree of tree-sitter-toml and keeps the spot of each key and value."""

    lines: list[bytes]
    spots: dict[KeyPath, tuple[Spot, Spot]]
    counts: dict[KeyPath, int]
    """How many elements each array of tables has so far."""

    def statement(self, node: "Node") -> None:
        if node.type == "pair":
            self.pair(node, ())
        elif node.type in ("table", "table_array_element"):
            header, *pairs = node.named_children
            path = self.header(header, is_element=node.type == "table_array_element")
            for pair in pairs:
                if pair.type == "pair":
                    self.pair(pair, path)

    def header(self, node: "Node", *, is_element: bool) -> KeyPath:
        path = self.keys(node, (), enter_arrays=True)
        if is_element:
            position = self.counts.get(path, -1) + 1
            self.counts[path] = position
            spot = self.spot(node)
            path = (*path, position)
            self.spots[path] = (spot, spot)
        return path

    def pair(self, node: "Node", table: KeyPath) -> None:
        key, *values = [n for n in node.named_children if n.type != "comment"]
        path = self.keys(key, table, enter_arrays=False)
        if values:  # a broken file may have none
            self.spots[path] = (self.spots[path][0], self.spot(values[-1]))
            self.value(values[-1], path)

    def value(self, node: "Node", path: KeyPath) -> None:
        if node.type == "inline_table":
            for pair in node.named_children:
                if pair.type == "pair":
                    self.pair(pair, path)
        elif node.type == "array":
            items = [n for n in node.named_children if n.type != "comment"]
            for position, item in enumerate(items):
                self.spots[(*path, position)] = (self.spot(item), self.spot(item))
                self.value(item, (*path, position))

    def keys(self, node: "Node", table: KeyPath, *, enter_arrays: bool) -> KeyPath:
        """Note each part of a dotted key below `table` and return the path of the whole."""
        parts = []
        while node.type == "dotted_key":  # nests to the left, deeper than Python recurses
            node, last = node.named_children[0], node.named_children[-1]
            parts.append(last)
        path = table
        for part in [node, *reversed(parts)]:
            path = (*path, _key_text(part))
            spot = self.spot(part)
            self.spots.setdefault(path, (spot, spot))
            if enter_arrays and parts and path in self.counts and part is not parts[0]:
                path = (*path, self.counts[path])
        return path

    def spot(self, node: "Node") -> Spot:
        row, column = node.start_point
        end = node.end_point
        line = self.lines[row]
        stop = end.column if end.row == row else len(line.rstrip(b"\r"))
        lead = line[:column].decode("utf-8", "replace")
        return Spot(row + 1, len(lead) + 1, len(line[column:stop].decode("utf-8", "replace")))


def _key_text(node: "Node") -> str:
    raw = (node.text or b"").decode("utf-8", "replace")
    if node.type == "bare_key":
        return raw
    try:
        return next(iter(tomllib.loads(f"{raw} = 0")))
    except tomllib.TOMLDecodeError:
        return raw
