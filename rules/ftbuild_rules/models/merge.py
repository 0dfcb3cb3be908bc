"""`merge`: fold a LoRA adapter into its base model.

The files of the base are read and written tensor by tensor: a tensor that the adapter does not
touch is copied byte for byte, one that it touches is `_adapter_delta`'s sum, and the largest of
them is all that is held in memory. The result equals PEFT's `merge_and_unload` bit for bit.

With `check_logits` the whole model is loaded in float32, first with the adapter beside it and
then merged, after the files are written: a peak of four bytes a parameter. A machine that cannot
hold that sets it to false; the files are the same.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ftbuild.api import (
    Adapter,
    Context,
    Inputs,
    Model,
    Params,
    QuantizedModel,
    RuleError,
    canonical_json,
    rule,
)
from ftbuild_rules.models._adapter_delta import Deltas, apply_delta, read_deltas, require_places
from ftbuild_rules.models._files import INDEX_NAME, TEMPLATE_NAME, files_of, weight_files
from ftbuild_rules.models._logits import compare_logits
from ftbuild_rules.models._safetensors import (
    StoredTensor,
    TensorSpec,
    read_tensors,
    write_tensors,
)
from ftbuild_rules.models._torch import tensor_bytes
from ftbuild_rules.quantization._dequantize import in_full
from ftbuild_rules.training._lora import require_base

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_OUTPUT = "lm_head.weight"
# Half the distance between neighbouring values just above 1: the error of one rounding. Logits
# are computed in float32, where the order of the sums matters more than the weights' last bit.
_ROUNDING = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-20, "F64": 2.0**-20}


class MergeInputs(Inputs):
    """A pair that belongs together."""

    model: Model | QuantizedModel
    """The base model. For an adapter of a quantized one either that, and the result is what was
    trained, or the model in full precision that it was made from."""
    adapter: Adapter
    """Trained on `model`: it carries the digest of its base."""


class MergeParams(Params):
    """What to check."""

    check_logits: bool = True
    """Compare the logits of the merged model with those of base and adapter on a few prompts,
    and fail if they differ by more than rounding explains."""


@rule(
    version=1,
    output=Model,
    pins=("torch",),
    preload=("torch", "transformers", "peft"),
)
def merge(ctx: Context, inputs: MergeInputs, params: MergeParams) -> None:
    """Fold an adapter into its base model, tensor by tensor, in the base's own type."""
    require_base(inputs.adapter, inputs.model, or_its_source=True)
    inputs = inputs.model_copy(update={"model": in_full(inputs.model, ctx.scratch / "base")})
    deltas = read_deltas(inputs.adapter)
    import torch

    torch.set_num_threads(1)  # sums of matrix products could depend on it
    files = files_of(inputs.model.path)
    stored = {name: read_tensors(files[name]) for name in weight_files(files)}
    config = json.loads(files["config.json"].read_bytes())
    added = _untied(deltas, stored, config)
    specs = {t.spec.name: t.spec for tensors in stored.values() for t in tensors}
    require_places(deltas, specs, new={spec.name for spec in added.values()})
    for number, (name, tensors) in enumerate(stored.items(), start=1):
        if name in added or any(t.spec.name in deltas.by_name for t in tensors):
            _write_file(ctx, name, tensors, deltas, added.get(name))
        else:
            ctx.link(files[name], name)
        ctx.progress(number, len(stored))
    _put_the_rest(ctx, inputs, config, added)
    facts: dict[str, Any] = {"merged_weights": len(deltas.by_name)}
    if params.check_logits:
        facts.update(_check_logits(ctx, inputs, specs.values(), config))
    ctx.facts(**facts)


def _untied(
    deltas: Deltas, stored: Mapping[str, tuple[StoredTensor, ...]], config: dict[str, Any]
) -> dict[str, TensorSpec]:
    """Return the output layer that has to be written of its own, by the file it goes to.

    A model may use its input embedding as output layer too. An adapter that changes one of
    them and not the other makes two weights of the one.
    """
    changed = [name for name in deltas.by_name if name.endswith((*_EMBEDDINGS, _OUTPUT))]
    names = {t.spec.name for tensors in stored.values() for t in tensors}
    is_tied = config.get("tie_word_embeddings", False) and _OUTPUT not in names
    if not changed or not is_tied or deltas.keeps_tying:
        return {}
    for name, tensors in stored.items():
        for tensor in tensors:
            if tensor.spec.name.endswith(_EMBEDDINGS):
                config["tie_word_embeddings"] = False
                return {name: TensorSpec(_OUTPUT, tensor.spec.dtype, tensor.spec.shape)}
    raise RuleError(
        f"the adapter changes `{changed[0]}`, which the model shares between input and output",
        code="E0931",
        fix="train without `modules_to_save` and without adapting embeddings",
    )


def _write_file(
    ctx: Context,
    name: str,
    tensors: tuple[StoredTensor, ...],
    deltas: Deltas,
    added: TensorSpec | None,
) -> None:
    """Write one file of the merged model; `added` goes right behind the input embedding."""
    plan: list[tuple[TensorSpec, StoredTensor]] = []
    for tensor in tensors:
        plan.append((tensor.spec, tensor))
        if added is not None and tensor.spec.name.endswith(_EMBEDDINGS):
            plan.append((added, tensor))

    def values() -> Iterator[Iterable[Any]]:
        for spec, tensor in plan:
            delta = deltas.by_name.get(spec.name)
            if delta is None:
                yield tensor.blocks()
            else:
                yield [tensor_bytes(apply_delta(delta, tensor, spec))]

    write_tensors(ctx.out / name, [spec for spec, _ in plan], values())


def _put_the_rest(
    ctx: Context, inputs: MergeInputs, config: dict[str, Any], added: Mapping[str, TensorSpec]
) -> None:
    """Put tokenizer, template and settings beside the weights."""
    model = inputs.model
    changed = ("config.json", INDEX_NAME) if added else ()
    for path in sorted(p for p in model.path.rglob("*") if p.is_file()):
        name = path.relative_to(model.path).as_posix()
        if path.suffix != ".safetensors" and name not in changed:
            ctx.link(path, name)
    template = inputs.adapter.path / TEMPLATE_NAME
    if template.exists():  # it was trained with another one than the model's
        (ctx.out / TEMPLATE_NAME).unlink(missing_ok=True)
        ctx.link(template, TEMPLATE_NAME)
    if not added:
        return
    (ctx.out / "config.json").write_bytes(canonical_json(config))
    if (model.path / INDEX_NAME).exists():
        index = json.loads((model.path / INDEX_NAME).read_bytes())
        for name, spec in added.items():
            index["weight_map"][spec.name] = name
            index.setdefault("metadata", {}).pop("total_parameters", None)
            index["metadata"]["total_size"] = sum(
                t.spec.size_bytes
                for file in set(index["weight_map"].values())
                for t in read_tensors(ctx.out / file)
            )
        (ctx.out / INDEX_NAME).write_bytes(canonical_json(index))


def _check_logits(
    ctx: Context, inputs: MergeInputs, specs: Collection[TensorSpec], config: Mapping[str, Any]
) -> dict[str, float]:
    """Measure how far the merged logits are off.

    Raises:
        RuleError: E0932: further than rounding explains.
    """
    assert isinstance(inputs.model, Model)  # `in_full` has seen to it
    found = compare_logits(inputs.model, inputs.adapter, ctx.out)
    layers = next(config[name] for name in ("num_hidden_layers", "n_layer") if name in config)
    bound = logit_bound({spec.dtype for spec in specs}, int(layers))
    if not found.error <= bound:
        raise RuleError(
            f"the merged model's logits differ from the unmerged one's by {found.error:.2g} of "
            f"their norm; rounding explains {bound:.2g}",
            code="E0932",
            fix="compare answers of the adapter and of the merged model by `generate`; "
            "`check_logits = false` merges without this check",
        )
    if found.error > found.effect / 2:
        ctx.warn(
            f"merging into {'/'.join(sorted({spec.dtype for spec in specs}))} rounds away much of "
            f"the adapter: it moves the logits by {found.effect:.2g} of their norm, rounding by "
            f'{found.error:.2g}; a `base_model` with `dtype = "float32"` keeps it'
        )
    return {
        "logit_error": found.error,
        "logit_error_bound": bound,
        "adapter_effect": found.effect,
    }


def logit_bound(dtypes: set[str], num_layers: int) -> float:
    """Return how far logits may be off when each weight is rounded once more.

    The errors of the layers are independent, so they add up like a random walk; SmolLM2-135M in
    bfloat16 shows 0.005 to 0.04, where the walk gives 0.021; the factor 8 is room for models
    that amplify them. A wrong scale or a forgotten layer shows more.
    """
    coarsest = max(_ROUNDING.get(dtype, 0.0) for dtype in dtypes)
    return 8 * math.sqrt(num_layers) * coarsest
