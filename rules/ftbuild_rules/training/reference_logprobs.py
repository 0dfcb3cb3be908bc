"""`reference_logprobs`: what the reference model says of preference tokens, computed once.

A sweep over betas and losses of `dpo`, `ipo` and `kto` shares it, and none of its trainings holds
a second model in memory.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftbuild.api import (
    Adapter,
    Context,
    Field,
    File,
    Inputs,
    Model,
    Params,
    QuantizedModel,
    RuleError,
    Tokens,
    canonical_json,
    rule,
)
from ftbuild_rules.data._arrow import shard_name, write_batch
from ftbuild_rules.quantization._pins import LIBRARY, is_quantized
from ftbuild_rules.training import _policy, _run
from ftbuild_rules.training._lora import require_base
from ftbuild_rules.training._machine import require_machine
from ftbuild_rules.training._own import next_token_logps, padded
from ftbuild_rules.training._reference import INDEX_NAME, KL_NAME, Reference
from ftbuild_rules.training._settings import PRELOAD
from ftbuild_rules.training._shards import TokenRows, pair_or_single, read_tokens, require_fit
from ftbuild_rules.training._unpaired import take_apart, unpaired_dataset

_COMPLETIONS = {"chosen_ids": "chosen_", "rejected_ids": "rejected_", "completion_ids": ""}
"""The columns of completions, and how the names of their log-probabilities begin."""
_Pair = tuple[list[int], list[int]]
"""The ids of a prompt and of a completion."""


class ReferenceLogprobsInputs(Inputs):
    """Whose log-probabilities, of what."""

    model: Model | QuantizedModel
    """The base model."""
    adapter: Adapter | None = None
    """An adapter of `model`: the one that the training continues."""
    data: Tokens
    """Rows of the form `preference` or `unpaired`."""


class ReferenceLogprobsParams(Params):
    """How to compute them."""

    batch_size: int = Field(8, ge=1)
    """Completions computed at a time."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type to compute in; that of the training."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention; that of the training."""
    kl_batch_size: int | None = Field(None, ge=2)
    """For `kto`: its `batch_size`, times its `launch.processes` if it has some. Its KL term
    compares prompts with the completions of other rows, and which ones follows from that and from
    `seed`."""
    seed: int = Field(42, ge=0, lt=2**32)
    """For `kto`: its `seed`."""
    threads: int = Field(1, ge=1)
    """CPU threads; their number changes the last digits of sums."""


def pins(kinds: Mapping[str, tuple[str, ...]], params: Any) -> tuple[str, ...]:
    """Return torch, transformers, peft; bitsandbytes and flash-attn where a target uses them."""
    used = {
        LIBRARY: is_quantized(kinds),
        "flash-attn": params.attention == "flash_attention_2",
    }
    return ("torch", "transformers", "peft", *(name for name in used if used[name]))


@rule(
    version=1,
    output=File,
    pins=pins,
    preload=PRELOAD,
    gpus=1,
)
def reference_logprobs(
    ctx: Context, inputs: ReferenceLogprobsInputs, params: ReferenceLogprobsParams
) -> None:
    """Compute the log-probabilities that a reference gives to the completions of tokens.

    With `adapter` that of the model with it, else of the model alone.
    """
    require_machine(params)
    if inputs.adapter is not None:
        require_base(inputs.adapter, inputs.model)
    form = pair_or_single(inputs.data)
    data = read_tokens(inputs.data, form, rule="reference_logprobs")
    require_fit(data, inputs.model)
    _run.make_deterministic(params)
    batches = _Batches(ctx, _network(inputs, params), params)
    _write(ctx, shard_name(0, 1), _sums(data, batches))
    kl = None
    if params.kl_batch_size is not None:
        kl = {"batch_size": params.kl_batch_size, "seed": params.seed}
        rows = unpaired_dataset(data, take_apart(data, **kl))
        mismatched = zip(rows["prompt_ids"], rows["KL_completion_ids"], strict=True)
        logps = batches.token_logps(list(mismatched))
        _write(ctx, KL_NAME, {"kl_logps": [math.fsum(row) for row in logps]})
    about = Reference.of((inputs.model, inputs.adapter, inputs.data), dtype=params.dtype, kl=kl)
    (ctx.out / INDEX_NAME).write_bytes(canonical_json(asdict(about)))
    ctx.facts(rows=data.num_rows)


def _network(inputs: ReferenceLogprobsInputs, params: ReferenceLogprobsParams) -> Any:
    import torch

    dtype = getattr(torch, params.dtype)
    network = _policy.load_base(inputs.model, dtype, params.attention)
    if inputs.adapter is not None:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, inputs.adapter.path)
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _sums(data: TokenRows, batches: "_Batches") -> dict[str, list[float]]:
    """Return the columns: of each completion the sum, and that over as many as the shorter has."""
    prompts = data.table.column("prompt_ids").to_pylist()
    logps = {}
    for name in (name for name in data.table.column_names if name in _COMPLETIONS):
        completions = data.table.column(name).to_pylist()
        pairs = list(zip(prompts, completions, strict=True))
        logps[_COMPLETIONS[name]] = batches.token_logps(pairs)
    columns = {f"{side}logps": [math.fsum(row) for row in rows] for side, rows in logps.items()}
    if len(logps) > 1:
        shared = [min(map(len, sides)) for sides in zip(*logps.values(), strict=True)]
        for side, rows in logps.items():
            columns[f"{side}shared_logps"] = [
                math.fsum(row[:length]) for row, length in zip(rows, shared, strict=True)
            ]
    return columns


@dataclass(frozen=True)
class _Batches:
    """A network that is asked for completions, a batch at a time."""

    ctx: Context
    network: Any
    params: ReferenceLogprobsParams

    def token_logps(self, pairs: list[_Pair]) -> list[list[float]]:
        """Return log p of each token of each completion, given all before it, in nats."""
        import torch

        found: list[list[float]] = []
        device = self.network.device
        coarse = self.params.dtype != "float32"
        dtype = getattr(torch, self.params.dtype)
        for start in range(0, len(pairs), self.params.batch_size):
            batch = pairs[start : start + self.params.batch_size]
            rows = [[*prompt, *completion] for prompt, completion in batch]
            ids_BT = padded(rows, 0).to(device)
            seen_BT = padded([[1] * len(row) for row in rows], 0).to(device)
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=coarse):
                logits = self.network(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False)
                logps_BS = next_token_logps(logits.logits, ids_BT).tolist()
            for row, (prompt, completion), logps in zip(rows, batch, logps_BS, strict=True):
                # The first token of a sequence is predicted from nothing: it has no place here.
                first = max(len(prompt), 1) - 1
                found.append(logps[first : len(row) - 1])
                assert len(found[-1]) == len(completion) - (not prompt)
            self.ctx.progress(len(found), len(pairs))
        return found


def _write(ctx: Context, name: str, columns: dict[str, list[float]]) -> None:
    """Write numbers as one file.

    Raises:
        RuleError: E0910: one is NaN or infinite.
    """
    import pyarrow as pa

    for column, values in columns.items():
        wrong = next((row for row, value in enumerate(values) if not math.isfinite(value)), None)
        if wrong is not None:
            raise RuleError(
                f"`{column}` is {values[wrong]} in row {wrong}",
                code="E0910",
                fix="look at the model: it gives no probability to a token of that row",
            )
    arrays = [pa.array(values, pa.float32()) for values in columns.values()]
    path = ctx.out / name
    path.parent.mkdir(exist_ok=True)
    write_batch(path, pa.RecordBatch.from_arrays(arrays, names=list(columns)))
