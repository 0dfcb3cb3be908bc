"""How an adapter begins where that follows from more than the weights beside it.

CorDA and EVA look at what layers read while the model reads the first rows of `data`; LoftQ makes
up for what quantizing has changed, for which it needs the weights as they were.

- `corda`: the directions of a weight W that matter for these inputs are taken out of it and
  trained. With C = X X^T + damping of the inputs X of a layer, and U S V^T = W C, it begins with
  s B A = U_r S_r (V^T C^-1)_r. Source: Yang et al. 2024, arXiv:2406.05223, eq. 2 and 3 (its
  instruction-previewed mode); PEFT's `preprocess_corda`.
- `eva`: A holds the first principal components of X, B is zero. Source: Paischer et al. 2024,
  arXiv:2410.07170, section 3.2, without its redistribution of ranks; PEFT's
  `initialize_lora_eva_weights`.
- `loftq`: with Q the quantized weight and U S V^T = W - Q it begins with s B A = U_r S_r V_r^T,
  so that Q + s B A is as close to W as its rank allows. Source: Li et al. 2023, arXiv:2310.08659,
  algorithm 1 with T = 1, as Q is an artifact that stays; PEFT's `replace_lora_weights_loftq`.
"""

from collections.abc import Iterator
from typing import Any

from ftbuild.api import Model, Place, RuleError
from ftbuild_rules.quantization._load import HEAD_NAMES, load_network
from ftbuild_rules.training._lora import Lora, lora_config
from ftbuild_rules.training._run import Run
from ftbuild_rules.training._shards import TokenRows

_MASKED = -100
ROWS = 256
"""The rows that `corda` and `eva` look at if not said otherwise: as many as CorDA's authors did."""
Row = tuple[list[int], list[int]]
"""The ids of a row, and its labels."""


def weigh_directions(run: Run, network: Any) -> None:
    """Find for each layer which directions matter; where PEFT makes the adapter, it takes them.

    Before there is an adapter, if it begins by `corda`.
    """
    lora = run.params.lora
    if lora is None or lora.init != "corda":
        return
    import torch
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    def read() -> None:
        for ids, _ in _rows(run.data, lora):
            with torch.no_grad():  # one by one: PEFT's hook knows no padding
                network(input_ids=torch.tensor([ids], device=network.device), use_cache=False)

    config = lora_config(lora, heads=HEAD_NAMES)  # a head of its own is no layer to adapt
    config = _maybe_include_all_linear_layers(config, network)
    was_training = network.training
    preprocess_corda(network, config, run_model=read)
    network.train(was_training)


def begin(run: Run, policy: Any) -> None:
    """Give a new adapter the values it begins with, where PEFT alone has not done so.

    Raises:
        RuleError: E0918: the rows have too few tokens for `eva`.
    """
    lora = run.params.lora
    if lora is None:
        return
    if lora.init == "eva":
        _begin_with_components(run, policy, lora)
    elif lora.init == "loftq":
        whole = run.inputs.quantized_from
        assert whole is not None  # `check` has seen to it
        _begin_with_errors(policy, whole)


def _begin_with_components(run: Run, policy: Any, lora: Lora) -> None:
    from peft import EvaConfig
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    config = policy.peft_config["default"]
    written = config.target_modules, config.alpha_pattern
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    batches = _batches(run, lora, policy.device)
    initialize_lora_eva_weights(
        policy,
        batches,
        # With its labels a batch would be judged too, by whatever head there is.
        forward_fn=lambda model, batch: model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ),
        gather_distributed_inputs=False,  # each process reads the same rows
        show_progress_bar=False,
    )
    # PEFT lists each layer; all have kept their ranks, so what is written stays as short as it was.
    config.target_modules, config.alpha_pattern, config.rank_pattern = *written, {}
    config.init_lora_weights, config.eva_config = True, None


def _batches(run: Run, lora: Lora, device: Any) -> list[dict[str, Any]]:
    """Return the rows, so many in one batch that it has the tokens that one step of EVA needs.

    Raises:
        RuleError: E0918: they have fewer.
    """
    batches: list[list[Row]] = [[]]
    for row in _rows(run.data, lora):
        if _count(batches[-1]) >= 4 * lora.r:
            batches.append([])
        batches[-1].append(row)
    if len(batches) > 1 and _count(batches[-1]) < lora.r:
        batches[-2] += batches.pop()
    if (found := _count(batches[0])) < lora.r:
        label = run.data.label
        raise RuleError(
            f'`lora.init = "eva"` with `r = {lora.r}` needs as many tokens that are trained on; '
            f"the first {len(batches[0])} rows of `{label}` have {found}",
            code="E0918",
            where=Place(path=label),
            fix="raise `lora.init_rows`, or lower `lora.r`",
        )
    return [_padded(batch, device) for batch in batches]


def _count(rows: list[Row]) -> int:
    return sum(label != _MASKED for _, labels in rows for label in labels)


def _padded(rows: list[Row], device: Any) -> dict[str, Any]:
    import torch

    length = max(len(ids) for ids, _ in rows)

    def tensor(values: list[list[int]], padding: int) -> Any:
        padded = [[*each, *[padding] * (length - len(each))] for each in values]
        return torch.tensor(padded, device=device)

    return {
        "input_ids": tensor([ids for ids, _ in rows], 0),
        "attention_mask": tensor([[1] * len(ids) for ids, _ in rows], 0),
        "labels": tensor([labels for _, labels in rows], _MASKED),
    }


def _rows(data: TokenRows, lora: Lora) -> Iterator[Row]:
    """Yield the first rows; of a pair the chosen side, as that is what the model is to write."""
    table = data.table.slice(0, lora.init_rows or ROWS)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    if "input_ids" in columns:
        ids = columns["input_ids"]
        # Of steps all is read, though only their ends are judged.
        labels = columns["labels"] if data.form == "sft" else ids
        lengths = columns.get("seq_lengths") or [[len(row)] for row in ids]
        for row in zip(ids, labels, lengths, strict=True):
            yield from _documents(*row)
        return
    name = next((n for n in ("chosen_ids", "completion_ids") if n in columns), None)
    for number, prompt in enumerate(columns["prompt_ids"]):
        if name is None:  # prompts alone
            yield prompt, prompt
        else:
            completion = columns[name][number]
            yield prompt + completion, [_MASKED] * len(prompt) + completion


def _documents(ids: list[int], labels: list[int], lengths: list[int]) -> Iterator[Row]:
    """Yield the documents of a row, each by itself."""
    end = 0
    for length in lengths:
        start, end = end, end + length
        yield ids[start:end], labels[start:end]


def _begin_with_errors(policy: Any, whole: Model) -> None:
    """Make up for what quantizing changed in each adapted layer, as far as its rank allows."""
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    network = load_network(AutoModelForCausalLM, whole, dtype="auto", attn_implementation="eager")
    prefix = "base_model.model."
    for name, layer in policy.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        quantized = _matrix(layer.get_base_layer())
        before = _matrix(network.get_submodule(name.removeprefix(prefix)))
        error = before.to(quantized.device) - quantized
        u, s, vh = torch.linalg.svd(error, full_matrices=False)
        rank, scale = layer.r["default"], layer.scaling["default"]
        root = torch.sqrt(s[:rank] / scale)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a.data = (root[:, None] * vh[:rank]).to(a.dtype).contiguous()
        b.data = (u[:, :rank] * root).to(b.dtype).contiguous()


def _matrix(layer: Any) -> Any:
    """Return the weight of a layer in float32, as (out, in)."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight = dequantize_module_weight(layer).detach().float()
    return weight.T if isinstance(layer, Conv1D) else weight
