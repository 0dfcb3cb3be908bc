"""Ask a model: prompts from a dataset, ids through its template, an answer a prompt.

Each prompt is answered by itself, so adding one changes no other answer.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from ftbuild.api import Adapter, Dataset, Field, Params, Place, RuleError
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._load import load_network

Messages = list[dict[str, str]]


class Drawing(Protocol):
    """How answers are drawn."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def seed(self) -> int: ...


class AnswerParams(Params):
    """How answers are drawn."""

    max_new_tokens: int = Field(128, ge=1)
    """Longest answer."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token each time; above, tokens are drawn."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of the drawing, for each prompt anew."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type to compute in."""
    threads: int = Field(1, ge=1)
    """CPU threads. Their number changes the last digits of sums, so it does not follow the
    machine."""


def rows_of(data: Dataset) -> Iterator[tuple[Messages, dict[str, Any]]]:
    """Yield the prompt of each row of a dataset, and the row.

    Raises:
        RuleError: E0942: a row has nothing to ask, or uses tools.
    """
    import pyarrow as pa

    form = json.loads((data.path / "dataset.json").read_bytes())["form"]
    files = (data.path / "data").glob("train-*.arrow")
    number = 0
    for file in sorted(files, key=lambda path: (len(path.name), path.name)):
        for row in pa.ipc.open_file(pa.memory_map(str(file))).read_all().to_pylist():
            messages = _prompt_of(row, form)
            _require_plain(data.label or "dataset", number, row, messages)
            yield messages, row
            number += 1


def _prompt_of(row: dict[str, Any], form: str) -> Messages:
    if form == "text":
        return [{"role": "user", "content": row["text"]}]
    messages = row["messages"] if form == "messages" else row["prompt"]
    messages = list(messages)
    while form == "messages" and messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


def _require_plain(label: str, number: int, row: dict[str, Any], messages: Messages) -> None:
    """Refuse a prompt with nothing to ask, and one with tools, which are not rendered here.

    Raises:
        RuleError: E0942.
    """
    has_tools = row.get("tools") or any(m.get("tool_calls") for m in messages)
    if messages and not has_tools:
        return
    raise RuleError(
        f"row {number} of `{label}` {'uses tools' if has_tools else 'has nothing to ask'}",
        code="E0942",
        where=Place(path=label, within=f"row {number}"),
        fix="ask rows without tools, whose messages begin with the user's",
    )


def load_tokenizer(model: Base, adapter: Adapter | None) -> Any:
    """Return the model's tokenizer, with the adapter's template where it has its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    if adapter is not None and (own := adapter.path / TEMPLATE_NAME).exists():
        tokenizer.chat_template = own.read_text(encoding="utf-8")
    return tokenizer


def load_answerer(model: Base, adapter: Adapter | None, dtype: str) -> Any:
    """Return the model, with the adapter if there is one, ready to compute."""
    import torch
    from transformers import AutoModelForCausalLM

    network = load_network(AutoModelForCausalLM, model, dtype=getattr(torch, dtype))
    if adapter is not None:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, adapter.path)
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def ask(network: Any, tokenizer: Any, messages: Messages, params: Drawing) -> str:
    """Return the answer to one prompt.

    Raises:
        RuleError: E0941: the prompt is longer than the model's context.
    """
    import torch

    ids = _ids(tokenizer, messages, network)
    torch.manual_seed(params.seed)
    return _answer(network, tokenizer, ids, params)


def plain(messages: Messages) -> Messages:
    """Return messages with nothing but role and text."""
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _ids(tokenizer: Any, messages: Messages, model: Any) -> Any:
    """Return the ids of a prompt, through the chat template where the model has one."""
    import torch

    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            plain(messages), add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer("\n".join(m["content"] for m in messages))["input_ids"]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and len(ids) >= limit:
        raise RuleError(
            f"a prompt has {len(ids)} tokens; the model reads at most {limit}",
            code="E0941",
            where=Place(path="prompts", within=repr(messages[-1]["content"][:60])),
            fix="shorten it",
        )
    return torch.tensor([ids], device=model.device)


def _answer(model: Any, tokenizer: Any, ids: Any, params: Drawing) -> str:
    import torch
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    ends = sorted({end for end in ends if end is not None})
    # All that shapes the choice is stated, or the model's own generation settings slip in.
    settings = GenerationConfig(
        max_new_tokens=params.max_new_tokens,
        do_sample=params.temperature > 0,
        temperature=params.temperature or 1.0,
        top_p=params.top_p,
        top_k=0,
        repetition_penalty=1.0,
        num_beams=1,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
        use_cache=True,
    )
    with torch.no_grad():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def markdown(answers: list[dict[str, Any]]) -> str:
    """Return questions and answers as a page."""
    parts = ["# Answers\n"]
    for entry in answers:
        quoted = "\n".join(f"> {line}".rstrip() for line in entry["answer"].split("\n"))
        parts.append(f"**{entry['prompt']}**\n\n{quoted}\n")
    return "\n".join(parts)
