r"""Rows of solutions in steps -> `input_ids`, and a label 1 or 0 where each step ends.

A step is its text and the separator, and its label stands at the last token of both; the prompt
stands before them, after BOS if the tokenizer has one. All are tokenized apart, so a step has the
same ids wherever it stands.
Source: https://github.com/huggingface/trl/blob/v1.13.0/trl/experimental/prm/prm_trainer.py

{"input_ids": [1, 9, 4, 8, 5, 8], "labels": [-100, -100, -100, 1, -100, 0]}
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ftbuild_rules.tokens._masks import MASKED
from ftbuild_rules.tokens._sft import Tally, Task, is_double_bos, is_dropped

_Row = tuple[list[int], list[int]]


def stepwise_rows(
    task: Task, rows: Sequence[tuple[int, dict[str, Any]]], tally: Tally
) -> Iterator[tuple[int, _Row]]:
    """Yield ids and labels of each solution that is kept; `rows` are numbered in their shard."""
    steps = task.steps
    texts = [text for _, row in rows for text in (row["prompt"], *row["completions"])]
    (separator, *encoded) = task.encoder.encode([steps.separator, *texts])
    at = 0
    for number, row in rows:
        end = at + 1 + len(row["completions"])
        ids = (
            list(encoded[at])
            if task.encoder.bos_id is None
            else [task.encoder.bos_id, *encoded[at]]
        )
        labels = [MASKED] * len(ids)
        last = len(row["labels"]) - 1
        for place, (step, is_right) in enumerate(
            zip(encoded[at + 1 : end], row["labels"], strict=True)
        ):
            whole = [*step, *separator]
            told = place == last or not steps.last_only
            ids += whole
            labels += [MASKED] * (len(whole) - 1) + [int(is_right) if told else MASKED]
        at = end
        if is_double_bos(task.encoder, ids):
            tally.findings.add("double_bos", number)
        kept = _fit(task, number, (ids, labels), tally)
        if kept is not None:
            yield number, kept


def _fit(task: Task, number: int, row: _Row, tally: Tally) -> _Row | None:
    """Return the row within `max_length`; None where it is dropped."""
    ids, labels = row
    room = task.max_length
    if len(ids) > room and is_dropped(task, number, len(ids), tally):
        return None
    ids, labels = ids[:room], labels[:room]
    if all(label == MASKED for label in labels):
        tally.findings.add("no_trainable_tokens", number)
    return ids, labels
