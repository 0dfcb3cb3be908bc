"""One shard of a dataset -> one shard of tokens, and what is to be said of its rows."""

from pathlib import Path
from typing import Any

from ftbuild_rules.data._arrow import read_table, rows_of, write_batch
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._forms import FORMS
from ftbuild_rules.tokens._pack import Packing, pack
from ftbuild_rules.tokens._sft import Tally, Task

_BATCH_ROWS = 256
_SCALARS = {"label": "bool", "metadata": "string"}


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
        batch = rows_of(rows.slice(start, _BATCH_ROWS))
        found.extend(form.make(task, list(enumerate(batch, start)), tally))
    documents = len(found)
    if packing is not None:
        found = list(pack(found, packing, task.max_length))
        columns = (*columns, "seq_lengths")
    arrays = [_column(name, [row[place] for row in found]) for place, name in enumerate(columns)]
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


def _column(name: str, values: list[Any]) -> Any:
    """Return a column: of ids, or of what its name says."""
    import numpy
    import pyarrow as pa

    if name in _SCALARS:
        return pa.array(values, _SCALARS[name])
    ends = numpy.cumsum([0, *map(len, values)], dtype=numpy.int32)
    parts = [numpy.empty(0, numpy.int32), *(numpy.asarray(value, numpy.int32) for value in values)]
    return pa.ListArray.from_arrays(ends, numpy.concatenate(parts))
