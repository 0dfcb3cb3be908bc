"""Checkpoints of one action: in its scratch folder, sealed when whole, checked before use.

A checkpoint is resumable state and never an artifact. It counts only with its seal, written
last, which holds the digest of each of its files: what a kill or a full disk left is deleted.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ftbuild.api import canonical_json, hash_file

SEAL_NAME = "complete.json"
INTERVAL_S = 30.0
"""The least time between two checkpoints: what a kill costs at most, besides the save itself."""
SHARE = 20
"""Saving may take one twentieth of the time."""


@dataclass
class Checkpoints:
    """The checkpoints below one folder, and when the next is due."""

    folder: Path
    last_save: float
    cost_s: float = 0.0

    @classmethod
    def of(cls, scratch: Path) -> "Checkpoints":
        """Return those of the action whose scratch folder is given."""
        return cls(scratch / "checkpoints", time.monotonic())

    def is_due(self) -> bool:
        """Say whether it is time for another; when one is taken changes no result."""
        waited = time.monotonic() - self.last_save
        return waited >= max(INTERVAL_S, SHARE * self.cost_s)

    def path(self, step: int) -> Path:
        """Return where the trainer puts the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def seal(self, step: int, *, began: float) -> None:
        """Make the checkpoint of `step`, whose saving began then, count; drop older ones."""
        path = self.path(step)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        digests = {p.relative_to(path).as_posix(): hash_file(p) for p in files}
        staged = path / f"{SEAL_NAME}.tmp"
        with staged.open("wb") as seal:
            seal.write(canonical_json(digests))
            seal.flush()
            os.fsync(seal.fileno())
        staged.rename(path / SEAL_NAME)
        for other in self.folder.glob("checkpoint-*"):
            if other != path:
                shutil.rmtree(other)
        self.last_save = time.monotonic()
        self.cost_s = self.last_save - began

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint and delete all others."""
        found = sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True)
        whole = next((path for path in found if _is_whole(path)), None)
        for path in found:
            if path != whole:
                shutil.rmtree(path)
        return whole


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _is_whole(path: Path) -> bool:
    try:
        digests = json.loads((path / SEAL_NAME).read_bytes())
        return all(hash_file(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False
