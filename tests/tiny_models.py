"""Tiny random models, tokenizers and token shards, made on the spot for the tests of the rules."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftbuild.digest import hash_file
from ftbuild.kinds import Artifact

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "The shop opens at 9 and closes at 18.",
    "We sold 1234 books in 2024, that's 56 more.",
    "I don't know, but I'll ask.",
]
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def make_tokenizer(directory: Path, *, digits: bool = True) -> Any:
    """Save a byte-level tokenizer of some 320 ids with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([single, level]) if digits else level
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_model(directory: Path, *, dtype: str = "float32", seed: int = 0, **settings: Any) -> Path:
    """Save a random Llama model, or one of another `kind`, with a tokenizer."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    shard = settings.pop("max_shard_size", "5GB")
    tokenizer = make_tokenizer(directory)
    config = CONFIG_MAPPING[settings.pop("kind", "llama")](
        **{**LLAMA, **settings},
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the initialisation, so that a wrong merge is seen in the logits.
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.add_(0.01)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard)
    return directory


def make_tokens(
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    per_shard: int = 100,
    form: str | None = None,
) -> Path:
    """Save rows of ids as a `tokens` artifact."""
    import pyarrow as pa

    columns = list(rows[0])
    ids = pa.list_(pa.int32())
    schema = pa.schema([(name, pa.bool_() if name == "label" else ids) for name in columns])
    (directory / "data").mkdir(parents=True)
    for number, first in enumerate(range(0, len(rows), per_shard)):
        table = pa.Table.from_pylist([dict(r) for r in rows[first : first + per_shard]], schema)
        path = directory / "data" / f"train-{number:05}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(table)
    about = {
        "form": form or ("sft" if "labels" in columns else "preference"),
        "rows": len(rows),
        "max_length": 64,
        "chat_template": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
    }
    (directory / "tokens.json").write_text(json.dumps(about, sort_keys=True))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def sft_rows(count: int = 12, *, seed: int = 0) -> list[dict[str, list[int]]]:
    """Return rows of 8 to 15 random ids of which the first third is masked."""
    import random

    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [random_.randrange(3, 300) for _ in range(random_.randrange(8, 16))]
        masked = len(ids) // 3
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


def step_rows(count: int = 12, *, seed: int = 2) -> list[dict[str, list[int]]]:
    """Return rows of two to four steps that each end with the id 8 and are right or wrong."""
    import random

    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [random_.randrange(9, 300) for _ in range(random_.randrange(2, 5))]
        labels = [-100] * len(ids)
        for _ in range(random_.randrange(2, 5)):
            step = [random_.randrange(9, 300) for _ in range(random_.randrange(1, 5))]
            ids += [*step, 8]
            labels += [-100] * len(step) + [random_.randrange(2)]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def packed_rows(
    documents: Sequence[Mapping[str, Sequence[int]]], *, in_one: int = 3
) -> list[dict[str, list[int]]]:
    """Return the rows, several in one, with the first label of each masked as packing does."""
    rows = []
    for first in range(0, len(documents), in_one):
        some = documents[first : first + in_one]
        rows.append(
            {
                "input_ids": [i for document in some for i in document["input_ids"]],
                "labels": [i for document in some for i in (-100, *document["labels"][1:])],
                "seq_lengths": [len(document["input_ids"]) for document in some],
            }
        )
    return rows


def preference_rows(count: int = 8, *, seed: int = 1) -> list[dict[str, list[int]]]:
    """Return rows of a random prompt and two completions of different length."""
    import random

    random_ = random.Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [random_.randrange(3, 300) for _ in range(random_.randrange(low, high))]

    return [
        {"prompt_ids": some(3, 8), "chosen_ids": some(2, 7), "rejected_ids": some(2, 7)}
        for _ in range(count)
    ]


def warnings_of_libraries() -> list[Any]:
    """Return marks that let pass what Transformers, PEFT and torch warn of their own code."""
    import pytest

    # Of PEFT's use of Transformers, of torch's of itself, and of PEFT's patterns for experts.
    known = (
        "`is_gradient_checkpointing` is deprecated",
        "`torch.jit",
        "The following (rank|alpha)_pattern keys did not match",
    )
    return [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in known]


def without_card(made: Artifact) -> dict[str, str]:
    """Return the digest of each file, but for the card, which says how they came about."""
    files = [path for path in made.path.rglob("*") if path.is_file()]
    found = {path.relative_to(made.path).as_posix(): hash_file(path) for path in files}
    return {name: found[name] for name in found if name not in ("README.md", "card.json")}
