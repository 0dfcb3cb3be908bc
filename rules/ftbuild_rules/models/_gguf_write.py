"""Write a Transformers model as one GGUF file, tensor by tensor: `_gguf` the other way round.

Matrices are stored as the type says, vectors in float32, as llama.cpp's own converter does. What
llama.cpp would compute otherwise than Transformers is refused: a scaled rotary embedding, a
sliding window, a pre-tokenizer that it does not know by name.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftbuild.api import RuleError
from ftbuild_rules.models._files import TEMPLATE_NAME, files_of, weight_files
from ftbuild_rules.models._gguf import CONFIG_KEYS, gguf_names
from ftbuild_rules.models._gguf_tokenizer import PRE_TOKENIZERS, splitter
from ftbuild_rules.models._safetensors import StoredTensor, read_tensors
from ftbuild_rules.models._torch import load_tensor

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.cpp's `enum llama_ftype`
_KINDS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # `enum llama_token_type`


def write_gguf(model: Path, path: Path, *, file_type: str) -> None:
    """Write the model in the directory `model` to the file `path`.

    Raises:
        RuleError: E0948: llama.cpp would not compute what the model does; E0949: its tokenizer
            has no name in llama.cpp.
    """
    from gguf import GGUFWriter

    files = files_of(model)
    config = json.loads(files["config.json"].read_bytes())
    kind = _kind(config)
    writer = GGUFWriter(str(path), kind)
    writer.add_file_type(FILE_TYPES[file_type])
    _put_settings(writer, kind, config)
    _put_tokenizer(writer, files, int(config["vocab_size"]))
    stored = [t for name in weight_files(files) for t in read_tensors(files[name], name)]
    names = gguf_names([t.spec.name for t in stored], {**config, "model_type": kind})
    plan = [(names[t.spec.name], t) for t in stored]
    arrays = {name: _stored_as(tensor, file_type) for name, tensor in plan}
    for name, tensor in plan:
        _announce(writer, name, tensor, arrays[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, array in _values(plan, arrays, config, kind):
            writer.write_tensor_data(array)
    finally:
        writer.close()


def _refused(what: str) -> RuleError:
    return RuleError(
        what,
        code="E0948",
        why=f"known are the plain forms of {', '.join(sorted(_KINDS))}",
        fix="export it as `transformers`, or convert that with llama.cpp's own script",
    )


def _kind(config: Mapping[str, Any]) -> str:
    """Return what llama.cpp calls the model's architecture.

    Raises:
        RuleError: E0948.
    """
    given = config.get("model_type")
    if given not in _KINDS:
        raise _refused(f"models of the architecture `{given}` cannot be written as GGUF")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    odd = {
        "rope_type": rope.get("rope_type", "default") != "default",
        "sliding_window": bool(config.get("sliding_window"))
        and config.get("use_sliding_window", given == "mistral"),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
    }
    if found := [name for name, is_odd in odd.items() if is_odd]:
        raise _refused(f"a model with its `{found[0]}` cannot be written as GGUF")
    return _KINDS[given]


def _put_settings(writer: Any, kind: str, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    stated = {
        **config,
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "head_dim": head_dim,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
    }
    for key, name in CONFIG_KEYS.items():
        add = writer.add_float32 if isinstance(stated[name], float) else writer.add_uint32
        add(f"{kind}.{key}", stated[name])
    writer.add_uint32(f"{kind}.attention.value_length", head_dim)
    writer.add_uint32(f"{kind}.rope.dimension_count", head_dim)
    writer.add_uint32(f"{kind}.vocab_size", config["vocab_size"])


def _put_tokenizer(writer: Any, files: Mapping[str, Path], size: int) -> None:
    """Put the vocabulary, the merges, the special tokens and the chat template.

    Raises:
        RuleError: E0949.
    """
    if "tokenizer.json" not in files:
        raise _no_tokenizer("the model has no `tokenizer.json`")
    given = json.loads(files["tokenizer.json"].read_bytes())
    if given["model"].get("type") != "BPE" or not _is_byte_level(given):
        raise _no_tokenizer("only byte-level BPE tokenizers can be written as GGUF")
    tokens, kinds = _vocabulary(given, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_name(given))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in given["model"]["merges"]]
    )
    settings = json.loads(files["tokenizer_config.json"].read_bytes())
    ids = {token: index for index, token in enumerate(tokens)}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[token])
    writer.add_add_bos_token(_begins_with(files["tokenizer.json"], settings.get("bos_token")))
    if TEMPLATE_NAME in files:
        writer.add_chat_template(files[TEMPLATE_NAME].read_text(encoding="utf-8"))


def _no_tokenizer(what: str, why: str | None = None) -> RuleError:
    return RuleError(
        what,
        code="E0949",
        why=why,
        fix="export it as `transformers`, or convert that with llama.cpp's own script",
    )


def _is_byte_level(given: Mapping[str, Any]) -> bool:
    return "ByteLevel" in json.dumps(given.get("pre_tokenizer"))


def _vocabulary(given: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return text and kind of each id; ids beyond the tokenizer's are unused.

    Raises:
        RuleError: E0934: there are more ids than the model has rows.
    """
    found = {index: (token, _NORMAL) for token, index in given["model"]["vocab"].items()}
    for added in given["added_tokens"]:
        kind = _CONTROL if added["special"] else _USER_DEFINED
        found[added["id"]] = (added["content"], kind)
    if max(found) >= size:
        raise RuleError(
            f"the tokenizer has the id {max(found)}; the model's vocabulary ends at {size - 1}",
            code="E0934",
            fix="take the tokenizer that the model was trained with",
        )
    whole = [found.get(index, (f"[PAD{index}]", _UNUSED)) for index in range(size)]
    return [token for token, _ in whole], [kind for _, kind in whole]


def _pre_name(given: Mapping[str, Any]) -> str:
    """Return the name that llama.cpp has for how this tokenizer cuts text into words.

    Raises:
        RuleError: E0949.
    """
    wanted = _essence(given["pre_tokenizer"])
    ignores = bool(given["model"].get("ignore_merges"))
    for name, pre in PRE_TOKENIZERS.items():
        other = json.loads(splitter(name, pre).__getstate__())
        if pre.ignore_merges == ignores and _essence(other) == wanted:
            return name
    raise _no_tokenizer(
        "the tokenizer's pre-tokenizer has no name in llama.cpp",
        f"another one would give other ids; known are {', '.join(sorted(PRE_TOKENIZERS))}",
    )


def _essence(pre: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the steps of a pre-tokenizer with what decides where they cut."""
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    names = ("type", "pattern", "behavior", "invert", "individual_digits", "add_prefix_space")
    found = []
    for step in steps:
        values = [json.dumps(step.get(name)) for name in names]
        found.append((*values, step.get("use_regex", True)))
    return found


def _begins_with(path: Path, bos: Any) -> bool:
    from tokenizers import Tokenizer

    bos = bos.get("content") if isinstance(bos, dict) else bos
    tokens = Tokenizer.from_file(str(path)).encode("a").tokens
    return bool(tokens) and tokens[0] == bos


def _stored_as(tensor: StoredTensor, file_type: str) -> str:
    shape = tensor.spec.shape
    if len(shape) < 2:
        return "F32"
    return "F16" if file_type == "Q8_0" and shape[-1] % 32 else file_type


def _announce(writer: Any, name: str, tensor: StoredTensor, stored_as: str) -> None:
    import math

    import numpy
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    as_type = getattr(GGMLQuantizationType, stored_as)
    shape, numpy_type = tensor.spec.shape, {"F32": numpy.float32, "F16": numpy.float16}
    if stored_as not in numpy_type:  # the writer counts the bytes of packed types
        shape = quant_shape_to_byte_shape(shape, as_type)
    item = numpy.dtype(numpy_type.get(stored_as, numpy.uint8))
    writer.add_tensor_info(name, shape, item, math.prod(shape) * item.itemsize, raw_dtype=as_type)


def _values(
    plan: list[tuple[str, StoredTensor]],
    types: Mapping[str, str],
    config: Mapping[str, Any],
    kind: str,
) -> Iterator[tuple[str, Any]]:
    """Yield the values of each tensor as they are stored.

    Raises:
        RuleError: E0933: a value is not finite, or float16 cannot hold it.
    """
    import numpy
    from gguf import GGMLQuantizationType, quantize

    for name, tensor in plan:
        value = load_tensor(tensor).float().numpy()
        value = _in_turn(value, tensor.spec.name, config, kind)
        with numpy.errstate(over="ignore"):
            stored = quantize(
                numpy.ascontiguousarray(value), getattr(GGMLQuantizationType, types[name])
            )
        probe = stored if types[name] in ("F16", "F32") else value
        if not numpy.isfinite(probe).all():
            raise RuleError(
                f"`{tensor.spec.name}` holds values that {types[name]} cannot hold",
                code="E0933",
                fix='export with `type = "BF16"`',
            )
        yield name, stored


def _in_turn(value: Any, name: str, config: Mapping[str, Any], kind: str) -> Any:
    """Put the rows of Llama's rotary weights as llama.cpp wants them: `_in_halves` undone."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2] if "." in name else ""
    if kind != "llama" or part not in heads:
        return value
    halves = value.reshape(config[heads[part]], 2, -1, value.shape[-1])
    return halves.swapaxes(1, 2).reshape(value.shape)
