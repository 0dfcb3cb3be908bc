"""Tokens added to a model: the tokenizer knows them, and the embeddings have a row for each.

A new row is the mean of the rows of all tokens that were there, in the input embedding and in the
output layer alike: so a new token is at first as likely as an average one, and moves no other
token's logits.
Source: Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import RuleError, canonical_json
from ftbuild_rules.models._files import INDEX_NAME, files_of, weight_files
from ftbuild_rules.models._safetensors import (
    StoredTensor,
    TensorSpec,
    read_tensors,
    write_tensors,
)
from ftbuild_rules.models._torch import load_tensor, tensor_bytes

_INPUTS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_OUTPUTS = ("lm_head.weight", "lm_head.bias", "embed_out.weight")


@dataclass(frozen=True)
class Additions:
    """What a target adds to a vocabulary."""

    tokens: tuple[str, ...]
    special_tokens: tuple[str, ...]
    pad_token: str | None

    def __bool__(self) -> bool:
        return bool(self.tokens or self.special_tokens or self.pad_token)


def extend_vocabulary(model: Path, additions: Additions) -> int:
    """Add tokens to the model in the directory `model`; return how many rows it got.

    Rows that the embeddings have beyond the tokenizer's ids are used before any is added.

    Raises:
        RuleError: E0929: it cannot be done.
    """
    before, size, pad = _extend_tokenizer(model, additions)
    config = json.loads((model / "config.json").read_bytes())
    owner = config if "vocab_size" in config else config.get("text_config", {})
    rows = int(owner.get("vocab_size", 0))
    grown = max(0, size - rows)
    if size > before:
        _extend_weights(model, rows, range(before, size))
    if grown:
        owner["vocab_size"] = size
    if pad is not None:
        owner["pad_token_id"] = pad
        _put(model / "generation_config.json", {"pad_token_id": pad})
    (model / "config.json").unlink()  # it may be a link to the source
    (model / "config.json").write_bytes(canonical_json(config))
    return grown


def _refusal(what: str, fix: str, *, why: str | None = None) -> RuleError:
    return RuleError(what, code="E0929", why=why, fix=fix)


def _put(path: Path, values: Mapping[str, Any]) -> None:
    """Lay values over those of a settings file, if it is there."""
    if path.exists():
        known = json.loads(path.read_bytes())
        path.unlink()  # it may be a link to the source
        path.write_bytes(canonical_json({**known, **values}))


def _extend_tokenizer(model: Path, additions: Additions) -> tuple[int, int, int | None]:
    """Add the tokens; return the number of ids before and after, and the id of a new pad token."""
    from tokenizers import AddedToken, Tokenizer

    path = model / "tokenizer.json"
    if not path.exists():
        raise _refusal(
            "the model has no `tokenizer.json` to add tokens to",
            "save its tokenizer with Transformers' `save_pretrained`",
        )
    tokenizer = Tokenizer.from_file(str(path))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    before = 1 + max(vocabulary.values())
    wanted = [*additions.tokens, *additions.special_tokens]
    for number, token in enumerate(wanted):
        if token in vocabulary or token in wanted[:number]:
            raise _refusal(
                f"the tokenizer has the token `{token}` already",
                "remove it from `add_tokens` or `add_special_tokens`",
            )
    for token in wanted:
        # Not normalised and nothing stripped: it is found in a text exactly as it is written.
        added = AddedToken(token, normalized=False, special=token in additions.special_tokens)
        tokenizer.add_tokens([added])
    pad = additions.pad_token
    pad_id = None if pad is None else tokenizer.token_to_id(pad)
    if pad is not None and pad_id is None:
        raise _refusal(
            f"the tokenizer has no token `{pad}` to pad with",
            f'add it: `add_special_tokens = ["{pad}"]`',
        )
    path.unlink()  # it may be a link to the source
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    _put(
        model / "tokenizer_config.json",
        _settings(model, tokenizer, wanted, additions),
    )
    _check_tokenizer(model, tokenizer, wanted, pad)
    after = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    return before, after, pad_id


def _settings(
    model: Path, tokenizer: Any, wanted: list[str], additions: Additions
) -> dict[str, Any]:
    """Return what changes in tokenizer_config.json: older ones list the added tokens too."""
    path = model / "tokenizer_config.json"
    known = json.loads(path.read_bytes()) if path.exists() else {}
    changed: dict[str, Any] = {}
    if additions.pad_token is not None:
        changed["pad_token"] = additions.pad_token
    if "added_tokens_decoder" in known:
        listed = dict(known["added_tokens_decoder"])
        for token in wanted:
            listed[str(tokenizer.token_to_id(token))] = {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in additions.special_tokens,
            }
        changed["added_tokens_decoder"] = listed
    return changed


def _check_tokenizer(model: Path, tokenizer: Any, wanted: list[str], pad: str | None) -> None:
    """Check that Transformers reads the tokens as they were written."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(model, local_files_only=True)
    for token in wanted:
        if (
            loaded.encode(f"a{token}b", add_special_tokens=False).count(
                tokenizer.token_to_id(token)
            )
            != 1
        ):
            raise _refusal(
                f"Transformers does not read the new token `{token}` as one",
                "save the tokenizer with Transformers' `save_pretrained` first",
            )
    if pad is not None and loaded.pad_token != pad:
        raise _refusal(
            f"Transformers pads with `{loaded.pad_token}` and not with `{pad}`",
            "set `pad_token` in the model's tokenizer_config.json",
        )


def _extend_weights(model: Path, rows: int, new: range) -> None:
    """Give the ids `new` their rows in each tensor that has one for each of `rows` ids."""
    import torch

    torch.set_num_threads(1)  # a mean could depend on it
    files = files_of(model)
    stored = {name: read_tensors(files[name], name) for name in weight_files(files)}
    found = [t.spec for tensors in stored.values() for t in tensors if _has_rows(t.spec, rows)]
    if not any(spec.name.endswith(_INPUTS) for spec in found):
        raise _refusal(
            "the model's input embedding is not found, so it gets no rows",
            "take a model whose embedding is called " + ", ".join(f"`{n}`" for n in _INPUTS),
            why=f"no such tensor has {rows} rows",
        )
    for name, tensors in stored.items():
        if any(tensor.spec in found for tensor in tensors):
            _write_file(model / name, tensors, found, max(rows, new.stop), new)
    _update_index(model)


def _has_rows(spec: TensorSpec, rows: int) -> bool:
    return spec.name.endswith((*_INPUTS, *_OUTPUTS)) and spec.shape[:1] == (rows,)


def _write_file(
    path: Path,
    tensors: tuple[StoredTensor, ...],
    found: list[TensorSpec],
    rows: int,
    new: range,
) -> None:
    specs = [
        TensorSpec(t.spec.name, t.spec.dtype, (rows, *t.spec.shape[1:]))
        if t.spec in found
        else t.spec
        for t in tensors
    ]
    values = (
        [tensor_bytes(_extended(t, rows, new))] if t.spec in found else t.blocks() for t in tensors
    )
    written = path.with_name(f".{path.name}")
    write_tensors(written, specs, values)
    os.replace(written, path)


def _extended(tensor: StoredTensor, rows: int, new: range) -> Any:
    """Return the tensor with `rows` rows, of which those of `new` are the mean of all before."""
    import torch

    value = load_tensor(tensor)
    out = torch.empty((rows, *value.shape[1:]), dtype=value.dtype)
    out[: len(value)] = value
    out[new.start : new.stop] = value[: new.start].double().mean(0).to(value.dtype)
    return out


def _update_index(model: Path) -> None:
    if not (model / INDEX_NAME).exists():
        return
    index = json.loads((model / INDEX_NAME).read_bytes())
    files = sorted(set(index["weight_map"].values()))
    metadata = {k: v for k, v in index.get("metadata", {}).items() if k != "total_parameters"}
    metadata["total_size"] = sum(
        tensor.spec.size_bytes for name in files for tensor in read_tensors(model / name, name)
    )
    (model / INDEX_NAME).unlink()  # it may be a link to the source
    (model / INDEX_NAME).write_bytes(canonical_json({**index, "metadata": metadata}))
