"""Turn a GGUF file into a Transformers directory, one tensor after another.

Values are dequantised by the `gguf` package (float32), put back into the order that
Transformers wants, and rounded once to the type that is asked for. A setting or a tensor that is
not known here is an error: leaving it out would change what the model computes.
Source: the keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ftbuild.api import RuleError, canonical_json
from ftbuild_rules.models._files import SINGLE_NAME
from ftbuild_rules.models._gguf_tokenizer import write_tokenizer
from ftbuild_rules.models._safetensors import TensorSpec, write_tensors
from ftbuild_rules.models._torch import SAFETENSORS_NAMES, tensor_bytes

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Key below the architecture's name -> the field of a Transformers config.
CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
# Said by others of these keys or by the tensors.
_IMPLIED_KEYS = ("vocab_size", "rope.dimension_count", "attention.value_length")
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
)


def convert_gguf(path: Path, out: Path, *, dtype: str) -> str | None:
    """Write the model in the file `path` to `out`; return the chat template it holds.

    Raises:
        RuleError: E0925: the file is not sound, or its architecture, a setting or a tensor is
            not known; E0926: see `write_tokenizer`.
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
        raise _unknown(f"GGUF files of the architecture `{architecture}` cannot be converted")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, tensors, dtype)
    write_tokenizer(fields, out, max_length=config["max_position_embeddings"])
    (out / "config.json").write_bytes(canonical_json(config))
    (out / "generation_config.json").write_bytes(canonical_json(_generation_config(config)))
    _write_weights(tensors, config, out / SINGLE_NAME, dtype)
    template: str | None = fields.get("tokenizer.chat_template")
    return template


def _unknown(what: str) -> RuleError:
    return RuleError(
        what,
        code="E0925",
        why=f"known are the plain forms of {', '.join(ARCHITECTURES)}",
        fix="take the model from its Transformers directory (`hf:…` or a folder)",
    )


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the file's settings as a Transformers config in which all values are stated."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = fields["general.architecture"]
    stated: dict[str, Any] = {}
    for key, value in fields.items():
        prefix, _, name = key.partition(".")
        if prefix == kind and name in CONFIG_KEYS:
            # The file holds float32: 9.99999974e-06 was 1e-05.
            is_float = isinstance(value, float)
            stated[CONFIG_KEYS[name]] = float(f"{value:.7g}") if is_float else value
        elif prefix == kind and name not in _IMPLIED_KEYS:
            raise _unknown(f"the GGUF file has a setting `{key}` that is not known")
    if missing := sorted({*CONFIG_KEYS.values()} - {*stated, "head_dim", "rope_theta"}):
        raise _unknown(f"the GGUF file does not say `{missing[0]}`")
    stated["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": stated.pop("rope_theta", 10000.0),
    }
    head_dim = stated["hidden_size"] // stated["num_attention_heads"]
    stated["head_dim"] = stated.get("head_dim", head_dim)
    for name in ("rope.dimension_count", "attention.value_length"):
        if fields.get(f"{kind}.{name}", stated["head_dim"]) != stated["head_dim"]:
            raise _unknown(f"`{kind}.{name}` of the GGUF file differs from the size of a head")
    whole = CONFIG_MAPPING[kind](**stated).to_dict()
    config = {k: v for k, v in whole.items() if not k.startswith("_") and k not in _NOT_STATED}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{name}_token_id"] = fields.get(f"tokenizer.ggml.{key}_token_id")
    return {
        **config,
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]],
        "dtype": dtype,
        "model_type": kind,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
    }


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config[key] is not None}


def _write_weights(
    tensors: Mapping[str, Any], config: Mapping[str, Any], path: Path, dtype: str
) -> None:
    import torch
    from gguf import dequantize

    shapes = _shapes(config)
    names = gguf_names(shapes, config)
    if unknown := sorted(set(tensors) - set(names.values())):
        raise _unknown(f"the GGUF file has a tensor `{unknown[0]}` that the model has no place for")
    if missing := [name for name in shapes if names[name] not in tensors]:
        raise RuleError(
            f"the GGUF file has no tensor for `{missing[0]}`", code="E0925", fix="fetch it again"
        )
    target = getattr(torch, dtype)

    def values() -> Iterator[list[Any]]:
        for name, shape in shapes.items():
            stored = tensors[names[name]]
            array = _in_halves(dequantize(stored.data, stored.tensor_type), name, config)
            yield [tensor_bytes(torch.from_numpy(array.copy()).reshape(shape).to(target))]

    specs = [TensorSpec(name, SAFETENSORS_NAMES[dtype], shapes[name]) for name in shapes]
    write_tensors(path, specs, values())


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights that a model of this config saves."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(settings).state_dict()
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    return {name: tuple(value.shape) for name, value in state.items() if name not in tied}


def gguf_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what the weights are called in the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(k for k, v in MODEL_ARCH_NAMES.items() if v == config["model_type"])
    table = get_tensor_name_map(architecture, config["num_hidden_layers"])
    parts = {name: name.rpartition(".") for name in names}
    return {name: f"{table.get_name(module)}.{last}" for name, (module, _, last) in parts.items()}


def _in_halves(array: Any, name: str, config: Mapping[str, Any]) -> Any:
    """Put the rows of Llama's rotary weights back: llama.cpp keeps the halves of a head in turn.

    Shapes: `array` is (heads * head_dim, hidden); row 2i + j of a head becomes row
        j * head_dim / 2 + i.
    """
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    if config["model_type"] != "llama" or part not in heads:
        return array
    in_turn = array.reshape(config[heads[part]], -1, 2, array.shape[-1])
    return in_turn.swapaxes(1, 2).reshape(array.shape)
