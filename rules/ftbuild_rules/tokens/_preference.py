"""Rows of preference pairs -> `prompt_ids`, `chosen_ids`, `rejected_ids`.

The answer begins where the ids of the prompt (with the generation prompt) and the ids of the
whole conversation part. So the ids of prompt and answer together are those of the conversation,
whatever a trainer does with them: DPO, IPO, ORPO, KTO and reward models take the same rows.
Source: https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/dpo_trainer.py#L1075
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ftbuild_rules.templates._limits import Call, Result
from ftbuild_rules.templates._turns import Rendered
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._sft import (
    Tally,
    Task,
    is_double_bos,
    is_dropped,
    lint_template_tokens,
    run_calls,
)

Triple = tuple[list[int], list[int], list[int]]
_Texts = tuple[str, str, str]


def preference_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], tally: Tally
) -> Iterator[tuple[int, Triple]]:
    """Yield the ids of each pair that is kept; `rows` are numbered within their shard."""
    numbers: list[int] = []
    texts: list[str] = []
    calls = [call for _, row in rows for call in _calls(row)]
    results = run_calls(task, calls, [number for number, _ in rows for _ in range(3)])
    for place, (number, _) in enumerate(rows):
        found = _texts(number, results[3 * place : 3 * place + 3], tally.findings)
        if found is not None:
            numbers.append(number)
            texts.extend(found)
            lint_end(task, number, found[1:], tally.findings)
            lint_template_tokens(task, number, found[1], tally.findings)
    encoded = task.encoder.encode(texts)
    for place, number in enumerate(numbers):
        prompt, chosen, rejected = encoded[3 * place : 3 * place + 3]
        triple = _split(task, number, (prompt, chosen, rejected), tally.findings)
        kept = _fit(task, number, triple, tally)
        if kept is not None:
            yield number, kept


def _calls(row: dict[str, Any]) -> tuple[Call, Call, Call]:
    """Return what is rendered of a pair: its prompt, and the conversation with each answer."""
    prompt, tools = row["prompt"], row["tools"]
    return (
        Call(prompt, tools, None, add_generation_prompt=True),
        Call(prompt + row["chosen"], tools, None),
        Call(prompt + row["rejected"], tools, None),
    )


def _texts(number: int, results: Sequence[Result], findings: Findings) -> _Texts | None:
    texts = []
    for result in results:
        if not isinstance(result, Rendered):
            findings.add("template", number, str(result))
            return None
        texts.append(result.text)
    prompt, chosen, rejected = texts
    return prompt, chosen, rejected


def lint_end(task: Task, number: int, texts: Sequence[str], findings: Findings) -> None:
    """Note a conversation that does not end with an end token."""
    if not all(text.rstrip().endswith(task.encoder.enders) for text in texts):
        findings.add("end_of_turn", number)


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids both begin with."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def _split(task: Task, number: int, ids: Triple, findings: Findings) -> Triple:
    """Return the prompt's ids, and what follows them in each conversation."""
    prompt, chosen, rejected = ids
    length = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    if length < len(prompt):
        findings.add("prompt_prefix", number)
    if is_double_bos(task.encoder, chosen):
        findings.add("double_bos", number)
    return prompt[:length], chosen[length:], rejected[length:]


def _fit(task: Task, number: int, ids: Triple, tally: Tally) -> Triple | None:
    """Return the pair within `max_length`; None where it is dropped."""
    prompt, chosen, rejected = ids
    length = len(prompt) + max(len(chosen), len(rejected))
    if length > task.max_length:
        if is_dropped(task, number, length, tally):
            return None
        room = max(0, task.max_length - len(prompt))
        prompt, chosen, rejected = prompt[: task.max_length], chosen[:room], rejected[:room]
    if not chosen or not rejected:
        tally.findings.add("no_trainable_tokens", number)
    elif chosen == rejected:
        detail = "" if ids[1] == ids[2] else "they differ beyond `max_length` alone"
        tally.findings.add("equal_pairs", number, detail)
    return prompt, chosen, rejected
