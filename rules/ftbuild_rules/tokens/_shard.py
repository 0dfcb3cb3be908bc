"""One shard of a dataset -> one shard of tokens, and what is to be said of its rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftbuild_rules.data._arrow import read_table, rows_of, write_batch
from ftbuild_rules.data._hashing import row_digest
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._forms import FORMS, TokenForm
from ftbuild_rules.tokens._memo import (
    AGAIN,
    DROPPED,
    NAME,
    SPLIT,
    TRUNCATED,
    Outcome,
    RowMemo,
    write_outcomes,
)
from ftbuild_rules.tokens._pack import Packing, pack
from ftbuild_rules.tokens._sft import Tally, Task

_BATCH_ROWS = 256
_SCALARS = {"label": "bool", "metadata": "string"}


def tokenize_shard(
    task: Task, packing: Packing | None, path: Path, out: Path, memo: RowMemo | None
) -> dict[str, Any]:
    """Write the tokens of one shard; return the counts and what is wrong with its rows.

    What `memo` knows is taken over; the bytes are those that all rows tokenized would give.
    """
    import pyarrow as pa

    form = FORMS[task.form]
    columns = form.columns
    rows = read_table(path)
    if "metadata" not in columns:
        rows = rows.drop_columns(["metadata"])
    shard = _Shard(task, form, memo)
    for start in range(0, rows.num_rows, _BATCH_ROWS):
        shard.add(start, rows_of(rows.slice(start, _BATCH_ROWS)))
    found = [document for documents in shard.documents for document in documents]
    numbers: Sequence[int | None] = range(len(found))
    if packing is not None:
        found, numbers = pack(found, packing, task.max_length)
        columns = (*columns, "seq_lengths")
    arrays = [_column(name, [row[place] for row in found]) for place, name in enumerate(columns)]
    write_batch(out / "shard.arrow", pa.RecordBatch.from_arrays(arrays, names=list(columns)))
    write_outcomes(out / NAME, shard.outcomes(numbers, are_together=packing is None))
    tally = shard.tally
    return {
        "input_rows": rows.num_rows,
        "new_rows": shard.new_rows,
        "rows": len(found),
        "tokens": sum(map(form.num_tokens, found)),
        "trainable_tokens": sum(map(form.num_trained, found)),
        "documents": len(numbers),
        "dropped": len(tally.dropped),
        "truncated": len(tally.truncated),
        "split": len(tally.split),
        "findings": tally.findings.to_plain(),
    }


class _Shard:
    """What the rows of a shard become, batch by batch."""

    def __init__(self, task: Task, form: TokenForm, memo: RowMemo | None) -> None:
        self._task, self._form, self._memo = task, form, memo
        self.tally = Tally(Findings())
        self.documents: list[list[Any]] = []
        """Of each row; of each document a value for each column."""
        self.new_rows = 0
        """Those that were tokenized here."""
        self._digests: list[bytes] = []
        self._fates = {
            DROPPED: self.tally.dropped,
            TRUNCATED: self.tally.truncated,
            SPLIT: self.tally.split,
        }

    def add(self, start: int, batch: list[dict[str, Any]]) -> None:
        """Take the rows from number `start` on."""
        digests = [row_digest(row) for row in batch]
        self._digests += digests
        known = {} if self._memo is None else self._memo.find(digests)
        new = [(start + n, row) for n, row in enumerate(batch) if n not in known]
        self.new_rows += len(new)
        made: list[list[Any]] = [[] for _ in batch]
        if new:
            for number, document in self._form.make(self._task, new, self.tally):
                made[number - start].append(document)
        for number, row in known.items():
            made[number] = row.documents
            for fate, numbers in self._fates.items():
                if row.fate & fate:
                    numbers.append(start + number)
        self.documents += made

    def outcomes(self, numbers: Sequence[int | None], *, are_together: bool) -> list[Outcome]:
        """Return what each row became.

        `numbers` are those of all documents in the file; those of one row follow one another in it
        if they are `are_together`.
        """
        findings = self.tally.findings.rows.values()
        refused = {row for rows in findings for row in rows}
        fates = [0] * len(self.documents)
        for fate, rows in self._fates.items():
            for row in rows:
                fates[row] |= fate
        out = []
        at = 0
        for row, documents in enumerate(self.documents):
            count = len(documents)
            first = numbers[at] if count else 0
            if first is None or row in refused or (count > 1 and not are_together):
                out.append(Outcome(self._digests[row], 0, AGAIN, 0))
            else:
                out.append(Outcome(self._digests[row], first, count, fates[row]))
            at += count
        return out


def _column(name: str, values: list[Any]) -> Any:
    """Return a column: of ids, or of what its name says."""
    import numpy
    import pyarrow as pa

    if name in _SCALARS:
        return pa.array(values, _SCALARS[name])
    ends = numpy.cumsum([0, *map(len, values)], dtype=numpy.int32)
    parts = [numpy.empty(0, numpy.int32), *(numpy.asarray(value, numpy.int32) for value in values)]
    return pa.ListArray.from_arrays(ends, numpy.concatenate(parts))
