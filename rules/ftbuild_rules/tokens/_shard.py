"""One shard of a dataset -> one shard of tokens, and what is to be said of its rows."""

from pathlib import Path
from typing import Any

from ftbuild_rules.data._arrow import read_table, write_batch
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._forms import FORMS
from ftbuild_rules.tokens._pack import Packing, pack
from ftbuild_rules.tokens._sft import Tally, Task

_BATCH_ROWS = 256


def tokenize_shard(task: Task, packing: Packing | None, path: Path, out: Path) -> dict[str, Any]:
    """Write the tokens of one shard; return the counts and what is wrong with its rows."""
    import pyarrow as pa

    form = FORMS[task.form]
    columns = form.columns
    rows = read_table(path)
    if "metadata" not in columns:
        rows = rows.drop_columns(["metadata"])
    tally = Tally(Findings())
    found: list[Any] = []  # a row each, a value for each column
    for start in range(0, rows.num_rows, _BATCH_ROWS):
        batch = rows.slice(start, _BATCH_ROWS).to_pylist()
        found.extend(form.make(task, list(enumerate(batch, start)), tally))
    documents = len(found)
    if packing is not None:
        found = list(pack(found, packing, task.max_length))
        columns = (*columns, "seq_lengths")
    types = {"label": pa.bool_(), "metadata": pa.string()}
    arrays = [
        pa.array([row[place] for row in found], types.get(name, pa.list_(pa.int32())))
        for place, name in enumerate(columns)
    ]
    write_batch(out, pa.RecordBatch.from_arrays(arrays, names=list(columns)))
    return {
        "input_rows": rows.num_rows,
        "rows": len(found),
        "tokens": sum(map(form.num_tokens, found)),
        "trainable_tokens": sum(map(form.num_trained, found)),
        "documents": documents,
        "dropped": tally.dropped,
        "truncated": tally.truncated,
        "split": tally.split,
        "findings": tally.findings.to_plain(),
    }
