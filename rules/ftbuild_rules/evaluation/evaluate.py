r"""`evaluate`: figures of a model, and gates that fail the build.

[evaluate.good_enough]
model = "merged_model"
data = "held_out_tokens"                 # loss and perplexity, or preferences
questions = "quiz"                       # its answers against those of the rows
scorer = "score.py:polite"               # or by a function of yours
gates = { perplexity = "< 12", exact_match = ">= 0.8" }

def polite(answer, row):                 # a number, a bool, or a dict of them
    return "please" in answer

What is measured follows from what is named. The figures are means over tokens (`loss`), pairs or
answers. A model that does not pass fails the action with all figures, and nothing is published.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from ftbuild.api import (
    Adapter,
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Function,
    Inputs,
    Model,
    Place,
    QuantizedModel,
    Report,
    RewardModel,
    RuleError,
    Tokens,
    canonical_json,
    rule,
)
from ftbuild_rules.data._write import as_sized
from ftbuild_rules.data.transform import plain_row
from ftbuild_rules.evaluation._answers import (
    AnswerParams,
    Messages,
    ask,
    load_answerer,
    load_tokenizer,
    plain,
    rows_of,
)
from ftbuild_rules.evaluation._gates import check_gates, figures_page, require_gates
from ftbuild_rules.evaluation._measures import (
    load_judge,
    loss_figures,
    preference_figures,
    require_own,
    reward,
    reward_figures,
)
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._pins import with_quantized
from ftbuild_rules.training._shards import Form, read_tokens, require_fit

_OF_TOKENS = (
    "loss",
    "perplexity",
    "tokens",
    "preference_accuracy",
    "preference_margin",
    "pairs",
)
_OF_REWARDS = ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected")


class EvaluateInputs(Inputs):
    """Who is measured, and by what."""

    model: Model | QuantizedModel
    """The model to measure."""
    adapter: Adapter | None = None
    """Measure `model` with this adapter of it."""
    data: Tokens | None = None
    """Loss and perplexity of its labels; of preference tokens, how often the model finds the
    chosen completion likelier, and with `reward_model` how often that scores it higher."""
    questions: Dataset | None = None
    """Prompts that the model answers: the messages before the last answer of each row. That
    answer is the right one for `exact_match`; where rows are prompts alone, `answer` in their
    metadata."""
    scorer: Function | None = None
    """A function of answer and row, `file.py:function`, instead of `exact_match`."""
    reward_model: RewardModel | None = None
    """Scores the answers to `questions`, and the pairs of `data`."""
    reward_base: Model | QuantizedModel | None = None
    """The base of `reward_model` where that is an adapter of another one than `model`."""


class EvaluateParams(AnswerParams):
    """How answers are drawn, and what the figures must be."""

    gates: dict[str, str] = Field(default_factory=dict)
    """What must hold for the build to go on: `{ perplexity = "< 12" }`."""


def check(kinds: Mapping[str, tuple[str, ...]], params: EvaluateParams) -> None:
    """Refuse a target that measures nothing, or a gate on what it does not measure."""
    if "data" not in kinds and "questions" not in kinds:
        raise AttributeProblem(
            "data",
            "there is nothing to measure",
            "name a `tokens` target as `data`, or `questions`",
        )
    if "scorer" in kinds and "questions" not in kinds:
        raise AttributeProblem("scorer", "has nothing to score", "name a dataset as `questions`")
    known = (*(_OF_TOKENS if "data" in kinds else ()),)
    if "reward_model" in kinds:
        known += (*(_OF_REWARDS if "data" in kinds else ()), "reward")
    if "questions" in kinds:
        known += ("exact_match", "answers")
    check_gates(params.gates, None if "scorer" in kinds else known)


@rule(
    version=1,
    output=Report,
    pins=with_quantized("torch", "transformers", "peft", "tokenizers", "jinja2"),
    preload=("torch", "transformers", "peft"),
    check=check,
    gpus=1,
)
def evaluate(ctx: Context, inputs: EvaluateInputs, params: EvaluateParams) -> None:
    """Measure a model, with or without an adapter; its `gates` fail the build.

    Loss and perplexity, preference accuracy, rewards, exact match, or a function of yours.
    """
    require_own(inputs.adapter, inputs.model)
    import torch

    torch.set_num_threads(params.threads)
    network = load_answerer(inputs.model, inputs.adapter, params.dtype)
    judge = None
    if inputs.reward_model is not None:
        base = inputs.reward_base or inputs.model
        judge = load_judge(inputs.reward_model, base, params.dtype)
    figures: dict[str, float] = {}
    report: dict[str, Any] = {}
    if inputs.data is not None:
        figures |= _of_tokens(ctx, inputs.data, inputs.model, network, judge)
    if inputs.questions is not None:
        answers = _answers(ctx, inputs, params, network, judge)
        report["answers"] = answers
        figures |= _means([entry["figures"] for entry in answers])
    wrong = sorted(name for name, value in figures.items() if not math.isfinite(value))
    if wrong:
        raise RuleError(
            f"`{wrong[0]}` is {figures[wrong[0]]}",
            code="E0946",
            fix="look at the model by `generate`: its weights or its scores are broken",
        )
    require_gates(ctx, params.gates, figures)
    report |= {"figures": figures, "gates": dict(params.gates)}
    (ctx.out / "report.json").write_bytes(canonical_json(report))
    (ctx.out / "report.md").write_text(figures_page(figures, params.gates), encoding="utf-8")
    ctx.facts(**figures)


def _of_tokens(
    ctx: Context, data: Tokens, model: Base, network: Any, judge: Any
) -> dict[str, float]:
    form: Form = json.loads((data.path / "tokens.json").read_bytes())["form"]
    form = "preference" if form == "preference" else "sft"
    rows = read_tokens(data, form, rule="evaluate")
    require_fit(rows, model)
    if form == "sft":
        return loss_figures(ctx, network, rows)
    figures = preference_figures(ctx, network, rows)
    if judge is not None:
        figures |= reward_figures(ctx, judge, rows)
    return figures


def _answers(
    ctx: Context, inputs: EvaluateInputs, params: EvaluateParams, network: Any, judge: Any
) -> list[dict[str, Any]]:
    """Return prompt, answer and figures of each row of `questions`."""
    assert inputs.questions is not None
    tokenizer = load_tokenizer(inputs.model, inputs.adapter)
    score = None if inputs.scorer is None else inputs.scorer.load()
    judging = None
    if judge is not None and inputs.reward_model is not None:
        judging = load_tokenizer(inputs.reward_base or inputs.model, None)
    found = []
    for number, (messages, row) in enumerate(rows_of(inputs.questions)):
        answer = ask(network, tokenizer, messages, params)
        if score is not None:
            figures = _scored(inputs, score, answer, row, number)
        else:
            figures = _exact_match(inputs.questions, answer, row, number, is_needed=judge is None)
        if judging is not None:
            figures["reward"] = reward(judge, _whole_ids(judging, messages, answer))
        entry = {"prompt": messages[-1]["content"], "answer": answer, "figures": figures}
        found.append(entry)
        ctx.progress(number + 1)
    return found


def _scored(
    inputs: EvaluateInputs, score: Any, answer: str, row: dict[str, Any], number: int
) -> dict[str, float]:
    """Return what the user's function says of an answer.

    Raises:
        RuleError: E0715: it fails; E0947: it returns no number.
    """
    assert inputs.scorer is not None
    try:
        value = score(answer, plain_row(as_sized(row).columns))
    except Exception as error:
        raise inputs.scorer.failure(error) from error
    given = value if isinstance(value, dict) else {"score": value}
    if given and all(isinstance(v, int | float) for v in given.values()):
        return {str(name): float(v) for name, v in sorted(given.items())}
    raise RuleError(
        f"`{inputs.scorer.spec}` returns {value!r} for row {number}",
        code="E0947",
        where=Place(path=inputs.scorer.spec.rpartition(":")[0]),
        fix="return a number, a bool, or a dict of them",
    )


def _exact_match(
    questions: Dataset, answer: str, row: dict[str, Any], number: int, *, is_needed: bool
) -> dict[str, float]:
    """Return 1 where the answer is the row's, but for spaces around it.

    Raises:
        RuleError: E0942: the row has no answer.
    """
    expected = _expected(row)
    if expected is not None:
        return {"exact_match": float(answer.strip() == expected.strip())}
    if not is_needed:
        return {}
    label = questions.label or "questions"
    raise RuleError(
        f"row {number} of `{label}` has no right answer to compare with",
        code="E0942",
        where=Place(path=label, within=f"row {number}"),
        fix="end its messages with the assistant's, put `answer` into the row, or name a `scorer`",
    )


def _expected(row: dict[str, Any]) -> str | None:
    messages = row.get("messages") or row.get("chosen")
    if messages and messages[-1]["role"] == "assistant":
        return str(messages[-1]["content"])
    answer = json.loads(row.get("metadata") or "{}").get("answer")
    return None if answer is None else str(answer)


def _whole_ids(tokenizer: Any, messages: Messages, answer: str) -> list[int]:
    whole = [*plain(messages), {"role": "assistant", "content": answer}]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(whole, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n".join(m["content"] for m in whole))["input_ids"])


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    found: dict[str, float] = {"answers": len(rows)}
    for name in names:
        values = [row[name] for row in rows if name in row]
        found[name] = math.fsum(values) / len(values)
    return found
