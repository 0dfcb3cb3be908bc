"""Rows of single answers -> `prompt_ids`, `completion_ids` and `label`, whether it is a good one.

The answer begins where the ids of the prompt and of the whole conversation part, as in a pair.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ftbuild_rules.templates._limits import Call
from ftbuild_rules.templates._turns import Rendered
from ftbuild_rules.tokens._preference import common_prefix_length, lint_end
from ftbuild_rules.tokens._sft import (
    Tally,
    Task,
    is_double_bos,
    is_dropped,
    lint_template_tokens,
    run_calls,
)

_Answer = tuple[list[int], list[int], bool]


def unpaired_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], tally: Tally
) -> Iterator[tuple[int, _Answer]]:
    """Yield the ids of each answer that is kept; `rows` are numbered within their shard."""
    kept: list[tuple[int, bool]] = []
    texts: list[str] = []
    calls = [call for _, row in rows for call in _calls(row)]
    results = run_calls(task, calls, [number for number, _ in rows for _ in range(2)])
    for place, (number, row) in enumerate(rows):
        prompt, whole = results[2 * place : 2 * place + 2]
        if not isinstance(prompt, Rendered) or not isinstance(whole, Rendered):
            refused = whole if isinstance(prompt, Rendered) else prompt
            tally.findings.add("template", number, str(refused))
            continue
        kept.append((number, row["label"]))
        texts += [prompt.text, whole.text]
        lint_end(task, number, [whole.text], tally.findings)
        lint_template_tokens(task, number, whole.text, tally.findings)
    encoded = task.encoder.encode(texts)
    for place, (number, label) in enumerate(kept):
        found = _fit(task, number, encoded[2 * place], encoded[2 * place + 1], tally)
        if found is not None:
            yield number, (*found, label)


def _calls(row: dict[str, Any]) -> tuple[Call, Call]:
    prompt, tools = row["prompt"], row["tools"]
    return (
        Call(prompt, tools, None, add_generation_prompt=True),
        Call(prompt + row["completion"], tools, None),
    )


def _fit(
    task: Task, number: int, prompt: list[int], whole: list[int], tally: Tally
) -> tuple[list[int], list[int]] | None:
    """Return prompt and answer within `max_length`; None where they are dropped."""
    length = common_prefix_length(prompt, whole)
    if length < len(prompt):
        tally.findings.add("prompt_prefix", number)
    if is_double_bos(task.encoder, whole):
        tally.findings.add("double_bos", number)
    if len(whole) > task.max_length:
        if is_dropped(task, number, len(whole), tally):
            return None
        whole = whole[: task.max_length]
    if len(whole) <= length:
        tally.findings.add("no_trainable_tokens", number)
    return whole[:length], whole[length:]
