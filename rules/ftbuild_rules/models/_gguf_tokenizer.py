"""The tokenizer that a GGUF file really names, as a Transformers tokenizer directory.

A GGUF file has no `tokenizer.json`: it holds the vocabulary, the merges, and in
`tokenizer.ggml.pre` the name of the pre-tokenizer, whose regular expressions are in llama.cpp's
source. A wrong pre-tokenizer gives other ids than the model was trained with and no error, so a
name that is not in the table below is refused.
Source: the regular expressions and flags by name are those of `llm_tokenizer_bpe` and
`llama_vocab::impl::load` in
https://github.com/ggml-org/llama.cpp/blob/00ad355e009e83abf98f96a6ded7193b95763681/src/llama-vocab.cpp
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftbuild.api import RuleError, canonical_json


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before the merges apply."""

    split: Literal["gpt-2", "digits", "transformers"]
    """`gpt-2`: GPT-2's expression alone. `digits`: each digit by itself, then GPT-2's.
    `transformers`: the expression that Transformers keeps for this name."""
    ignore_merges: bool = False
    """A whole word that is in the vocabulary is one token, whatever the merges say."""
    add_bos: bool = False
    """Where the file does not say."""


_GPT2 = PreTokenizer("gpt-2")
_DIGITS = PreTokenizer("digits")
_OWN = PreTokenizer("transformers")
_LLAMA3 = PreTokenizer("transformers", ignore_merges=True, add_bos=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "jais": _GPT2,
    "trillion": _GPT2,
    "exaone4": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "minerva-7b": _DIGITS,
    "qwen2": _OWN,
    "deepseek-r1-qwen": _OWN,
    "gpt-4o": _OWN,
    "llama4": _OWN,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "tekken": _LLAMA3,
}
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's `enum llama_token_type`


def write_tokenizer(fields: Mapping[str, Any], out: Path, *, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for the metadata `fields` of a file.

    Raises:
        RuleError: E0926: the kind of tokenizer or the pre-tokenizer is not known.
    """
    pre = _known_pre_tokenizer(fields)
    tokens = fields["tokenizer.ggml.tokens"]
    special = {
        name: tokens[index]
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if (index := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    bos = (
        special.get("bos_token")
        if fields.get("tokenizer.ggml.add_bos_token", pre.add_bos)
        else None
    )
    eos = special.get("eos_token") if fields.get("tokenizer.ggml.add_eos_token", False) else None
    tokenizer = _build(fields, pre, bos=bos, eos=eos)
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
    }
    (out / "tokenizer_config.json").write_bytes(canonical_json(config))


def _known_pre_tokenizer(fields: Mapping[str, Any]) -> PreTokenizer:
    model = fields.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise RuleError(
            f"the GGUF file has a tokenizer of the kind `{model}`; only byte-level BPE (`gpt2`) "
            "can be restored exactly",
            code="E0926",
            fix="take the model from its Transformers directory (`hf:…` or a folder)",
        )
    name = str(fields.get("tokenizer.ggml.pre", ""))
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise RuleError(
            f"the GGUF file names the pre-tokenizer `{name}`, which is not known"
            if name
            else "the GGUF file names no pre-tokenizer (`tokenizer.ggml.pre`)",
            code="E0926",
            why=f"a guess would give other ids than the model was trained with; known: {known}",
            fix="take the model from its Transformers directory (`hf:…` or a folder)",
        )
    return PRE_TOKENIZERS[name]


def _build(
    fields: Mapping[str, Any], pre: PreTokenizer, *, bos: str | None, eos: str | None
) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    tokens = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # A merge is two tokens with a space between; the first may itself begin with one.
    merges = [_pair(merge) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    )
    tokenizer.pre_tokenizer = splitter(fields["tokenizer.ggml.pre"], pre)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            # llama.cpp finds both kinds whole in a text; only control tokens are never shown.
            added = AddedToken(token, normalized=False, special=kind == _CONTROL)
            (tokenizer.add_special_tokens if kind == _CONTROL else tokenizer.add_tokens)([added])
    if bos or eos:
        ends = [(token, vocabulary[token]) for token in (bos, eos) if token]
        single = [token for token in (bos, "$A", eos) if token]
        second = ["$B:1" if token == "$A" else f"{token}:1" for token in single]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *second],
            special_tokens=sorted(set(ends)),
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def splitter(name: str, pre: PreTokenizer) -> Any:
    """Return the pre-tokenizer that llama.cpp means by `name`."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if pre.split == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre.split == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    expression = Regex(GGUF_PRE_TOKENIZER_SPLITS[name])
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(expression, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
