"""The desk: where the actions of one thread run."""

import os
from pathlib import Path

from ftbuild.store import disk


class Desk:
    """The private folders in which one thread's actions run, one after another.

    They are made once and left empty after each action: thousands of tiny actions would pay
    more for folders than for their work.
    """

    def __init__(self, place: Path) -> None:
        self.work = f"{place}/work"
        """Where an action runs: an empty folder."""
        self.log = f"{place}/log"
        self.sources = f"{place}/sources"
        self.document = f"{place}/action.json"
        os.mkdir(self.work)

    def clear(self) -> None:
        """Remove what an action left."""
        if not _is_empty(self.work):
            disk.remove(self.work)
            os.mkdir(self.work)
        if os.path.isdir(self.sources):
            disk.remove(self.sources)


def _is_empty(folder: str) -> bool:
    try:
        return not os.listdir(folder)
    except OSError:  # an action may take its own folder away, or the right to look into it
        return False
