"""A model with random weights and a tokenizer trained on a dataset: for tests, and to pretrain."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftbuild.api import Dataset, RuleError, canonical_json
from ftbuild_rules.data._arrow import shard_paths

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Pad, begin and end: the ids 0, 1 and 2. The names are those of ChatML."""
_FIXED = ("architectures", "auto_map", "quantization_config", "torch_dtype", "dtype")


def make_random(
    out: Path,
    settings: Mapping[str, Any],
    texts: Dataset,
    *,
    vocab_size: int,
    dtype: str,
    seed: int,
) -> None:
    """Write a model of these settings, whose `model_type` says the architecture.

    Raises:
        RuleError: E0912: there is no such architecture or setting, or they do not go together.
    """
    import torch
    import transformers

    ids = _train_tokenizer(out, texts, vocab_size)
    config = _config(settings, ids)
    torch.set_num_threads(1)
    transformers.set_seed(seed)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise _wrong(
            "the model cannot be made with these settings",
            f"change them: {str(error).splitlines()[0]}",
        ) from error
    model.save_pretrained(out, max_shard_size="1TB")
    named = {**config.to_dict(), "architectures": [type(model).__name__], "dtype": dtype}
    named.pop("transformers_version", None)
    (out / "config.json").write_bytes(canonical_json(named))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (out / "generation_config.json").write_bytes(canonical_json(generation))


def _wrong(what: str, fix: str) -> RuleError:
    return RuleError(what, code="E0912", fix=fix)


def _config(settings: Mapping[str, Any], ids: int) -> Any:
    from transformers import CONFIG_MAPPING

    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise _wrong(
            f"Transformers knows no `model_type = {kind!r}`"
            if kind
            else "`from_config` does not say the architecture",
            'write `model_type = "llama"` or another one of Transformers',
        )
    given = {name: value for name, value in settings.items() if name != "model_type"}
    known = CONFIG_MAPPING[kind]()
    for name in given:
        if name in _FIXED or not hasattr(known, name):
            raise _wrong(f"`from_config.{name}` is no setting of `{kind}`", "remove it")
    size = int(given.setdefault("vocab_size", ids))
    if size < ids:
        raise _wrong(
            f"`from_config.vocab_size` is {size}; the tokenizer has {ids} ids",
            f"remove it, or set `vocab_size = {size}` beside `from_config`",
        )
    given |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    try:
        return CONFIG_MAPPING[kind](**given)
    except Exception as error:  # each architecture checks its settings in its own way
        first = str(error).strip().splitlines()[0]
        raise _wrong(f"`{kind}` cannot have these settings", f"change them: {first}") from error


def _train_tokenizer(out: Path, texts: Dataset, vocab_size: int) -> int:
    """Write a byte-level BPE tokenizer, each digit by itself; return how many ids it has."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(texts), trainer)
    pad, begin, end = SPECIAL
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, pad_token=pad
    ).save_pretrained(out)
    return int(backend.get_vocab_size())


def _texts(dataset: Dataset) -> Iterator[str]:
    """Yield every text of the rows, whatever their form."""
    import pyarrow as pa

    for path in shard_paths(dataset.path):
        for row in pa.ipc.open_file(pa.memory_map(str(path))).read_all().to_pylist():
            yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
