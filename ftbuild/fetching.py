"""Fetching: what a build takes from beyond its own store, a record or the bytes it names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbuild.action import Action, Output
from ftbuild.kinds import KINDS_BY_NAME, missing_files
from ftbuild.store.actions import Record
from ftbuild.store.blobs import MissingBlob
from ftbuild.store.store import Store
from ftbuild.store.trees import Tree

if TYPE_CHECKING:
    from ftbuild.remote.service import Supply


@dataclass(frozen=True)
class Fetcher:
    """Asks a supply for a build; each call may wait for others, so none is for the main thread."""

    store: Store
    supply: "Supply"

    def look_up(self, action: Action) -> Record | None:
        """Return the record of an action, without its bytes; None if nobody has it."""
        record = self.supply.find(action.key)
        if record is None:
            return None
        kind = action.target.kind
        missing = missing_files(KINDS_BY_NAME[kind], record.tree.paths)
        if missing:
            self.supply.refuse(record, f"a {kind} without {', '.join(missing)}")
            return None
        return record

    def bring(self, output: Output, patterns: Sequence[str] | None = None) -> "Brought":
        """Bring an artifact, or the files of it that match, and lay it out.

        Raises:
            MissingBlob: it is not to be had.
        """
        record = self.supply.find(output.key)
        if record is None or record.tree.digest != output.tree:
            raise MissingBlob(output.tree, str(self.store.tree_path(output.tree)))
        tree = record.tree if patterns is None else record.tree.part(patterns)
        self.supply.fetch(record, tree)
        return Brought(record, tree, self.store.lay_out(tree))


@dataclass(frozen=True)
class Brought:
    """An artifact or a part of it that came."""

    record: Record
    tree: Tree
    path: Path
