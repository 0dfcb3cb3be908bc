"""`generate`: answers of a model, or of a model with an adapter, to a list of prompts.

Each prompt is answered by itself, so adding one changes no other answer.
"""

from collections.abc import Iterator, Mapping

from ftbuild.api import (
    Adapter,
    AttributeProblem,
    Context,
    Dataset,
    Inputs,
    Model,
    QuantizedModel,
    Report,
    canonical_json,
    rule,
)
from ftbuild_rules.evaluation._answers import (
    AnswerParams,
    Messages,
    ask,
    load_answerer,
    load_tokenizer,
    markdown,
    rows_of,
)
from ftbuild_rules.quantization._pins import with_quantized
from ftbuild_rules.training._lora import require_base


class GenerateInputs(Inputs):
    """Who answers, and rows to take prompts from."""

    model: Model | QuantizedModel
    """The model that answers."""
    adapter: Adapter | None = None
    """An adapter of `model` to answer with."""
    data: Dataset | None = None
    """Rows whose messages before the last answer are prompts, after those of `prompts`."""


class GenerateParams(AnswerParams):
    """What is asked, and how answers are drawn."""

    prompts: tuple[str, ...] = ()
    """What the user says, one prompt each."""
    system: str | None = None
    """The system message before each of `prompts`."""


def check(kinds: Mapping[str, tuple[str, ...]], params: GenerateParams) -> None:
    """Refuse a target that asks nothing."""
    if not params.prompts and "data" not in kinds:
        raise AttributeProblem(
            "prompts", "there is nothing to ask", 'write `prompts = ["…"]` or name a `data`'
        )


@rule(
    version=1,
    output=Report,
    pins=with_quantized("torch", "transformers", "peft", "tokenizers", "jinja2"),
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

    torch.set_num_threads(params.threads)
    tokenizer = load_tokenizer(inputs.model, inputs.adapter)
    network = load_answerer(inputs.model, inputs.adapter, params.dtype)
    answers = []
    for number, messages in enumerate(asked, start=1):
        answer = ask(network, tokenizer, messages, params)
        answers.append({"prompt": messages[-1]["content"], "answer": answer})
        ctx.progress(number, len(asked))
    (ctx.out / "report.json").write_bytes(canonical_json({"answers": answers}))
    (ctx.out / "report.md").write_text(markdown(answers), encoding="utf-8")
    ctx.facts(answers=len(answers))


def _asked(inputs: GenerateInputs, params: GenerateParams) -> Iterator[Messages]:
    """Yield the messages of each prompt, those of `prompts` first."""
    system = [] if params.system is None else [{"role": "system", "content": params.system}]
    for text in params.prompts:
        yield [*system, {"role": "user", "content": text}]
    if inputs.data is not None:
        for messages, _ in rows_of(inputs.data):
            yield messages
