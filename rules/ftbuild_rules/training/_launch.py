"""One training in several processes of this machine, started by torch's elastic launcher.

    worker (the rule) ── torchrun's agent ──▶ N processes (`_process.py`), each the same rule

The worker checks all that can be checked, starts them, tells the context what the first of them
says, and waits. They are sessions of their own, so each asks the kernel to be killed with the
worker: however that ends, none is left.
"""

import json
import os
import pickle
import shutil
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from ftbuild.api import AttributeProblem, Context, Field, Params, Place, RuleError

ENVIRONMENT = "FTBUILD_LAUNCH"
"""The variable that tells a process that it is one of several: the folder of its document."""
LAUNCHER = "FTBUILD_LAUNCHER"
"""The process number of who started it."""
DOCUMENT_NAME = "action.pickle"
EVENTS_NAME = "events"


class Launch(Params):
    """How many processes train together, and what each of them holds."""

    processes: int = Field(ge=2)
    """How many; one for each GPU, or that many on the CPU. Each has micro-batches of
    `batch_size` rows. Set `resources = { gpus = N }`, or `{ cpus = N }`, as well."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """`ddp`: each holds the whole model. `fsdp` (FSDP2): each holds a share of all weights,
    gradients and optimizer states. `deepspeed`: as its ZeRO stage says, 2 if not given."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The strategy's own configuration: of `fsdp` Transformers' `fsdp_config`
    (`reshard_after_forward`, `cpu_offload`, `transformer_layer_cls_to_wrap`), of `deepspeed` its
    JSON, as in `settings = { zero_optimization = { stage = 3 } }`."""


_FSDP = ("cpu_offload", "reshard_after_forward", "transformer_layer_cls_to_wrap")
_SET_ELSEWHERE = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "dtype",
    "fp16": "dtype",
}


def check_launch(launch: Launch, *, keep: str) -> None:
    """Refuse settings that the strategy has not, or that stand in attributes of their own.

    Raises:
        AttributeProblem: there are such.
    """
    for name in launch.settings:
        if launch.strategy == "deepspeed":
            if (own := _SET_ELSEWHERE.get(name)) is not None:
                what = f"`launch.settings.{name}` is what the attribute `{own}` says"
                raise AttributeProblem("launch", what, f"set `{own}` instead")
        elif launch.strategy == "ddp" or name not in _FSDP:
            has = f"it has {', '.join(f'`{each}`' for each in _FSDP)}"
            raise AttributeProblem(
                "launch",
                f"the strategy `{launch.strategy}` has no setting `{name}`",
                "it has none" if launch.strategy == "ddp" else has,
            )
    if keep == "best" and launch.strategy != "ddp":
        raise AttributeProblem(
            "keep",
            f'`keep = "best"` copies whole weights, and with `{launch.strategy}` no process has '
            "them",
            'remove it, or set `strategy = "ddp"`',
        )


def check_whole(launch: Launch) -> None:
    """Refuse a strategy that cuts weights, for those that are packed.

    Raises:
        AttributeProblem: it is such a one.
    """
    stage = launch.settings.get("zero_optimization", {}).get("stage", 2)
    if launch.strategy == "fsdp" or (launch.strategy == "deepspeed" and stage == 3):
        raise AttributeProblem(
            "launch",
            "`model` is quantized, and its packed weights cannot be shared out among processes",
            'set `strategy = "ddp"`: only the adapter is trained, and its states are small',
        )


_ROWS = "`fsdp` cannot share out single rows of an embedding, as `trainable_tokens` trains them"
_ROWS_FIX = 'set `strategy = "ddp"` or "deepspeed"; or train the embedding whole'


def check_rows_whole(launch: Launch) -> None:
    """Refuse a strategy that cuts embeddings, for those of which some rows are trained.

    Raises:
        AttributeProblem: it is such a one.
    """
    if launch.strategy == "fsdp":
        raise AttributeProblem("launch", _ROWS, _ROWS_FIX)


def require_rows_whole(launch: Launch | None, adapter: Path) -> None:
    """Refuse the same for an adapter that is continued.

    Raises:
        RuleError: E0952.
    """
    if launch is None or launch.strategy != "fsdp":
        return
    path = adapter / "adapter_config.json"
    if path.exists() and json.loads(path.read_bytes()).get("trainable_token_indices"):
        raise RuleError(_ROWS, code="E0952", where=Place(path=path.name), fix=_ROWS_FIX)


class Started(Protocol):
    """A training that is ready to be started."""

    @property
    def ctx(self) -> Context: ...
    @property
    def inputs(self) -> Any: ...
    @property
    def params(self) -> Any: ...


def is_launched() -> bool:
    """Say whether this process is one of several that train together."""
    return ENVIRONMENT in os.environ


def is_first() -> bool:
    """Say whether this process is the one that writes and tells."""
    return not is_launched() or os.environ["RANK"] == "0"


def done_in_processes(run: Started, rule: str) -> bool:
    """Train in several processes if that is asked for, and say whether it was.

    Raises:
        RuleError: E0951: a library or a GPU is missing; E0952: they do not run as asked for;
            E0953: one of them failed; whatever the rule itself raises in one of them.
    """
    launch: Launch | None = run.params.launch
    if launch is None or is_launched():
        return False
    _require_means(launch)
    folder = run.ctx.scratch / "launch"
    shutil.rmtree(folder, ignore_errors=True)  # what a kill left
    folder.mkdir()
    try:
        action = (rule, run.inputs, run.params, run.ctx.out, run.ctx.scratch, run.ctx.cpus)
        (folder / DOCUMENT_NAME).write_bytes(pickle.dumps(action))
        os.mkfifo(folder / EVENTS_NAME)
        _run(run.ctx, launch, folder, threads=run.params.threads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _require_means(launch: Launch) -> None:
    if launch.strategy == "deepspeed" and find_spec("deepspeed") is None:
        raise RuleError(
            "DeepSpeed is not installed",
            code="E0951",
            fix='pip install "ftbuild[deepspeed]"; or set `strategy = "fsdp"`, which needs nothing',
        )
    import torch

    count = torch.cuda.device_count()
    if torch.cuda.is_available() and count < launch.processes:
        raise RuleError(
            f"{launch.processes} processes need as many GPUs; this action has {count}",
            code="E0951",
            fix=f"set `resources = {{ gpus = {launch.processes} }}` on the target, or lower "
            "`processes`",
        )


def _run(ctx: Context, launch: Launch, folder: Path, *, threads: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=launch.processes,
        run_id="launch",
        rdzv_backend="c10d",
        # Not by name: in a sandbox there is no file that says what `localhost` is.
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=1,  # seconds that the others have once one failed; nothing to save then
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )
    listener = threading.Thread(target=_listen, args=(ctx, folder / EVENTS_NAME))
    listener.start()
    before = dict(os.environ)
    os.environ.update({ENVIRONMENT: str(folder), LAUNCHER: str(os.getpid())})
    # Where it is unset accelerate takes it from the number of cores, and sums follow from it.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # The processes are on this machine: gloo need not look its name up.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    try:
        command = ("-m", "ftbuild_rules.training._process")
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        raise _failure(folder, error, launch) from error
    finally:
        os.environ.clear()
        os.environ.update(before)
        with (folder / EVENTS_NAME).open("w") as pipe:
            pipe.write(json.dumps(["end"]) + "\n")
        listener.join()


def _listen(ctx: Context, pipe: Path) -> None:
    """Tell the context what the first process says, line by line, until the end."""
    with os.fdopen(os.open(pipe, os.O_RDWR), encoding="utf-8") as lines:
        for line in lines:
            name, *values = json.loads(line)
            if name == "end":
                return
            if name == "progress":
                step, steps, metrics = values
                ctx.progress(step, steps, **metrics)
            elif name == "facts":
                ctx.facts(**values[0])
            else:
                getattr(ctx, name)(*values)


def _failure(folder: Path, error: Any, launch: Launch) -> RuleError:
    """Return what the first process that failed said."""
    said = sorted(folder.glob("failed-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if said:
        problem = json.loads(said[0].read_bytes())
        where = problem.pop("where")
        return RuleError(**problem, where=None if where is None else Place(**where))
    rank, failure = error.get_first_failure()
    ended = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed"
    return RuleError(
        f"process {rank} of the {launch.processes} {ended}",
        code="E0953",
        fix="read why in `ftbuild log`; a kill by signal 9 is likely for want of memory",
    )
