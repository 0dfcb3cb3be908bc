"""`quantize`: a model in 4 or 8 bits, as plain Transformers loads it.

The files of the model are read and written tensor by tensor; the largest of them, and what
becomes of it, is all that is held in memory (GPTQ holds the calibration rows and one layer as
well). With nf4, fp4 and int8 the result is bit for bit what bitsandbytes makes while a model
loads, so it loads at once and everyone who needs it shares it.

`quantization.json` says what it was made from, how far each layer is from the original, and with
`eval_data` the perplexity of both.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Field,
    Inputs,
    Model,
    Params,
    Place,
    QuantizedModel,
    RuleError,
    Tokens,
    canonical_json,
    rule,
)
from ftbuild_rules.models._card import CARDS, data_card, read_card, write_card
from ftbuild_rules.models._files import INDEX_NAME, files_of, weight_files
from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec, read_tensors
from ftbuild_rules.models._torch import SAFETENSORS_NAMES, load_tensor
from ftbuild_rules.quantization import _bitsandbytes
from ftbuild_rules.quantization._dequantize import QUANTIZATION_NAME, stored_names
from ftbuild_rules.quantization._error import CHUNK, LayerError, measure, overall, stretches
from ftbuild_rules.quantization._gptq import Grid, pack, quantize_blocks
from ftbuild_rules.quantization._layers import empty_model, linear_weights
from ftbuild_rules.quantization._perplexity import eval_rows, perplexities
from ftbuild_rules.quantization._pins import LIBRARY
from ftbuild_rules.quantization._settings import quantized_config
from ftbuild_rules.quantization._tensor_file import TensorFile, header_room
from ftbuild_rules.training._shards import read_tokens, require_fit

_FLOATS = ("F64", "F32", "F16", "BF16")
_OWN = {
    "block_size": ("nf4", "fp4"),
    "double_quantization": ("nf4", "fp4"),
    "compute_dtype": ("nf4", "fp4"),
    "outlier_threshold": ("int8",),
    **dict.fromkeys(("bits", "group_size", "act_order", "damping", "samples"), ("gptq",)),
}


class QuantizeInputs(Inputs):
    """What to quantize."""

    model: Model
    """The model in full precision."""
    data: Tokens | None = None
    """With `gptq`: tokens whose rows the weights are calibrated on."""
    eval_data: Tokens | None = None
    """Tokens on which the perplexity is measured before and after; both models are held whole in
    float32 for that, one after the other."""


class QuantizeParams(Params):
    """How to quantize."""

    method: Literal["nf4", "fp4", "int8", "gptq"] = "nf4"
    """`nf4`, `fp4`: blocks of 4-bit values (bitsandbytes, QLoRA); `int8`: rows of 8-bit values
    (bitsandbytes, LLM.int8()); `gptq`: few bits, calibrated on `data` (arXiv:2210.17323)."""
    bits: Literal[2, 4, 8] = 4
    """Bits of a weight with `gptq`."""
    group_size: Literal[-1, 16, 32, 64, 128] = 128
    """Inputs that share a scale with `gptq`; -1: all of them."""
    act_order: bool = False
    """With `gptq`: round the inputs that are used most first; more exact, slower to use."""
    damping: float = Field(0.05, gt=0, lt=1)
    """With `gptq`: what is added to the diagonal of the Hessian, as a share of its mean."""
    samples: int = Field(128, ge=1)
    """With `gptq`: rows of `data` to calibrate on, the first ones."""
    eval_samples: int = Field(64, ge=1)
    """Rows of `eval_data` to measure on, the first ones."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Values that share a scale, for `nf4` and `fp4`."""
    double_quantization: bool = False
    """Keep the scales of `nf4` and `fp4` in 8 bits too: 0.37 bits less for each weight."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type that layers in `nf4` and `fp4` compute in."""
    outlier_threshold: float = Field(6.0, ge=0)
    """Columns whose inputs reach this size are computed in 16 bits with `int8`."""
    skip_modules: tuple[str, ...] = ()
    """Layers to leave as they are besides the output layer: their names, or how these end."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of all that is not quantized; `auto` leaves it as it is."""


def check(kinds: Mapping[str, tuple[str, ...]], params: QuantizeParams) -> None:
    """Refuse attributes of another method than the one that is asked for."""
    if ("data" in kinds) != (params.method == "gptq"):
        has = "data" in kinds
        raise AttributeProblem(
            "data" if has else "method",
            "`data` is what `gptq` is calibrated on"
            if has
            else "`gptq` needs rows to calibrate on",
            "remove it, or choose another `method`" if has else "name tokens as `data`",
        )
    if "eval_samples" in params.model_fields_set and "eval_data" not in kinds:
        raise AttributeProblem(
            "eval_samples", "has no rows to count", "name a `tokens` target as `eval_data`"
        )
    for name in params.model_fields_set:
        if params.method not in _OWN.get(name, (params.method,)):
            raise AttributeProblem(
                name,
                f"`{name}` belongs to {' and '.join(f'`{m}`' for m in _OWN[name])}, not to "
                f"`{params.method}`",
                "remove it, or choose another `method`",
            )


def pins(_: Mapping[str, tuple[str, ...]], params: Any) -> tuple[str, ...]:
    """Return torch and transformers, and bitsandbytes for all methods but `gptq`."""
    return ("torch", "transformers", *(() if params.method == "gptq" else (LIBRARY,)))


@rule(
    version=2,
    output=QuantizedModel,
    pins=pins,
    preload=("torch", "transformers", "bitsandbytes"),
    check=check,
    cpus="all",
)
def quantize(ctx: Context, inputs: QuantizeInputs, params: QuantizeParams) -> None:
    """Store the weights of a model's linear layers in 4 or 8 bits."""
    import torch

    torch.set_num_threads(1)  # the mean of the scales depends on it; values go in our own threads
    rows = None
    if inputs.eval_data is not None:  # before the work, so that what is wrong shows at once
        rows = eval_rows(inputs.eval_data, inputs.model, params.eval_samples)
    files = files_of(inputs.model.path)
    stored = {name: read_tensors(files[name], name) for name in weight_files(files)}
    specs = _distinct(stored)
    config = json.loads(files["config.json"].read_bytes())
    layers = linear_weights(empty_model(inputs.model.path), specs, skip_modules=params.skip_modules)
    work = _Work(ctx, params, layers.weights)
    if inputs.data is not None:
        work.calibrate(inputs.model, inputs.data, specs)
    sizes = {name: work.write_file(name, tensors) for name, tensors in stored.items()}
    for path in sorted(p for p in inputs.model.path.rglob("*") if p.is_file()):
        name = path.relative_to(inputs.model.path).as_posix()
        if path.suffix != ".safetensors" and name not in ("config.json", INDEX_NAME, *CARDS):
            ctx.link(path, name)
    if INDEX_NAME in files:
        weight_map = {tensor: file for file, found in sizes.items() for tensor in found}
        total = sum(size for found in sizes.values() for size in found.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (ctx.out / INDEX_NAME).write_bytes(canonical_json(index))
    (ctx.out / "config.json").write_bytes(canonical_json(quantized_config(config, params, layers)))
    error = overall(work.errors)
    about: dict[str, Any] = {
        "method": params.method,
        **({"bits": params.bits} if params.method == "gptq" else {}),
        "source": inputs.model.digest,
        "relative_error": error,
        "layers": {name: work.layer(specs[name]) for name in sorted(work.errors)},
    }
    (ctx.out / QUANTIZATION_NAME).write_bytes(canonical_json(about))
    figures: dict[str, Any] = {}
    if rows is not None:
        made = QuantizedModel(ctx.out, inputs.model.digest)
        figures = perplexities(ctx, rows, inputs.model, made)
        (ctx.out / QUANTIZATION_NAME).write_bytes(canonical_json({**about, **figures}))
    write_card(ctx.out, _card(inputs, params, figures))
    ctx.facts(
        **figures,
        quantized_weights=len(layers.weights),
        relative_error=error,
        bytes_before=sum(spec.size_bytes for spec in specs.values()),
        bytes_after=sum(size for found in sizes.values() for size in found.values()),
    )


def _card(
    inputs: QuantizeInputs, params: QuantizeParams, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was quantized how; the errors stand in quantization.json."""
    return {
        **({"figures": dict(figures)} if figures else {}),
        "method": "quantize",
        "parameters": params.model_dump(mode="json", exclude_defaults=True),
        "base": read_card(inputs.model),
        "data": [] if inputs.data is None else [data_card(inputs.data)],
    }


def _distinct(stored: Mapping[str, tuple[StoredTensor, ...]]) -> dict[str, TensorSpec]:
    """Return all tensors by name; each must stand in one file only.

    Raises:
        RuleError: E0924.
    """
    specs: dict[str, TensorSpec] = {}
    for file, tensors in stored.items():
        for tensor in tensors:
            if tensor.spec.name in specs:
                raise RuleError(
                    f"the weight `{tensor.spec.name}` stands in two files",
                    code="E0924",
                    where=Place(path=file),
                    fix="fetch or save the model again",
                )
            specs[tensor.spec.name] = tensor.spec
    return specs


class _Work:
    """The tensors of a model on their way from its files to those of the artifact."""

    def __init__(self, ctx: Context, params: QuantizeParams, layers: Mapping[str, bool]) -> None:
        self._ctx = ctx
        self._params = params
        self._layers = layers
        self.errors: dict[str, LayerError] = {}
        self._calibrated: dict[str, dict[str, Any]] = {}
        self._kept: dict[str, Any] = {}

    def calibrate(self, model: Model, data: Tokens, specs: Mapping[str, TensorSpec]) -> None:
        """Work out what stands for each weight by GPTQ, on the first rows of `data`.

        Raises:
            RuleError: E0971: a weight has a size that cannot be packed.
        """
        import torch
        from transformers import AutoModelForCausalLM

        params = self._params
        grid = Grid(params.bits, params.group_size, params.act_order, params.damping)
        names = [name for name in specs if name in self._layers]
        for name in names:
            _require_packable(name, specs[name].shape, self._layers[name], grid)
        rows = read_tokens(data, "sft", rule="quantize")
        require_fit(rows, model)
        ids = rows.table.column("input_ids").slice(0, params.samples).to_pylist()
        network = AutoModelForCausalLM.from_pretrained(
            model.path, dtype=torch.float32, local_files_only=True
        ).eval()
        for name, weight, rounded in quantize_blocks(network, names, ids, grid):
            self.errors[name] = measure(weight, stretches(rounded.value(grid.zero)))
            self._calibrated[name] = pack(name, rounded, grid)
            self._ctx.progress(len(self.errors), len(names))

    def layer(self, spec: TensorSpec) -> dict[str, Any]:
        """Return what is noted of a quantized weight: what it was, and how far it is off."""
        return {
            "dtype": SAFETENSORS_NAMES.get(self._params.dtype, spec.dtype),
            "shape": list(spec.shape),
            "transposed": self._layers[spec.name],
            **self.errors[spec.name].figures(),
        }

    def write_file(self, name: str, tensors: tuple[StoredTensor, ...]) -> dict[str, int]:
        """Write one file and return the sizes of its tensors."""
        names = [
            each
            for tensor in tensors
            for each in (tensor.spec.name, *stored_names(tensor.spec.name, self._params.method))
        ]
        with TensorFile(self._ctx.out / name, room=header_room(names)) as file:
            for tensor in tensors:
                if tensor.spec.name in self._layers:
                    file.add_all(self._quantized(tensor))
                    self._ctx.progress(len(self.errors), len(self._layers))
                else:
                    self._keep(file, tensor)
        return file.sizes

    def _keep(self, file: TensorFile, tensor: StoredTensor) -> None:
        wanted = SAFETENSORS_NAMES.get(self._params.dtype, tensor.spec.dtype)
        if tensor.spec.dtype not in _FLOATS or wanted == tensor.spec.dtype:
            file.add(tensor.spec, tensor.blocks())
        else:
            file.add_all({tensor.spec.name: self._load(tensor)})

    def _load(self, tensor: StoredTensor) -> Any:
        import torch

        value = load_tensor(tensor, self._memory("weight", tensor.spec.size_bytes))
        return (
            value if self._params.dtype == "auto" else value.to(getattr(torch, self._params.dtype))
        )

    def _quantized(self, tensor: StoredTensor) -> dict[str, Any]:
        """Return what stands for one weight, and remember its error.

        Raises:
            RuleError: E0971: it cannot be quantized.
        """
        name, params, threads = tensor.spec.name, self._params, self._ctx.cpus
        if name in self._calibrated:
            return self._calibrated[name]
        if tensor.spec.dtype not in ("F32", "F16", "BF16") and params.dtype == "auto":
            raise _unfit(name, f"its type is {tensor.spec.dtype}", 'set `dtype = "float32"`')
        weight = self._load(tensor)
        if self._layers[name]:
            weight = weight.T.contiguous()
        per_byte = 1 if params.method == "int8" else 2
        out = self._memory("numbers", -(-weight.numel() // per_byte))
        try:
            if params.method == "int8":
                values, scales = _bitsandbytes.quantize_8bit(weight, threads=threads, out=out)
                made = _bitsandbytes.stored_8bit(name, values, scales)
                again = _bitsandbytes.values_8bit(values, scales)
                step = weight.shape[1] * _bitsandbytes.rows_at_a_time(weight.shape[1])
            else:
                assert params.method != "gptq"  # its weights are in `_calibrated`
                numbers, state = _bitsandbytes.quantize_4bit(
                    weight,
                    params.method,
                    block_size=params.block_size,
                    double=params.double_quantization,
                    threads=threads,
                    out=out,
                )
                made = _bitsandbytes.stored_4bit(name, numbers, state)
                again, step = _bitsandbytes.values_4bit(numbers, state), CHUNK
        except _bitsandbytes.NotFinite as error:
            raise _unfit(
                name,
                "it holds NaN or infinite values, or values too large for the type",
                "mend the model: a weight that is not finite answers nothing",
            ) from error
        self.errors[name] = measure(weight, again, step=step, threads=threads)
        return made

    def _memory(self, use: str, size: int) -> Any:
        """Return at least so many bytes, the same ones for each tensor: new ones cost time."""
        import torch

        if use not in self._kept or self._kept[use].numel() < size:
            self._kept.pop(use, None)  # before there is another
            self._kept[use] = torch.empty(size, dtype=torch.uint8)
        return self._kept[use]


def _require_packable(name: str, shape: tuple[int, ...], is_transposed: bool, grid: Grid) -> None:
    if is_transposed:
        raise _unfit(name, "it is stored as (in, out)", 'choose `method = "nf4"`')
    size = 1 if grid.group_size == -1 else grid.group_size
    if shape[1] % max(size, 32) or shape[0] % 32:
        raise _unfit(
            name,
            f"its shape is {list(shape)}; both sizes must be multiples of 32, and the second of "
            "`group_size`",
            "choose a smaller `group_size`, or name the layer in `skip_modules`",
        )


def _unfit(name: str, why: str, fix: str) -> RuleError:
    return RuleError(
        f"the weight `{name}` cannot be quantized",
        code="E0971",
        where=Place(path=name),
        why=why,
        fix=fix,
    )
