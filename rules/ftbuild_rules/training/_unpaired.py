"""Single completions, each wished for or not, with the mismatched ones that KTO's KL term needs.

One row: {"prompt_ids": [1, 9], "completion_ids": [4, 2], "KL_completion_ids": [7, 2],
"label": True, "row": 3}. Pairs are taken apart, the chosen before the rejected; then all rows are
shuffled once by `seed`, and within each micro-batch the completions are turned by one: prompt i
stands with completion i - 1, the first with the last. So the mismatched ones of a micro-batch are
its own, as the estimate wants it, and the order must stay as it is while training.
Source: https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/kto_trainer.py#L1140
"""

from dataclasses import dataclass
from typing import Any

from ftbuild_rules.training._shards import TokenRows


@dataclass(frozen=True)
class Unpaired:
    """Which completion stands at which place."""

    rows: list[int]
    """The number of the tokens' row."""
    labels: list[bool]
    """Whether the completion is wished for."""
    kl: list[int]
    """At which place the completion stands that is mismatched with this place's prompt."""


def take_apart(data: TokenRows, *, batch_size: int, seed: int) -> Unpaired:
    """Return the order of the completions of paired or unpaired tokens."""
    import numpy as np

    count = data.num_rows
    if data.form == "preference":
        rows, labels = [*range(count)] * 2, [True] * count + [False] * count
    else:
        rows, labels = [*range(count)], data.table.column("label").to_pylist()
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    kl = []
    for start in range(0, len(order), batch_size):
        places = [*range(start, min(start + batch_size, len(order)))]
        kl += [places[-1], *places[:-1]]
    return Unpaired([rows[i] for i in order], [labels[i] for i in order], kl)


def unpaired_dataset(data: TokenRows, unpaired: Unpaired, **columns: Any) -> Any:
    """Return the completions in their order as a `datasets.Dataset`, with further columns."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if data.form == "preference":
        both = [data.table.column(name).combine_chunks() for name in ("chosen_ids", "rejected_ids")]
        completions = pa.concat_arrays(both)
        places = [
            row if label else row + data.num_rows
            for row, label in zip(unpaired.rows, unpaired.labels, strict=True)
        ]
    else:
        completions = data.table.column("completion_ids").combine_chunks()
        places = unpaired.rows
    own = completions.take(pa.array(places))
    table = pa.table(
        {
            "prompt_ids": data.table.column("prompt_ids").take(pa.array(unpaired.rows)),
            "completion_ids": own,
            "KL_completion_ids": own.take(pa.array(unpaired.kl)),
            "label": pa.array(unpaired.labels),
            "row": pa.array(unpaired.rows, pa.int64()),
            **columns,
        }
    )
    return Dataset(InMemoryTable(table))
