"""Turn a GGUF file into a Transformers directory, one tensor after another.

Values are dequantised by the `gguf` package (float32), put back into the order that
Transformers wants, and rounded once to the type that is asked for.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftbuild_rules.models._files import SINGLE_NAME
from ftbuild_rules.models._gguf_tokenizer import write_tokenizer
from ftbuild_rules.models._safetensors import TensorSpec, write_tensors
from ftbuild_rules.models._torch import SAFETENSORS_NAMES, tensor_bytes

from ftbuild.api import RuleError, canonical_json

# Those whose tensors correspond one to one, so that each can be converted by itself.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
# What every config has and a causal language model makes no use of, or what names a version.
_NOT_STATED = (
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "transformers_version",
    "unk_token_id",
)


def convert_gguf(path: Path, out: Path, *, dtype: str) -> str | None:
    """Write the model in the file `path` to `out`; return the chat template it holds.

    Raises:
        RuleError: E0925: the file is not sound, or its architecture or a tensor is not known;
            E0926: see `write_tokenizer`.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise RuleError(
            f"the GGUF file cannot be read: {error}",
            code="E0925",
            fix="fetch it again; it may be cut short",
        ) from error
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise RuleError(
            f"GGUF files of the architecture `{architecture}` cannot be converted",
            code="E0925",
            why=f"known: {', '.join(ARCHITECTURES)}",
            fix="take the model from its Transformers directory (`hf:…` or a folder)",
        )
    config = _config(path, fields, dtype)
    write_tokenizer(fields, out, max_length=config["max_position_embeddings"])
    (out / "config.json").write_bytes(canonical_json(config))
    (out / "generation_config.json").write_bytes(canonical_json(_generation_config(config)))
    _write_weights(reader, config, out / SINGLE_NAME, dtype)
    return fields.get("tokenizer.chat_template")


def _config(path: Path, fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the file's metadata as a Transformers config, all of whose values are stated."""
    from transformers import CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    stated = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    kind = stated.pop("model_type")
    whole = CONFIG_MAPPING[kind](**stated).to_dict()
    config = {k: v for k, v in whole.items() if not k.startswith("_") and k not in _NOT_STATED}
    for key in ("bos", "eos"):
        config[f"{key}_token_id"] = fields.get(f"tokenizer.ggml.{key}_token_id")
    config["pad_token_id"] = fields.get("tokenizer.ggml.padding_token_id")
    config["architectures"] = [_class_name(kind)]
    config["dtype"] = dtype
    config["model_type"] = kind
    return config


def _class_name(model_type: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config[key] is not None}


def _write_weights(reader: Any, config: Mapping[str, Any], path: Path, dtype: str) -> None:
    import torch
    from gguf import dequantize
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    processor = TENSOR_PROCESSORS.get(config["model_type"], TensorProcessor)(config=dict(config))
    names = get_gguf_hf_weights_map(model, processor)
    found = {names.get(tensor.name): tensor for tensor in reader.tensors}
    if unknown := [tensor.name for tensor in reader.tensors if tensor.name not in names]:
        raise RuleError(
            f"the GGUF file has a tensor `{unknown[0]}` that the model has no place for",
            code="E0925",
            why="leaving it out would change what the model computes",
            fix="take the model from its Transformers directory (`hf:…` or a folder)",
        )
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    order = [name for name in shapes if name not in tied]
    if missing := [name for name in order if name not in found]:
        raise RuleError(
            f"the GGUF file has no tensor for `{missing[0]}`", code="E0925", fix="fetch it again"
        )
    target = getattr(torch, dtype)

    def values() -> Iterator[list[Any]]:
        for name in order:
            stored = found[name]
            array = dequantize(stored.data, stored.tensor_type)
            array = processor.process(weights=array, name=stored.name).weights
            tensor = torch.from_numpy(array.copy()).reshape(shapes[name]).to(target)
            yield [tensor_bytes(tensor)]

    specs = [TensorSpec(name, SAFETENSORS_NAMES[dtype], shapes[name]) for name in order]
    write_tensors(path, specs, values())
