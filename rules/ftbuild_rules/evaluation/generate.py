"""`generate`: answers of a model, or of a model with an adapter, to a list of prompts.

Each prompt is answered by itself, so adding one changes no other answer.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ftbuild.api import (
    Adapter,
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Model,
    Params,
    Place,
    QuantizedModel,
    Report,
    RuleError,
    canonical_json,
    rule,
)
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.quantization._load import load_network
from ftbuild_rules.training._lora import require_base

Messages = list[dict[str, str]]


class GenerateInputs(Inputs):
    """Who answers, and rows to take prompts from."""

    model: Model | QuantizedModel
    """The model that answers."""
    adapter: Adapter | None = None
    """An adapter of `model` to answer with."""
    data: Dataset | None = None
    """Rows whose messages before the last answer are prompts, after those of `prompts`."""


class GenerateParams(Params):
    """What is asked, and how answers are drawn."""

    prompts: tuple[str, ...] = ()
    """What the user says, one prompt each."""
    system: str | None = None
    """The system message before each of `prompts`."""
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


def check(kinds: Mapping[str, tuple[str, ...]], params: GenerateParams) -> None:
    """Refuse a target that asks nothing."""
    if not params.prompts and "data" not in kinds:
        raise AttributeProblem(
            "prompts", "there is nothing to ask", 'write `prompts = ["…"]` or name a `data`'
        )


@rule(
    version=1,
    output=Report,
    pins=("torch", "transformers", "peft", "tokenizers", "jinja2"),
    preload=("torch", "transformers", "peft"),
    check=check,
    gpus=1,
)
def generate(ctx: Context, inputs: GenerateInputs, params: GenerateParams) -> None:
    """Ask a model, with or without an adapter, a list of prompts and report its answers."""
    if inputs.adapter is not None:
        require_base(inputs.adapter, inputs.model)
    asked = list(_asked(inputs, params))
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(params.threads)
    tokenizer = AutoTokenizer.from_pretrained(inputs.model.path, local_files_only=True)
    if inputs.adapter is not None and (own := inputs.adapter.path / TEMPLATE_NAME).exists():
        tokenizer.chat_template = own.read_text(encoding="utf-8")
    model = _load(inputs, params)
    answers = []
    for number, messages in enumerate(asked, start=1):
        ids = _ids(tokenizer, messages, model)
        torch.manual_seed(params.seed)
        answers.append(
            {"prompt": messages[-1]["content"], "answer": _answer(model, tokenizer, ids, params)}
        )
        ctx.progress(number, len(asked))
    (ctx.out / "report.json").write_bytes(canonical_json({"answers": answers}))
    (ctx.out / "report.md").write_text(_markdown(answers), encoding="utf-8")
    ctx.facts(answers=len(answers))


def _asked(inputs: GenerateInputs, params: GenerateParams) -> Iterator[Messages]:
    """Yield the messages of each prompt, those of `prompts` first."""
    system = [] if params.system is None else [{"role": "system", "content": params.system}]
    for text in params.prompts:
        yield [*system, {"role": "user", "content": text}]
    if inputs.data is None:
        return
    import pyarrow as pa

    form = json.loads((inputs.data.path / "dataset.json").read_bytes())["form"]
    files = (inputs.data.path / "data").glob("train-*.arrow")
    number = 0
    for file in sorted(files, key=lambda path: (len(path.name), path.name)):
        for row in pa.ipc.open_file(pa.memory_map(str(file))).read_all().to_pylist():
            messages = _prompt_of(row, form)
            _require_plain(inputs.data.label or "dataset", number, row, messages)
            yield messages
            number += 1


def _prompt_of(row: dict[str, Any], form: str) -> Messages:
    if form == "text":
        return [{"role": "user", "content": row["text"]}]
    messages = row["prompt"] if form == "preference" else list(row["messages"])
    while form == "messages" and messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return list(messages)


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


def _load(inputs: GenerateInputs, params: GenerateParams) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, params.dtype)
    model = load_network(AutoModelForCausalLM, inputs.model, dtype=dtype)
    if inputs.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, inputs.adapter.path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _ids(tokenizer: Any, messages: Messages, model: Any) -> Any:
    """Return the ids of a prompt, through the chat template where the model has one."""
    import torch

    if tokenizer.chat_template:
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
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


def _answer(model: Any, tokenizer: Any, ids: Any, params: GenerateParams) -> str:
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


def _markdown(answers: list[dict[str, str]]) -> str:
    parts = ["# Answers\n"]
    for entry in answers:
        quoted = "\n".join(f"> {line}".rstrip() for line in entry["answer"].split("\n"))
        parts.append(f"**{entry['prompt']}**\n\n{quoted}\n")
    return "\n".join(parts)
