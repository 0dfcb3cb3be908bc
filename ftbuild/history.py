"""What this workspace last built: label to key and output, in `.ftbuild/history.bin`.

A shortcut, never the truth: a key found here spares reading the action record, and its old key
lets `plan` and `why` say what changed. If the file is lost, the records in the store remain.
"""

import marshal
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ftbuild.digest import Digest

FOLDER = ".ftbuild"
_FORMAT = 1


class Built(NamedTuple):
    """The last build of a target."""

    key: Digest
    tree: Digest
    parts: dict[tuple[str, ...], Digest]
    """Digests of the parts that other targets read, by the part's patterns."""
    seconds: float


@dataclass
class History:
    """The last builds of a workspace's targets."""

    path: Path
    built: dict[str, Built] = field(default_factory=dict)
    previous: dict[str, Built] = field(default_factory=dict)
    """What each target was before its last build with another output."""
    _is_changed: bool = False

    @classmethod
    def load(cls, root: Path) -> "History":
        """Read the history of the workspace at `root`; what cannot be read is as if absent."""
        path = root / FOLDER / "history.bin"
        try:
            form, *tables = marshal.loads(path.read_bytes())
            if form != _FORMAT:
                return cls(path)
            built, previous = ({k: Built(*row) for k, row in rows.items()} for rows in tables)
            return cls(path, built, previous)
        except (OSError, ValueError, EOFError, TypeError, AttributeError):
            return cls(path)

    def note(self, label: str, built: Built) -> None:
        """Remember the build of `label`."""
        before = self.built.get(label)
        if before == built:
            return
        if before is not None and before.tree != built.tree:
            self.previous[label] = before
        self.built[label] = built
        self._is_changed = True

    def forget(self, label: str) -> None:
        """Forget the build of `label`, so that `gc` may take it."""
        if self.built.pop(label, None) is not None:
            self._is_changed = True

    def save(self) -> None:
        """Write the history, whole or not at all, and the keys that `gc` must leave alone."""
        if not self._is_changed:
            return
        folder = workspace_folder(self.path.parent.parent)
        tables = [
            {label: tuple(built) for label, built in rows.items()}
            for rows in (self.built, self.previous)
        ]
        replace_file(self.path, marshal.dumps((_FORMAT, *tables)))
        used = {b.key for b in (*self.built.values(), *self.previous.values())}
        keys = "".join(f"{key}\n" for key in sorted(used))
        replace_file(folder / "keys", keys.encode())
        self._is_changed = False


def workspace_folder(root: Path) -> Path:
    """Return `.ftbuild` of the workspace at `root`, made if absent, ignored by git."""
    folder = root / FOLDER
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
    return folder


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    staged.write_bytes(data)
    os.replace(staged, path)
