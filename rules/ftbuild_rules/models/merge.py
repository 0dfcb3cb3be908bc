"""`merge`: fold adapters into their base model, or models of one shape into one.

[merge.helpful_and_polite]
model = "smol"
adapters = ["helpful", "polite"]
weights = [0.7, 0.3]
method = "ties"
density = 0.5

The files of the base are read and written tensor by tensor: a tensor that nothing touches is
copied byte for byte, one that is touched is a sum worked out in pieces of rows, and a piece is all
that is held in memory. With one adapter the result equals PEFT's `merge_and_unload`.

`check_logits` reads the files three times more, piece by piece as the layers run: the base with
the adapter, the base, the merged model. Where it cannot (own code, an adapter of fused experts,
embeddings of another size), it holds the whole model in float32, four bytes a parameter. A machine
that cannot hold that sets it to false; the weights are the same.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ftbuild.api import (
    TOKENIZER,
    Adapter,
    AttributeProblem,
    Context,
    Field,
    Inputs,
    Model,
    Params,
    QuantizedModel,
    RuleError,
    canonical_json,
    rule,
)
from ftbuild_rules.models._adapter_delta import Delta, Deltas, read_deltas
from ftbuild_rules.models._card import CARDS, read_card, write_card
from ftbuild_rules.models._combine import Method, Part, Recipe, Values, merged_pieces
from ftbuild_rules.models._ends import EMBEDDINGS, Ends, ends
from ftbuild_rules.models._files import INDEX_NAME, files_of, weight_files
from ftbuild_rules.models._logits import compare_logits, logit_bound
from ftbuild_rules.models._places import place
from ftbuild_rules.models._pool import Slot, Task, run_all
from ftbuild_rules.models._safetensors import (
    StoredTensor,
    TensorSpec,
    read_tensors,
    write_head,
)
from ftbuild_rules.quantization._dequantize import in_full
from ftbuild_rules.quantization._pins import with_quantized
from ftbuild_rules.training._lora import require_base


class MergeInputs(Inputs):
    """What belongs together."""

    model: Model | QuantizedModel
    """The base model. For an adapter of a quantized one either that, and the result is what was
    trained, or the model in full precision that it was made from."""
    adapter: Adapter | None = None
    """Trained on `model`: it carries the digest of its base."""
    adapters: tuple[Adapter, ...] = ()
    """Several, all trained on `model`; one may continue another."""
    models: tuple[Model, ...] = ()
    """Other models of the same shape, such as `model` with all weights trained."""


class MergeParams(Params):
    """How several become one, and what to check."""

    method: Method = "linear"
    """`linear` sums what each adds to `model`; `ties` keeps the largest values of each and the
    signs of the majority; `dare_linear` and `dare_ties` keep random ones, scaled up; `slerp` goes
    along the arc from `model` to one other model."""
    weights: tuple[float, ...] = ()
    """The weight of each of `adapters`, then of `models`; needed where there are several. For
    `slerp` how far to go: 0 is `model`, 1 the other."""
    density: float = Field(1.0, gt=0, le=1)
    """Share of the values of each that `ties` and `dare` keep."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of the values that `dare` keeps."""
    check_logits: bool = True
    """Compare the logits of the merged model with those of base and adapters on a few prompts,
    and fail if they differ by more than rounding explains. Only a linear sum of adapters can be
    compared."""


def check(kinds: Mapping[str, tuple[str, ...]], params: MergeParams) -> None:
    """Refuse a target that merges nothing, or whose parts and weights do not go together."""
    several = len(kinds.get("adapters", ())) + len(kinds.get("models", ()))
    if "adapter" in kinds and several:
        raise AttributeProblem(
            "adapter", "stands beside several", "put all of them into `adapters`"
        )
    if "adapter" not in kinds and not several:
        raise AttributeProblem(
            "adapter",
            "there is nothing to merge into `model`",
            'write `adapter = "…"`, or `adapters = ["…", "…"]` with `weights`',
        )
    _check_weights(kinds, params, several)


def _check_weights(kinds: Mapping[str, tuple[str, ...]], params: MergeParams, several: int) -> None:
    if params.method == "slerp" and (several != 1 or "models" not in kinds):
        raise AttributeProblem("method", "`slerp` is for two models", 'write `models = ["…"]`')
    count = len(params.weights)
    if several and count != several and (several > 1 or count or params.method == "slerp"):
        example = ", ".join(["0.5"] * several)
        raise AttributeProblem(
            "weights",
            f"there are {several} to merge and {count} weights",
            f"write `weights = [{example}]`",
        )
    if "adapter" in kinds and (count or params.method != "linear"):
        raise AttributeProblem(
            "weights" if count else "method",
            "has no meaning for one adapter",
            "leave it out, or name several in `adapters`",
        )
    if params.density < 1 and params.method in ("linear", "slerp"):
        raise AttributeProblem(
            "density", f"has no meaning for `{params.method}`", "leave it out, or use `ties`"
        )


@rule(
    version=3,
    output=Model,
    pins=with_quantized("torch", "peft"),
    preload=("torch", "transformers", "peft"),
    check=check,
    cpus="all",
)
def merge(ctx: Context, inputs: MergeInputs, params: MergeParams) -> None:
    """Fold adapters into their base model, or models into one, tensor by tensor.

    The result has the base's own type.
    """
    adapters = (inputs.adapter,) if inputs.adapter is not None else inputs.adapters
    for adapter in adapters:
        require_base(adapter, inputs.model, or_its_source=True)
    model = in_full(inputs.model, ctx.scratch / "base")
    deltas = [read_deltas(adapter) for adapter in adapters]
    import torch

    torch.set_num_threads(1)  # sums of matrix products could depend on it
    files = files_of(model.path)
    stored = {name: read_tensors(files[name]) for name in weight_files(files)}
    config = json.loads(files["config.json"].read_bytes())
    changed = ends(deltas, stored, config)
    specs = {t.spec.name: t.spec for tensors in stored.values() for t in tensors}
    recipe = _recipe(inputs, params, deltas, specs, config, changed)
    _put_weights(ctx, files, stored, recipe, changed)
    _put_the_rest(ctx, model, adapters, config, changed)
    merged = {name for part in recipe.parts for name in part.by_name}
    facts: dict[str, Any] = {"merged_weights": len(merged)}
    if params.check_logits and _is_comparable(recipe, inputs):
        weighted = list(zip(adapters, (part.weight for part in recipe.parts), strict=True))
        facts.update(_check_logits(ctx, model, weighted, specs.values(), config))
    write_card(ctx.out, _card(inputs, adapters, params, facts))
    ctx.facts(**facts)


def _recipe(
    inputs: MergeInputs,
    params: MergeParams,
    deltas: list[Deltas],
    specs: Mapping[str, TensorSpec],
    config: Mapping[str, Any],
    changed: Ends,
) -> Recipe:
    """Return all parts, each by the names of the base's files, with their weights."""
    parts = [place(each, specs, config, new=changed.new) for each in deltas]
    parts += [_other_model(model, specs) for model in inputs.models]
    weights = params.weights or (1.0,) * len(parts)
    return Recipe(
        [Part(by_name, weight) for by_name, weight in zip(parts, weights, strict=True)],
        params.method,
        params.density,
        params.seed,
    )


def _other_model(model: Model, specs: Mapping[str, TensorSpec]) -> dict[str, Delta]:
    """Return the weights of another model as what takes the place of the base's.

    Raises:
        RuleError: E0935: it is of another shape.
    """
    files = files_of(model.path)
    other = {t.spec.name: t for name in weight_files(files) for t in read_tensors(files[name])}
    for name in sorted({*specs, *other}):
        one, two = specs.get(name), other[name].spec if name in other else None
        if one is None or two is None or one.shape != two.shape:
            raise RuleError(
                f"the model `{model.label or 'models'}` has another shape than `model`",
                code="E0935",
                why=f"`{name}` is {_said(two)} there and {_said(one)} in `model`",
                fix="merge models that were trained from one base",
            )
    return {name: Delta(replacement=tensor) for name, tensor in other.items()}


def _said(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else str(spec.shape)


def _put_weights(
    ctx: Context,
    files: Mapping[str, Path],
    stored: Mapping[str, tuple[StoredTensor, ...]],
    recipe: Recipe,
    changed: Ends,
) -> None:
    """Write the files that hold weights of the merged model, and link those that stay the same."""
    queues = []
    for name, tensors in stored.items():
        if name in changed.added or any(recipe.changes(t.spec.name) for t in tensors):
            queues.append(list(_writing(ctx.out / name, tensors, recipe, changed)))
        else:
            ctx.link(files[name], name)
    # What draws random values does so in turn.
    workers = ctx.cpus if recipe.method == "linear" else 1
    num_tasks = sum(map(len, queues))
    for number, _ in enumerate(run_all(queues, workers=workers), start=1):
        ctx.progress(number, num_tasks)


def _writing(
    path: Path, tensors: tuple[StoredTensor, ...], recipe: Recipe, changed: Ends
) -> Iterator[Task]:
    """Begin a file of the merged model; yield what is to be done until it is whole.

    A new output layer goes behind the embedding.
    """
    added = changed.added.get(path.name)
    plan: list[tuple[TensorSpec, StoredTensor]] = []
    for tensor in tensors:
        plan.append((changed.resized.get(tensor.spec.name, tensor.spec), tensor))
        if added is not None and tensor.spec.name.endswith(EMBEDDINGS):
            plan.append((added, tensor))

    def write(at: int, values: Values, slot: Slot) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            for piece in values(slot):
                file.write(piece)

    written = write_head(path, [spec for spec, _ in plan])
    for to, (spec, tensor) in zip(written, plan, strict=True):
        for start, values in merged_pieces(recipe, tensor, spec):
            yield partial(write, to.start + start, values)


def _put_the_rest(
    ctx: Context,
    model: Model,
    adapters: tuple[Adapter, ...],
    config: dict[str, Any],
    changed: Ends,
) -> None:
    """Put tokenizer, template and settings beside the weights."""
    left_out = (*CARDS, *(("config.json", INDEX_NAME) if changed.settings else ()))
    for path in sorted(p for p in model.path.rglob("*") if p.is_file()):
        name = path.relative_to(model.path).as_posix()
        if path.suffix != ".safetensors" and name not in left_out:
            ctx.link(path, name)
    if len(adapters) == 1:  # it was trained with another template, or with added tokens
        for path in sorted(p for p in adapters[0].path.rglob("*") if p.is_file()):
            name = path.relative_to(adapters[0].path).as_posix()
            if TOKENIZER.holds(name):
                (ctx.out / name).unlink(missing_ok=True)
                ctx.link(path, name)
    if not changed.settings:
        return
    config.update(changed.settings)
    (ctx.out / "config.json").write_bytes(canonical_json(config))
    if (model.path / INDEX_NAME).exists():
        index = json.loads((model.path / INDEX_NAME).read_bytes())
        index["weight_map"].update({spec.name: name for name, spec in changed.added.items()})
        index.setdefault("metadata", {}).pop("total_parameters", None)
        index["metadata"]["total_size"] = sum(
            t.spec.size_bytes
            for file in set(index["weight_map"].values())
            for t in read_tensors(ctx.out / file)
        )
        (ctx.out / INDEX_NAME).write_bytes(canonical_json(index))


def _card(
    inputs: MergeInputs,
    adapters: tuple[Adapter, ...],
    params: MergeParams,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the merged model was made of."""
    # Whether the logits were compared changes no weight, so it shall change no byte.
    chosen = params.model_dump(mode="json", exclude_defaults=True, exclude={"check_logits"})
    return {
        "method": "merge",
        "parameters": chosen,
        "base": read_card(inputs.model),
        "adapters": [read_card(adapter) for adapter in adapters],
        "models": [read_card(model) for model in inputs.models],
        "figures": {"merged_weights": facts["merged_weights"]},
    }


def _is_comparable(recipe: Recipe, inputs: MergeInputs) -> bool:
    """Say whether adapters beside the base compute what the merged model does."""
    if inputs.models or recipe.method != "linear":
        return False
    plain = all(
        d.pair is not None and d.magnitude is None and d.experts is None
        for part in recipe.parts
        for d in part.by_name.values()
    )
    return plain or (len(recipe.parts) == 1 and recipe.parts[0].weight == 1.0)


def _check_logits(
    ctx: Context,
    model: Model,
    adapters: list[tuple[Adapter, float]],
    specs: Collection[TensorSpec],
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Measure how far the merged logits are off.

    Raises:
        RuleError: E0932: further than rounding explains.
    """
    found = compare_logits(model, adapters, ctx.out)
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
