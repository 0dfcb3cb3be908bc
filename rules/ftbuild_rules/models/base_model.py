"""`base_model`: bring a model into the graph, from a Transformers directory or a GGUF file.

The artifact is what `from_pretrained` loads: `config.json`, safetensors, the tokenizer's files,
and the chat template always as `chat_template.jinja`. Nothing of it can run code.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from ftbuild.api import (
    TOKENIZER,
    AttributeProblem,
    Context,
    Dataset,
    Field,
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
from ftbuild_rules.models._files import INDEX_NAME, SINGLE_NAME, TEMPLATE_NAME, weight_files
from ftbuild_rules.models._gguf import convert_gguf
from ftbuild_rules.models._random import make_random
from ftbuild_rules.models._safetensors import (
    StoredTensor,
    TensorSpec,
    read_tensors,
    write_tensors,
)
from ftbuild_rules.models._tokenizer import settle_tokenizer
from ftbuild_rules.models._torch import SAFETENSORS_NAMES, load_tensor, tensor_bytes
from ftbuild_rules.models._trusted import CODE, PICKLED, take_code, unpickled
from ftbuild_rules.models._vocabulary import Additions, extend_vocabulary
from ftbuild_rules.templates._named import templates

Token = Annotated[str, Field(min_length=1)]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NEEDED = Part(
    "model",
    (
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        "*.gguf",
        *TOKENIZER.patterns,
    ),
)
"""What counts of a folder or a repository: what stands beside it is neither in the key nor
fetched. `adapter_config.json` only so as to say that an adapter is no model."""
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")


class BaseModelInputs(Inputs):
    """Where the model comes from."""

    source: Annotated[Source, NEEDED] | None = None
    """A Transformers directory (a folder or `hf:ORG/NAME`), or one GGUF file."""
    code: Annotated[Source, CODE] | None = None
    """Trust the Python files of this folder or repository and run them wherever the model is
    loaded, as `trust_remote_code` does in Transformers. Without it such a model is refused."""
    pickled: Annotated[Source, PICKLED] | None = None
    """The folder or repository of pickled weights (`pytorch_model.bin`), each of which
    `allow_pickled` names by its digest."""
    tokenizer_data: Dataset | None = None
    """With `from_config`: the rows whose texts a tokenizer is trained on."""


class BaseModelParams(Params):
    """How it is stored."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the stored weights. `auto` leaves a directory's files as they are and gives
    bfloat16 for a GGUF file."""
    allow_pickled: tuple[str, ...] = ()
    """The SHA-256 digests of pickled weights that you trust. Only tensors are read of them, and
    the model is written as safetensors."""
    from_config: dict[str, bool | int | float | str] | None = None
    """Instead of `source`: random weights of this architecture, for tests and to `pretrain`, as in
    `from_config = { model_type = "llama", hidden_size = 256, num_hidden_layers = 4 }`. The chat
    template is `chatml` if none is given."""
    vocab_size: int = Field(8192, ge=300)
    """With `from_config`: ids of the byte-level BPE tokenizer, at most."""
    seed: int = Field(42, ge=0, lt=2**32)
    """With `from_config`: of the random weights."""
    chat_template: str | None = None
    """Replaces the model's own: the text of a Jinja template, or the name of one of the
    standard set (`chatml`)."""
    add_tokens: tuple[Token, ...] = ()
    """Tokens that the tokenizer shall know, and never split: `["<plan>", "</plan>"]`. The
    embeddings get a row for each, the mean of the others; an adapter learns it only if it trains
    the embeddings: `lora = { modules_to_save = ["embed_tokens", "lm_head"] }`."""
    add_special_tokens: tuple[Token, ...] = ()
    """The same for tokens that are no text, and left out where text alone is asked for; such a
    one may end a turn."""
    pad_token: Token | None = None
    """The token that rows are padded with, instead of the model's own."""


def check(kinds: Mapping[str, tuple[str, ...]], params: BaseModelParams) -> None:
    """Refuse attributes that exclude each other, and an unknown chat template."""
    _check_origin(kinds, params)
    given, known = params.chat_template, templates()
    if given is not None and "{" not in given and given not in known:
        raise AttributeProblem(
            "chat_template",
            f"there is no chat template `{given}`",
            f"known: {', '.join(sorted(known))}; or write the text of a Jinja template",
        )


def _check_origin(kinds: Mapping[str, tuple[str, ...]], params: BaseModelParams) -> None:
    if ("source" in kinds) == (params.from_config is not None):
        raise AttributeProblem(
            "from_config",
            "a base model is made from `source` or from `from_config`, one of the two",
            'write `source = "…"`, or `from_config` and `tokenizer_data`',
        )
    if params.from_config is None:
        for name in ("tokenizer_data", "vocab_size", "seed"):
            if name in kinds or name in params.model_fields_set:
                raise AttributeProblem(
                    name,
                    f"`{name}` belongs to `from_config`",
                    'remove it, or write `from_config = { model_type = "llama" }`',
                )
    elif "tokenizer_data" not in kinds:
        raise AttributeProblem(
            "from_config",
            "`from_config` needs rows to train a tokenizer on",
            "name a dataset as `tokenizer_data`",
        )


@rule(
    version=1,
    output=Model,
    pins=("torch", "transformers", "tokenizers", "gguf"),
    preload=("torch", "transformers"),
    check=check,
)
def base_model(ctx: Context, inputs: BaseModelInputs, params: BaseModelParams) -> None:
    """Bring in a model from a Transformers directory or a GGUF file, or make a random one.

    Weights are safetensors in and out; pickled weights and configs that load code are refused.
    """
    template = _make(ctx, inputs, params)
    if params.chat_template is not None:
        template = templates().get(params.chat_template, params.chat_template)
    if template is not None:
        (ctx.out / TEMPLATE_NAME).write_text(template, encoding="utf-8")
    additions = Additions(params.add_tokens, params.add_special_tokens, params.pad_token)
    if additions:
        ctx.facts(added_rows=extend_vocabulary(ctx.out, additions))


def _make(ctx: Context, inputs: BaseModelInputs, params: BaseModelParams) -> str | None:
    """Fill `ctx.out` but for the chat template, which is returned."""
    if inputs.source is None:
        assert params.from_config is not None
        assert inputs.tokenizer_data is not None  # `check` has seen to it
        make_random(
            ctx.out,
            params.from_config,
            inputs.tokenizer_data,
            vocab_size=params.vocab_size,
            dtype="float32" if params.dtype == "auto" else params.dtype,
            seed=params.seed,
        )
        return templates()["chatml"]
    files = inputs.source.files
    if len(files) == 1 and files[0].relative.endswith(".gguf"):
        dtype = "bfloat16" if params.dtype == "auto" else params.dtype
        return convert_gguf(files[0].path, ctx.out, dtype=dtype)
    given = {f.relative: f.path for f in files}
    if inputs.pickled is not None:
        given = _with_unpickled(ctx, given, inputs.pickled, params.allow_pickled)
    return _take_directory(ctx, given, params.dtype, code=inputs.code)


def _with_unpickled(
    ctx: Context, files: Mapping[str, Path], pickled: Source, allowed: tuple[str, ...]
) -> dict[str, Path]:
    """Return a directory's files with safetensors in the place of pickled weights."""
    config = _read_object("config.json", files["config.json"]) if "config.json" in files else {}
    is_tied = bool(config.get("tie_word_embeddings", False))
    to = ctx.scratch / SINGLE_NAME
    made = unpickled(pickled.files, allowed, is_tied=is_tied, to=to)
    kept = {n: p for n, p in files.items() if not n.endswith((*_PICKLED, ".safetensors"))}
    kept.pop(INDEX_NAME, None)
    return {**kept, SINGLE_NAME: made}


def _take_directory(
    ctx: Context, files: Mapping[str, Path], dtype: str, *, code: Source | None
) -> str | None:
    """Lay the needed files of a Transformers directory in `ctx.out`; return its template."""
    _refuse_what_is_no_model(files)
    settings = {name: _read_object(name, files[name]) for name in _SETTINGS if name in files}
    for name, value in settings.items():
        is_trusted = code is not None and name == "config.json"
        _refuse_code(name, {**value, "auto_map": None} if is_trusted else value)
    if code is not None:
        take_code(ctx, code.files, settings["config.json"])
    if "quantization_config" in settings["config.json"]:
        raise RuleError(
            "the model's weights are quantized; `base_model` takes full weights",
            code="E0928",
            where=Place(path="config.json", within="`quantization_config`"),
            fix="take the model it was quantized from",
        )
    weights = weight_files(files)
    stored = {name: read_tensors(files[name], name) for name in weights}
    template = _template(files, settings)
    written = (*_SETTINGS, *weights, TEMPLATE_NAME, "chat_template.json")
    for name, path in files.items():
        if (TOKENIZER.holds(name) or name == INDEX_NAME) and name not in written:
            ctx.link(path, name)
    for name, value in settings.items():
        _put_settings(ctx, name, value, path=files[name])
    _put_weights(ctx, files, stored, dtype)
    if dtype != "auto":
        config = {k: v for k, v in settings["config.json"].items() if k != "torch_dtype"}
        target = ctx.out / "config.json"
        target.unlink(missing_ok=True)  # it may be a link to the source
        target.write_bytes(canonical_json({**config, "dtype": dtype}))
    settle_tokenizer(ctx.out, ctx.scratch)
    return template


def _refuse_what_is_no_model(files: Mapping[str, Path]) -> None:
    ggufs = [name for name in files if name.endswith(".gguf")]
    safetensors = [name for name in files if name.endswith(".safetensors")]
    pickled = [name for name in files if name.endswith(_PICKLED)]
    if pickled and not safetensors:
        raise RuleError(
            f"the model's weights are pickled (`{pickled[0]}`), and unpickling runs code",
            code="E0921",
            where=Place(path=pickled[0]),
            fix="take a revision that has safetensors; or, if you trust these, name the source as "
            "`pickled` and their digests as `allow_pickled`",
        )
    if "config.json" not in files:
        if "adapter_config.json" in files:
            what, fix = "the source is an adapter, not a model", "name the folder of its base model"
        elif ggufs:
            what = f"the source has {len(ggufs)} GGUF file(s) beside others"
            fix = f"name the one file, such as `{ggufs[0]}`, in `source`"
        else:
            what = "the source has no `config.json`"
            fix = "name a Transformers directory or one `.gguf` file"
        raise RuleError(what, code="E0920", fix=fix)


def _read_object(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RuleError(
            f"`{name}` is not valid JSON: {error}", code="E0923", where=Place(path=name)
        ) from error
    if not isinstance(value, dict):
        raise RuleError(f"`{name}` is not a JSON object", code="E0923", where=Place(path=name))
    return value


def _keys(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield each key of a JSON value at any depth, with its path and what it holds."""
    pairs = value.items() if isinstance(value, dict) else ()
    for key, inner in pairs:
        yield key, f"{path}{key}", inner
        yield from _keys(inner, f"{path}{key}.")
    for index, inner in enumerate(value if isinstance(value, list) else ()):
        yield from _keys(inner, f"{path}{index}.")


def _refuse_code(name: str, settings: dict[str, Any]) -> None:
    """Refuse settings that make a loader fetch or run code.

    Source: CVE-2026-4372 (`_attn_implementation_internal` names a hub repository).
    """
    for key, path, value in _keys(settings):
        loads_code = (
            key in ("auto_map", "trust_remote_code", "custom_pipelines") and bool(value)
        ) or (
            key.lstrip("_").startswith("attn_implementation")
            and (key.endswith("_internal") or "/" in str(value))
        )
        if loads_code:
            raise RuleError(
                f"`{path}` in `{name}` loads code from outside",
                code="E0922",
                where=Place(path=name, within=f"`{path}`"),
                fix="take a model whose class is in Transformers; or, if you trust the Python "
                "files that it names, name their folder or repository as `code`",
            )


def _template(files: Mapping[str, Path], settings: Mapping[str, dict[str, Any]]) -> str | None:
    """Return the chat template, wherever this model keeps it; newest form first."""
    if TEMPLATE_NAME in files:
        return files[TEMPLATE_NAME].read_text(encoding="utf-8")
    if "chat_template.json" in files:
        whole = _read_object("chat_template.json", files["chat_template.json"])
        return str(whole["chat_template"])
    value = settings.get("tokenizer_config.json", {}).get("chat_template")
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    return None if value is None else str(value)


def _put_settings(ctx: Context, name: str, value: dict[str, Any], *, path: Path) -> None:
    """Keep a settings file as it is, but the chat template in a file of its own."""
    template = value.get("chat_template")
    if name != "tokenizer_config.json" or template is None:
        ctx.link(path, name)
        return
    rest = {key: inner for key, inner in value.items() if key != "chat_template"}
    (ctx.out / name).write_bytes(canonical_json(rest))
    for entry in template if isinstance(template, list) else ():
        if entry["name"] != "default":
            other = ctx.out / "additional_chat_templates" / f"{entry['name']}.jinja"
            other.parent.mkdir(exist_ok=True)
            other.write_text(entry["template"], encoding="utf-8")


def _put_weights(
    ctx: Context,
    files: Mapping[str, Path],
    stored: Mapping[str, tuple[StoredTensor, ...]],
    dtype: str,
) -> None:
    wanted = SAFETENSORS_NAMES.get(dtype)
    for name, tensors in stored.items():
        floats = [t for t in tensors if t.spec.dtype in ("F64", "F32", "F16", "BF16")]
        if wanted is None or all(t.spec.dtype == wanted for t in floats):
            ctx.link(files[name], name)
            continue
        specs = [
            TensorSpec(t.spec.name, wanted if t in floats else t.spec.dtype, t.spec.shape)
            for t in tensors
        ]
        write_tensors(ctx.out / name, specs, (_converted(t, dtype) for t in tensors))


def _converted(tensor: StoredTensor, dtype: str) -> Any:
    import torch

    value = load_tensor(tensor)
    return [tensor_bytes(value.to(getattr(torch, dtype)) if value.is_floating_point() else value)]
