"""One shard of a dataset -> one shard of tokens, and what is to be said of its rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftbuild_rules.data._arrow import read_table, write_batch
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._masks import MASKED
from ftbuild_rules.tokens._pack import Packing, pack
from ftbuild_rules.tokens._preference import preference_rows
from ftbuild_rules.tokens._sft import Tally, Task, sft_rows

_BATCH_ROWS = 256
_SFT_COLUMNS = ("input_ids", "labels")
_PACKED_COLUMNS = (*_SFT_COLUMNS, "seq_lengths")
_PREFERENCE_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def tokenize_shard(task: Task, packing: Packing | None, path: Path, out: Path) -> dict[str, Any]:
    """Write the tokens of one shard; return the counts and what is wrong with its rows."""
    import pyarrow as pa

    is_pair = task.form == "preference"
    columns: tuple[str, ...] = _PREFERENCE_COLUMNS if is_pair else _SFT_COLUMNS
    make: Any = preference_rows if is_pair else sft_rows
    table = read_table(path)
    rows = table.drop_columns(["metadata"])
    tally = Tally(Findings())
    found: list[Any] = []  # a row each, a list of ids for each column
    for start in range(0, rows.num_rows, _BATCH_ROWS):
        batch = rows.slice(start, _BATCH_ROWS).to_pylist()
        found.extend(make(task, list(enumerate(batch, start)), tally))
    documents = len(found)
    if packing is not None:
        found = list(pack(found, packing, task.max_length))
        columns = _PACKED_COLUMNS
    ids = pa.list_(pa.int32())
    arrays = [pa.array([row[place] for row in found], ids) for place in range(len(columns))]
    write_batch(out, pa.RecordBatch.from_arrays(arrays, names=list(columns)))
    return {
        "input_rows": rows.num_rows,
        "rows": len(found),
        "tokens": sum(len(column) for row in found for column in (row if is_pair else row[:1])),
        "trainable_tokens": sum(_trainable(row, is_pair) for row in found),
        "documents": documents,
        "dropped": tally.dropped,
        "truncated": tally.truncated,
        "split": tally.split,
        "findings": tally.findings.to_plain(),
    }


def _trainable(row: Sequence[list[int]], is_pair: bool) -> int:
    if is_pair:
        return len(row[1]) + len(row[2])
    return len(row[1]) - row[1].count(MASKED)
