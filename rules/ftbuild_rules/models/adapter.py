"""`adapter`: bring an existing PEFT adapter into the graph.

[adapter.helper]
source = "adapters/helper"          # or hf:ORG/NAME, https://…
model = "smol"

The artifact is what training rules make: `adapter_config.json`, `adapter_model.safetensors`, and
`base.json` with the digest of `model`. It is canonical: lists that PEFT keeps as sets are sorted,
tensors stand by name, and no path, date or version is left; so an adapter saved twice is one.
Nothing of it can run code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from ftbuild.api import (
    TOKENIZER,
    Adapter,
    Context,
    Inputs,
    Model,
    Params,
    Part,
    Place,
    RuleError,
    Source,
    canonical_json,
    rule,
)
from ftbuild_rules.models._adapter_delta import Deltas, read_deltas
from ftbuild_rules.models._card import read_card, write_card
from ftbuild_rules.models._ends import ends
from ftbuild_rules.models._files import files_of, weight_files
from ftbuild_rules.models._places import place
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors, write_tensors
from ftbuild_rules.models._torch import load_tensor
from ftbuild_rules.training._lora import BASE_NAME, CONFIG_NAME, WEIGHTS_NAME

_PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
NEEDED = Part("adapter", (CONFIG_NAME, WEIGHTS_NAME, *_PICKLED, "config.json", *TOKENIZER.patterns))
"""What counts of a folder or a repository. Pickled weights and `config.json` only so as to say
what is wrong."""
# PEFT keeps these as sets, and writes them in an order that changes from run to run.
_SETS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")


class AdapterInputs(Inputs):
    """An adapter, and the model it belongs to."""

    source: Annotated[Source, NEEDED]
    """A folder that PEFT saved, or `hf:ORG/NAME`."""
    model: Model
    """The base model that it was trained on. PEFT records no digest, so this is your word; that
    its tensors fit is checked."""


class AdapterParams(Params):
    """Nothing is to be chosen."""


@rule(
    version=1, output=Adapter, pins=("torch", "peft", "tokenizers"), preload=("torch", "tokenizers")
)
def adapter(ctx: Context, inputs: AdapterInputs, params: AdapterParams) -> None:
    """Bring in an existing PEFT adapter, for one base model.

    Weights are safetensors; pickled ones are refused.
    """
    files = {file.relative: file.path for file in inputs.source.files}
    _refuse_what_is_no_adapter(files)
    settings = _settings(files[CONFIG_NAME])
    tensors = read_tensors(files[WEIGHTS_NAME], WEIGHTS_NAME)
    _refuse_not_finite(tensors)
    ordered = sorted(tensors, key=lambda tensor: tensor.spec.name)
    write_tensors(ctx.out / WEIGHTS_NAME, [t.spec for t in ordered], (t.blocks() for t in ordered))
    (ctx.out / CONFIG_NAME).write_bytes(canonical_json(settings))
    (ctx.out / BASE_NAME).write_bytes(canonical_json({"base": inputs.model.digest}))
    rows = None
    if settings["peft_type"] == "LORA":
        rows = _require_fit(ctx.out, inputs.model)
    _put_tokenizer(ctx, files, rows)
    write_card(ctx.out, {"method": "adapter", "base": read_card(inputs.model)})
    ctx.facts(tensors=len(tensors))


def _refuse_what_is_no_adapter(files: Mapping[str, Path]) -> None:
    """Refuse pickles, models, and folders with nothing to find in them.

    Raises:
        RuleError: E0921, E0936.
    """
    pickled = [name for name in _PICKLED if name in files]
    if WEIGHTS_NAME in files and CONFIG_NAME in files:
        return
    if WEIGHTS_NAME not in files and pickled:
        raise RuleError(
            f"the adapter's weights are pickled (`{pickled[0]}`), and unpickling runs code",
            code="E0921",
            where=Place(path=pickled[0]),
            fix="load it where you trust it and call `save_pretrained`, which writes safetensors",
        )
    if CONFIG_NAME not in files and "config.json" in files:
        what, fix = "the source is a model, not an adapter", "bring it in by `base_model`"
    else:
        absent = CONFIG_NAME if CONFIG_NAME not in files else WEIGHTS_NAME
        what = f"the source has no `{absent}`"
        fix = "name a folder that PEFT's `save_pretrained` wrote"
    raise RuleError(what, code="E0936", fix=fix)


def _settings(path: Path) -> dict[str, Any]:
    """Return the adapter's settings in their canonical form.

    Raises:
        RuleError: E0923: they are no JSON object; E0922: they name code to import.
    """
    try:
        given = json.loads(path.read_bytes())
        assert isinstance(given, dict)
        kind = given["peft_type"]
    except (ValueError, RecursionError, AssertionError, KeyError) as error:
        raise RuleError(
            f"`{CONFIG_NAME}` is no PEFT configuration",
            code="E0923",
            where=Place(path=CONFIG_NAME),
            why=f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else None,
            fix="save the adapter again with PEFT's `save_pretrained`",
        ) from error
    if given.get("auto_mapping"):
        # `AutoPeftModel` imports the module that it names.
        raise RuleError(
            f"`{CONFIG_NAME}` names code to import in `auto_mapping`",
            code="E0922",
            where=Place(path=CONFIG_NAME, within="`auto_mapping`"),
            fix="set `auto_mapping` to null and `task_type` to `CAUSAL_LM`",
        )
    settings = {name: value for name, value in given.items() if name != "peft_version"}
    for name in _SETS:
        if isinstance(settings.get(name), list):
            settings[name] = sorted(set(settings[name]))
    settings |= {"base_model_name_or_path": None, "revision": None, "inference_mode": True}
    return {**settings, "peft_type": kind}


def _refuse_not_finite(tensors: tuple[StoredTensor, ...]) -> None:
    for tensor in tensors:
        value = load_tensor(tensor)
        if value.is_floating_point() and not value.isfinite().all():
            raise RuleError(
                f"the adapter holds NaN or infinite values in `{tensor.spec.name}`",
                code="E0913",
                where=Place(path=WEIGHTS_NAME),
                fix="take a checkpoint from before its training went wrong",
            )


def _require_fit(out: Path, model: Model) -> int | None:
    """Refuse an adapter whose tensors have no place in `model`; return its vocabulary if resized.

    Raises:
        RuleError: E0931, E0934. An adapter that only `merge` cannot take passes.
    """
    found = Adapter(out, model.digest)
    try:
        deltas: Deltas = read_deltas(found)
    except RuleError as error:
        if error.problems[0].code == "E0930":
            return None
        raise
    files = files_of(model.path)
    stored = {name: read_tensors(files[name], name) for name in weight_files(files)}
    specs = {t.spec.name: t.spec for tensors in stored.values() for t in tensors}
    config = json.loads(files["config.json"].read_bytes())
    changed = ends([deltas], stored, config)
    place(deltas, specs, config, new=changed.new)
    return changed.settings.get("vocab_size")


def _put_tokenizer(ctx: Context, files: Mapping[str, Path], rows: int | None) -> None:
    """Keep the tokenizer of an adapter with added tokens, and a template of its own.

    Raises:
        RuleError: E0934: the tokenizer has more ids than the embeddings have rows.
    """
    if rows is None:
        if "chat_template.jinja" in files:
            ctx.link(files["chat_template.jinja"], "chat_template.jinja")
        return
    if "tokenizer.json" not in files:
        raise RuleError(
            f"the adapter's embeddings have {rows} rows, other than the model's, and it has no "
            "tokenizer that says for what",
            code="E0934",
            fix="put the tokenizer that it was trained with into its folder",
        )
    from tokenizers import Tokenizer

    count = Tokenizer.from_file(str(files["tokenizer.json"])).get_vocab_size()
    if count > rows:
        raise RuleError(
            f"the adapter's tokenizer has {count} ids and its embeddings {rows} rows",
            code="E0934",
            where=Place(path="tokenizer.json"),
            fix="save the adapter with the tokenizer that it was trained with",
        )
    for name, path in files.items():
        if TOKENIZER.holds(name):
            ctx.link(path, name)
