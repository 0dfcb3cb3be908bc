"""One of several processes that train together: `python -m ftbuild_rules.training._process`.

It runs the rule as a single process would. The first one writes the artifact and tells; the
others have an output folder that is thrown away, and say nothing.
"""

import ctypes
import json
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ftbuild.api import Fragment, Piece, RuleError
from ftbuild_rules.training._launch import (
    DOCUMENT_NAME,
    ENVIRONMENT,
    EVENTS_NAME,
    LAUNCHER,
    is_first,
)

_PR_SET_PDEATHSIG = 1


@dataclass
class RelayContext:
    """A `Context` whose words go to the process that started this one; see `ftbuild.api`."""

    out: Path
    scratch: Path
    cpus: int
    pipe: Any
    """None: nobody listens."""

    def _say(self, *values: Any) -> None:
        if self.pipe is not None:
            self.pipe.write(json.dumps(values) + "\n")
            self.pipe.flush()

    def log(self, text: str) -> None:
        """Write a line to the action's log."""
        self._say("log", text)

    def warn(self, text: str) -> None:
        """Say something that the user should read at the end of the build."""
        self._say("warn", text)

    def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
        """Report how far the action is."""
        figures = {name: float(value) for name, value in metrics.items()}
        self._say("progress", step, steps, figures)

    def facts(self, **values: Any) -> None:
        """Record figures about the output in its provenance."""
        self._say("facts", values)

    def fragments(
        self, function: Callable[[Piece, Path], Any], pieces: Iterable[Piece], *, of: str
    ) -> list[Fragment]:
        """No training works by pieces."""
        raise NotImplementedError

    def link(self, source: Path, name: str) -> None:
        """No training links files."""
        raise NotImplementedError


def main() -> int:
    """Run the action of the document; return the exit status."""
    _die_with(int(os.environ[LAUNCHER]))
    folder = Path(os.environ[ENVIRONMENT])
    rule, inputs, params, out, scratch, cpus = pickle.loads((folder / DOCUMENT_NAME).read_bytes())
    function = getattr(import_module(f"ftbuild_rules.training.{rule}"), rule)
    with tempfile.TemporaryDirectory(dir=folder) as unused:
        try:
            if is_first():
                with (folder / EVENTS_NAME).open("w", encoding="utf-8") as pipe:
                    function(RelayContext(out, scratch, cpus, pipe), inputs, params)
            else:
                function(RelayContext(Path(unused), scratch, cpus, None), inputs, params)
        except RuleError as error:
            _report(folder, error)
            return 1
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _report(folder: Path, error: RuleError) -> None:
    """Leave for the starter what the user should read; a file that is there is whole."""
    path = folder / f"failed-{os.environ['RANK']}.json"
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(asdict(error.problems[0])))
    staged.rename(path)


def _die_with(launcher: int) -> None:
    """End this process as soon as the one that started it has ended, however it did."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(launcher,), daemon=True).start()
    if os.getppid() != launcher:  # it was quicker
        os._exit(1)


def _watch(launcher: int) -> None:
    with suppress(BaseException):
        while os.getppid() == launcher:
            time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
