"""`export`: a model as others take it, with a card that says what it was made of.

[export.for_llama_cpp]
model = "merged_model"
format = "gguf"                          # or transformers, in shards
type = "Q8_0"
data = { chats = "chats" }               # told in the card, with digest and row count
reports = { quality = "good_enough" }    # figures in the card; a failed gate stops the export
card = { license = "apache-2.0", base_model = "HuggingFaceTB/SmolLM2-135M-Instruct" }

`gguf` gives `model.gguf` with the chat template inside, and an Ollama `Modelfile` beside it.
`gguf_quantize` makes the smaller types of it.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from ftbuild.api import (
    Artifact,
    AttributeProblem,
    Context,
    Dataset,
    Field,
    File,
    Inputs,
    Model,
    Params,
    Report,
    Tokens,
    canonical_json,
    rule,
)
from ftbuild_rules.models._card import CARDS, data_card, read_card, write_card
from ftbuild_rules.models._files import INDEX_NAME, SINGLE_NAME, files_of, weight_files
from ftbuild_rules.models._gguf_write import write_gguf
from ftbuild_rules.models._modelfile import modelfile
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors, write_tensors

GGUF_NAME = "model.gguf"
_MB = 1_000_000


class ExportInputs(Inputs):
    """What is exported, and what its card tells besides."""

    model: Model
    """The model."""
    data: dict[str, Dataset | Tokens] = Field(default_factory=dict)
    """What it was trained on, by the name it gets in the card."""
    reports: dict[str, Report] = Field(default_factory=dict)
    """Evaluations whose figures stand in the card; a gate that fails stops the export too."""


class ExportParams(Params):
    """In which form."""

    format: Literal["transformers", "gguf"] = "transformers"
    """A Transformers directory, or one GGUF file."""
    type: Literal["F32", "F16", "BF16", "Q8_0"] = "F16"
    """How `gguf` stores matrices; vectors are float32."""
    max_shard_mb: int = Field(5000, ge=1)
    """The largest file of weights of `transformers`, in megabytes; a larger tensor is alone."""
    card: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Fields at the head of the card, as the hub knows them: `license`, `base_model`,
    `language`, `tags`, …"""


def output(kinds: Mapping[str, tuple[str, ...]], params: ExportParams) -> type[Artifact]:
    """Return the kind: a directory is a model, a GGUF file is a file."""
    return Model if params.format == "transformers" else File


def check(kinds: Mapping[str, tuple[str, ...]], params: ExportParams) -> None:
    """Refuse settings of the other format."""
    if params.format == "transformers" and params.type != "F16":
        raise AttributeProblem(
            "type", "is for `gguf`", 'write `format = "gguf"`, or `dtype` at the `base_model`'
        )


@rule(
    version=1,
    output=output,
    pins=("torch", "transformers", "tokenizers", "gguf"),
    preload=("torch", "transformers"),
    check=check,
)
def export(ctx: Context, inputs: ExportInputs, params: ExportParams) -> None:
    """Write a model as a sharded directory or a GGUF file, with a card of what it was made of."""
    import torch

    torch.set_num_threads(1)
    if params.format == "gguf":
        write_gguf(inputs.model.path, ctx.out / GGUF_NAME, file_type=params.type)
        text = modelfile(inputs.model.path, GGUF_NAME)
        (ctx.out / "Modelfile").write_text(text, encoding="utf-8")
        ctx.facts(bytes=(ctx.out / GGUF_NAME).stat().st_size)
    else:
        _write_shards(ctx, inputs.model, params.max_shard_mb * _MB)
    write_card(ctx.out, _card(inputs, params), fields=params.card)


def _card(inputs: ExportInputs, params: ExportParams) -> dict[str, Any]:
    reports = []
    for name, report in sorted(inputs.reports.items()):
        figures = json.loads((report.path / "report.json").read_bytes()).get("figures", {})
        reports.append({"name": name, "digest": report.digest, "figures": figures})
    stored_as = {"type": params.type} if params.format == "gguf" else {}
    return {
        "method": f"export as {params.format}",
        "parameters": stored_as,
        "model": read_card(inputs.model),
        "data": [{"name": n, **data_card(a)} for n, a in sorted(inputs.data.items())],
        "reports": reports,
    }


def _write_shards(ctx: Context, model: Model, limit: int) -> None:
    files = files_of(model.path)
    tensors = [t for name in weight_files(files) for t in read_tensors(files[name], name)]
    shards = _shards(tensors, limit)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_NAME
        if len(shards) > 1:
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        specs = [tensor.spec for tensor in shard]
        write_tensors(ctx.out / name, specs, (tensor.blocks() for tensor in shard))
        weight_map.update({spec.name: name for spec in specs})
        ctx.progress(number, len(shards))
    if len(shards) > 1:
        total = sum(tensor.spec.size_bytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (ctx.out / INDEX_NAME).write_bytes(canonical_json(index))
    for path in sorted(p for p in model.path.rglob("*") if p.is_file()):
        name = path.relative_to(model.path).as_posix()
        if path.suffix != ".safetensors" and name not in (INDEX_NAME, *CARDS):
            ctx.link(path, name)
    ctx.facts(shards=len(shards))


def _shards(tensors: list[StoredTensor], limit: int) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.spec.size_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.spec.size_bytes
    return shards
