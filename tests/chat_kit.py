"""A tokenizer whose ids anybody can compute, and datasets made of rows, for the tests of tokens.

Byte `b` has the id `b`; the special tokens have the ids from 256 on. So the ids of a text are
its bytes, and expected ids are written by hand: `[IM_START, *b"user\\nHi", IM_END, *b"\\n"]`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftbuild.kinds import Artifact, Model
from ftbuild.testing import RecordingContext, artifact, run_rule, source
from ftbuild_rules.data.dataset import dataset

os.environ["HF_HUB_OFFLINE"] = "1"

IM_START, IM_END, BOS, EOS = 256, 257, 258, 259
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]

# As SmolLM2 and Qwen write it, without marks.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same with what the assistant says marked.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}"
    "<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 2: trims, a space that the model says, no generation prompt.
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    "{{ m['content'] | trim }} [/INST]{% elif m['role'] == 'assistant' %} "
    "{{ m['content'] | trim }} {{ eos_token }}{% else %}{{ raise_exception('no ' + m['role']) }}"
    "{% endif %}{% endfor %}"
)
# Plain words, no special token between the turns but at their end.
PLAIN = (
    "{% for m in messages %}### {{ m['role'] }}: {{ m['content'].strip('\n') }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)


def make_tokenizer(
    directory: Path,
    template: str | dict[str, str] | None = CHATML,
    *,
    merges: Sequence[tuple[str, str]] = (),
    more_special: Sequence[str] = (),
) -> Any:
    """Save the byte tokenizer with a chat template; `merges` are pairs of byte-level letters.

    `more_special` are special tokens that follow those of `SPECIAL`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    names = [*SPECIAL, *more_special]
    start = len(vocabulary) + len(names)
    merged = {left + right: start + number for number, (left, right) in enumerate(merges)}
    special = {token: len(vocabulary) + number for number, token in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary | special | merged, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return tokenizer


def _letters() -> list[str]:
    """Return the letter by which GPT-2's byte-level alphabet writes each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def make_model(
    directory: Path, template: str | dict[str, str] | None = CHATML, **settings: Any
) -> Artifact:
    """Return a model artifact that has a tokenizer and nothing else."""
    make_tokenizer(directory, template, **settings)
    return artifact(Model, directory)


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def make_dataset(
    directory: Path,
    rows: Sequence[Any],
    format_name: str = "openai",
    *,
    ctx: RecordingContext | None = None,
) -> Artifact:
    """Return the rows as a dataset."""
    directory.mkdir(parents=True, exist_ok=True)
    file = write_rows(directory / "rows.jsonl", rows)
    return run_rule(dataset, {"source": source(file)}, {"format": format_name}, directory, ctx=ctx)


def chat(*texts: str, **columns: Any) -> dict[str, Any]:
    """Return a row of texts that user and assistant say by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": messages, **columns}


def read_tokens(tokens: Artifact) -> list[dict[str, list[int]]]:
    """Return the rows of a tokens artifact."""
    import pyarrow as pa

    rows: list[dict[str, list[int]]] = []
    for path in sorted((tokens.path / "data").glob("*.arrow")):
        with pa.memory_map(str(path)) as mapped:
            rows += pa.ipc.open_file(mapped).read_all().to_pylist()
    return rows


def read_dataset(dataset: Artifact) -> list[dict[str, Any]]:
    """Return the rows of a dataset artifact."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for path in sorted((dataset.path / "data").glob("*.arrow")):
        with pa.memory_map(str(path)) as mapped:
            rows += pa.ipc.open_file(mapped).read_all().to_pylist()
    return rows
