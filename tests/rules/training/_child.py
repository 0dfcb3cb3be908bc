"""Run one rule in a process of its own: `python _child.py RULE FOLDER CHECKPOINT_INTERVAL_S`.

The folder holds `inputs.json` ({field: [kind, path]}, for the kind `functions` FILE:NAME) and
`params.json`; output and scratch are its folders `out` and `scratch`. Each step is printed as soon
as it is reported.
"""

import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ftbuild.api import Function
from ftbuild.kinds import KINDS
from ftbuild.testing import RecordingContext, artifact, run_rule
from ftbuild_rules.training import _checkpoints


@dataclass
class PrintingContext(RecordingContext):
    kill_at: ClassVar[int | None] = None
    """The step in which the process kills itself."""

    def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
        super().progress(step, steps, **metrics)
        print(f"step {step}", flush=True)
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def log(self, text: str) -> None:
        print(text, flush=True)


def functions(path: str) -> tuple[Function]:
    """Return the one function that `FILE:NAME` means."""
    file, _, name = path.rpartition(":")
    return (Function(Path(file), name, f"{Path(file).name}:{name}"),)


def run(rule: str, folder: Path) -> PrintingContext:
    kinds = {kind.kind: kind for kind in KINDS}
    inputs: dict[str, Any] = {
        field: functions(path) if kind == "functions" else artifact(kinds[kind], Path(path))
        for field, (kind, path) in json.loads((folder / "inputs.json").read_text()).items()
    }
    for name in ("out", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    ctx = PrintingContext(folder / "out", folder / "scratch")
    params = json.loads((folder / "params.json").read_text())
    module = importlib.import_module(f"ftbuild_rules.training.{rule}")
    run_rule(getattr(module, rule), inputs, params, folder, ctx=ctx)
    return ctx


if __name__ == "__main__":
    _checkpoints.INTERVAL_S = float(sys.argv[3])
    _checkpoints.SHARE = 0
    run(sys.argv[1], Path(sys.argv[2]))
