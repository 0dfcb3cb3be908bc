"""Trackers: where curves are logged while an action runs; outside its key, and without harm.

Each is a process of its own that reads figures from a pipe. So it can draw no random number of
the training's, hold nothing up and take nothing down: what it does not read in time is dropped,
and how it ends is a warning at most.

    {"step": 3, "metrics": {"loss": 2.1}}
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftbuild.api import Context

WANTED = "FTBUILD_TRACKERS"
"""The variable with the names from `[run] trackers`; FOLDER and RUN go with it."""
FOLDER = "FTBUILD_TRACKER_FOLDER"
RUN = "FTBUILD_TRACKER_RUN"
WAIT_S = 20
"""How long a tracker may take to send the rest once the training is done."""


@dataclass
class Trackers:
    """The trackers of one action."""

    ctx: Context
    running: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, ctx: Context) -> "Trackers":
        """Start those that are wanted; none where `[run]` names none."""
        found = cls(ctx)
        for name in os.environ.get(WANTED, "").split():
            process = subprocess.Popen(
                [sys.executable, "-m", "ftbuild_rules.training._trackers", name],
                stdin=subprocess.PIPE,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
            assert process.stdin is not None
            os.set_blocking(process.stdin.fileno(), False)
            found.running[name] = process
        return found

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand the figures of a step to each."""
        line = (json.dumps({"step": step, "metrics": metrics}) + "\n").encode()
        for name, process in list(self.running.items()):
            try:
                os.write(process.stdin.fileno(), line)  # whole or not at all: it is short
            except BlockingIOError:
                continue  # it lags behind; a step less in a curve
            except OSError:
                self._end(name, process)

    def close(self) -> None:
        """Give them the time to send the rest, and end them."""
        for name, process in list(self.running.items()):
            self._end(name, process)

    def _end(self, name: str, process: Any) -> None:
        del self.running[name]
        with suppress(OSError):
            process.stdin.close()
        try:
            status = process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = "timeout"
        if status:
            said = f"sent nothing for {WAIT_S} s" if status == "timeout" else "failed"
            self.ctx.warn(
                f"the tracker `{name}` {said}; the log says why. Nothing else is affected"
            )


Log = Callable[[int, dict[str, float]], None]


def _tensorboard(folder: Path, run: str) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard" / run))

    def log(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(folder: Path, run: str) -> tuple[Log, Callable[[], None]]:
    import wandb

    made = wandb.init(name=run, dir=str(folder), project=os.environ.get("WANDB_PROJECT", "ftbuild"))
    return lambda step, metrics: made.log(metrics, step=step), made.finish


def _mlflow(folder: Path, run: str) -> tuple[Log, Callable[[], None]]:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "ftbuild"))
    mlflow.start_run(run_name=run)
    return lambda step, metrics: mlflow.log_metrics(metrics, step=step), mlflow.end_run


def _trackio(folder: Path, run: str) -> tuple[Log, Callable[[], None]]:
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    import trackio

    trackio.init(project=os.environ.get("TRACKIO_PROJECT", "ftbuild"), name=run)
    return lambda step, metrics: trackio.log(metrics, step=step), trackio.finish


_TRACKERS = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def main(name: str, lines: Iterable[str]) -> None:
    """Be the tracker `name` for the figures in `lines`."""
    folder = Path(os.environ[FOLDER])
    folder.mkdir(parents=True, exist_ok=True)
    log, finish = _TRACKERS[name](folder, os.environ[RUN])
    for line in lines:
        event = json.loads(line)
        log(event["step"], event["metrics"])
    finish()


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin)
