"""What each of several processes holds: asked for, confirmed at the start, gathered at the end.

Libraries fall back without a word: `fsdp` on a CPU is plain DDP in accelerate 1.15, and a
launcher that is not understood is one process that trains alone. So before the first step the
processes are counted, the wrapper is looked at, and the weights that each process holds.
"""

import os
from typing import Any

from ftbuild.api import Context, RuleError
from ftbuild_rules.training._launch import Launch, is_first, is_launched


def strategy_arguments(launch: Launch | None) -> dict[str, Any]:
    """Return the settings of `TrainingArguments` that make a strategy."""
    if launch is None:
        return {}
    import torch

    on_cpu = not torch.cuda.is_available()
    if launch.strategy == "deepspeed":
        config = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto"},
            **launch.settings,
        }
        config.setdefault("zero_optimization", {"stage": 2})
        if not on_cpu:
            return {"deepspeed": config}
        # With `use_cpu` accelerate would leave DeepSpeed out; it chooses its device by itself.
        return {"deepspeed": config, "use_cpu": False, **_joined_for_deepspeed()}
    arguments: dict[str, Any] = {"ddp_backend": "gloo"} if on_cpu else {}
    if launch.strategy == "fsdp" and not on_cpu:
        shards = {"state_dict_type": "SHARDED_STATE_DICT"}  # of checkpoints
        arguments |= {"fsdp": True, "fsdp_config": {**launch.settings, **shards}}
    return arguments


def _joined_for_deepspeed() -> dict[str, Any]:
    """Let the processes on a CPU find each other; return the arguments that say so.

    Left to accelerate, each would train alone on all rows: it has no backend for this case.
    """
    import deepspeed.ops
    from accelerate import PartialState

    # It would be compiled at each first start, and sums follow from whether that works.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend="gloo")
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return {"accelerator_config": {"use_configured_state": True}}


def use_fsdp(trainer: Any, launch: Launch) -> None:
    """Make a trainer on a CPU shard, where accelerate's own settings leave that out."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    layers = launch.settings.get("transformer_layer_cls_to_wrap")
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=launch.settings.get("reshard_after_forward", True),
        cpu_offload=launch.settings.get("cpu_offload", False),
        transformer_cls_names_to_wrap=None if layers is None else list(layers),
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    state.distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def confirmation(ctx: Context, launch: Launch, trainer: Any) -> Any:
    """Return the callback that looks before the first step whether all is as asked for."""
    from transformers import TrainerCallback

    class Confirmation(TrainerCallback):
        """Records what the processes hold, or ends the training."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ctx.facts(launch=require_as_asked(launch, trainer))
            together = launch.processes * args.per_device_train_batch_size
            if missing := -len(trainer.train_dataset) % together:
                ctx.warn(
                    f"each epoch repeats {missing} rows, so that all {launch.processes} processes "
                    "have as many"
                )

    return Confirmation()


def require_as_asked(launch: Launch, trainer: Any) -> dict[str, Any]:
    """Return what the processes hold, if they train together in the way that was asked for.

    Raises:
        RuleError: E0952.
    """
    import torch

    joined = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    found = min(joined, trainer.args.world_size)
    if found != launch.processes:
        raise _other(launch, f"{joined} joined processes of which {found} share the rows")
    wrapper = type(trainer.model_wrapped).__name__
    if not _is_wrapped(launch, trainer.model_wrapped):
        raise _other(launch, f"`{wrapper}`")
    held, total = _held(launch, trainer)
    shares = _of_all(held, trainer.args.device)
    is_shared = _is_sharded(launch)
    # A share is rounded up for each weight, so it can be a little more than the exact one.
    too_much = max(shares) > total * 0.75 if is_shared else min(shares) < total
    if too_much or (is_shared and sum(shares) < total):
        raise _other(launch, f"`{wrapper}` with {shares} of {total} numbers in each process")
    kind = "optimizer" if launch.strategy == "deepspeed" and _stage(launch) < 3 else "weights"
    return {"wrapper": wrapper, "processes": found, f"{kind}_held": shares, f"{kind}": total}


def _other(launch: Launch, found: str) -> RuleError:
    return RuleError(
        f"asked for `{launch.strategy}` in {launch.processes} processes; this runs as {found}",
        code="E0952",
        why="the libraries fell back without a word",
        fix="this is no mistake of yours: run `ftbuild doctor` and report what it says",
    )


def _stage(launch: Launch) -> int:
    return int(launch.settings.get("zero_optimization", {"stage": 2}).get("stage", 0))


def _is_sharded(launch: Launch) -> bool:
    return launch.strategy == "fsdp" or (launch.strategy == "deepspeed" and _stage(launch) > 0)


def _is_wrapped(launch: Launch, model: Any) -> bool:
    if launch.strategy == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return isinstance(model, DistributedDataParallel)
    if launch.strategy == "fsdp":
        from torch.distributed.fsdp import FSDPModule

        return isinstance(model, FSDPModule)
    from deepspeed import DeepSpeedEngine

    return isinstance(model, DeepSpeedEngine) and model.zero_optimization_stage() == _stage(launch)


def _held(launch: Launch, trainer: Any) -> tuple[int, int]:
    """Return how many numbers this process holds of what is shared, and how many there are.

    That is the weights; with DeepSpeed below stage 3 what the optimizer has of the trained ones.
    """
    parameters = list(trainer.model_wrapped.parameters())
    if launch.strategy == "fsdp":
        return sum(_local(p).numel() for p in parameters), sum(p.numel() for p in parameters)
    if launch.strategy == "deepspeed" and _stage(launch) == 3:
        return sum(p.ds_tensor.numel() for p in parameters), sum(p.ds_numel for p in parameters)
    if launch.strategy == "deepspeed":
        groups = trainer.model_wrapped.optimizer.param_groups
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        return sum(p.numel() for group in groups for p in group["params"]), trained
    count = sum(p.numel() for p in parameters)
    return count, count


def _local(parameter: Any) -> Any:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _of_all(value: int, device: Any) -> list[int]:
    """Return the value of each process, by its number."""
    import torch

    own = torch.tensor([value], device=device)
    found = [torch.zeros_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, own)
    return [int(each.item()) for each in found]


def mean_of_all(value: Any) -> Any:
    """Return the mean of a tensor over all processes.

    Gradients are averaged over them; so a sum divided by the mean of the counts, and not by its
    own, is a mean over what all of them hold.
    """
    if not is_launched():
        return value
    import torch

    total = value.detach().clone().float()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def told_by_first(value: Any) -> Any:
    """Return the first process's value in all of them: what a clock or a disk says may differ."""
    if not is_launched():
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all() -> None:
    """Wait until each process has come here."""
    if is_launched():
        import torch

        torch.distributed.barrier()


def gathered(model: Any) -> dict[str, Any] | None:
    """Return what was trained, whole and on the CPU, by name; None where one process has it all.

    Weights that two layers share stand once, as in the files of a model.
    """
    if not is_launched():
        return None
    import torch

    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        is_parameter = isinstance(value, torch.nn.Parameter)
        if id(value) in seen or (is_parameter and not value.requires_grad):
            continue
        seen.add(id(value))
        whole = _whole(value)  # by all processes, in the same order
        if is_first():
            found[name] = whole.detach().cpu()
    return found


def _whole(value: Any) -> Any:
    if hasattr(value, "full_tensor"):
        return value.full_tensor()
    if hasattr(value, "_hp_mapping") or hasattr(value, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(value)
    return value
