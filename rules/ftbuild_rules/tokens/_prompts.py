r"""Rows of prompts that the model itself answers -> `prompt_ids`, with the row's other columns.

The ids are those that `apply_chat_template` gives with the generation prompt. `metadata` is all
that the format did not read, as JSON: what the functions that reward an answer are given.

{"prompt_ids": [1, 9, 4, 1, 7], "metadata": "{\"answer\":\"4\"}"}
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ftbuild_rules.templates._limits import Call
from ftbuild_rules.templates._turns import Rendered
from ftbuild_rules.tokens._sft import Tally, Task, is_double_bos, lint_template_tokens, run_calls


def prompt_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], tally: Tally
) -> Iterator[tuple[int, tuple[list[int], str]]]:
    """Yield ids and metadata of each prompt that is kept; `rows` are numbered in their shard."""
    calls = [Call(row["prompt"], row["tools"], None, add_generation_prompt=True) for _, row in rows]
    results = run_calls(task, calls, [number for number, _ in rows])
    kept: list[tuple[int, dict[str, Any]]] = []
    texts: list[str] = []
    for (number, row), result in zip(rows, results, strict=True):
        if not isinstance(result, Rendered):
            tally.findings.add("template", number, str(result))
            continue
        lint_template_tokens(task, number, result.text, tally.findings)
        kept.append((number, row))
        texts.append(result.text)
    for (number, row), ids in zip(kept, task.encoder.encode(texts), strict=True):
        if is_double_bos(task.encoder, ids):
            tally.findings.add("double_bos", number)
        if len(ids) > task.max_length:
            if task.overflow == "drop":
                tally.dropped.append(number)
                continue
            tally.findings.add("too_long", number, f"it has {len(ids):,} tokens")
        yield number, (ids, row["metadata"])
