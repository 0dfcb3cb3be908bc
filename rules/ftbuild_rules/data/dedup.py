"""`dedup`: a dataset without the rows that repeat an earlier one.

[dedup.train]
dataset = "all"
against = ["eval"]          # nor what is in the rows for evaluation
method = "near"

Rows are exact duplicates where they say the same, whatever their metadata and outer white space.
The first of them stays.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    Piece,
    RuleError,
    hash_bytes,
    rule,
)
from ftbuild_rules.data._arrow import PRELOAD
from ftbuild_rules.data._by_shard import numbered_rows, write_pieces
from ftbuild_rules.data._duplicates import Likeness, Match, Seen, Signed, kept, sign
from ftbuild_rules.data._shards import SMALL_ROWS, SizedRow
from ftbuild_rules.data._write import form_of, read_index

_LOGGED = 1_000
"""So many rows are told of one by one."""


class DedupInputs(Inputs):
    """What is deduplicated."""

    dataset: Dataset
    """Rows of any form."""

    against: tuple[Dataset, ...] = ()
    """Datasets of the same form none of whose rows may be among the result's."""


class DedupParams(Params):
    """When a row repeats another."""

    method: Literal["exact", "near"] = "exact"
    """`exact`: it says the same. `near`: also where its words nearly are the same."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """With `near`, the share of word n-grams that two rows have in common, from which on they are
    duplicates (the Jaccard similarity)."""

    ngram: int = Field(default=5, ge=1)
    """With `near`, of how many words an n-gram consists."""


def check(kinds: Mapping[str, tuple[str, ...]], params: DedupParams) -> None:
    """Check that what is set has a meaning.

    Raises:
        AttributeProblem: it has none for exact duplicates.
    """
    for name in ("threshold", "ngram"):
        if params.method == "exact" and getattr(params, name) != getattr(DedupParams(), name):
            raise AttributeProblem(
                name, f'`{name}` has no meaning for `method = "exact"`', 'set method = "near"'
            )


@rule(
    version=1,
    output=Dataset,
    pins=("pyarrow",),
    preload=PRELOAD,
    check=check,
    cpus="all",
)
def dedup(ctx: Context, inputs: DedupInputs, params: DedupParams) -> None:
    """Remove the rows that repeat an earlier row, or one of another dataset."""
    datasets = [*inputs.against, inputs.dataset]
    form = one_form(datasets)
    of = ("dataset", "against") if inputs.against else ("dataset",)
    likeness = Likeness(params.method == "near", params.threshold, params.ngram)
    shards = sign(ctx, datasets, likeness, of=of)
    told = _Told(ctx, datasets)
    if not _write(ctx, shards, likeness, told, form, of):
        raise RuleError(
            f"all {read_index(inputs.dataset)['rows']:,} rows repeat rows of `against`",
            code="E0856",
            fix="is `against` the dataset itself?",
        )
    told.end()


class _Told:
    """What is said of the rows that repeat others."""

    def __init__(self, ctx: Context, datasets: list[Dataset]) -> None:
        self._ctx, self._datasets = ctx, datasets
        self._found: Counter[str] = Counter()

    def add(self, row: int, match: Match) -> None:
        own = len(self._datasets) - 1
        where = "within" if match.dataset == own else "against"
        self._found[f"{'exact' if match.similarity == 1 else 'near'} {where}"] += 1
        if self._found.total() <= _LOGGED:
            label = self._datasets[match.dataset].label
            other = "row" if match.dataset == own else f"row of {label}"
            self._ctx.log(
                f"row {row} repeats {other} {match.row}, similarity {match.similarity:.3f}"
            )

    def end(self) -> None:
        if self._found.total() > _LOGGED:
            self._ctx.log(f"and {self._found.total() - _LOGGED:,} more")
        counts = {name.replace(" ", "_"): count for name, count in self._found.items()}
        self._ctx.facts(dropped=self._found.total(), **counts)


def _write(
    ctx: Context,
    shards: Sequence[Signed],
    likeness: Likeness,
    told: _Told,
    form: str,
    of: tuple[str, ...],
) -> int:
    """Write the rows of the last dataset that are like none before them; return how many."""
    own = shards[-1].dataset
    seen = Seen(shards, likeness)
    for number, shard in enumerate(shards):
        if shard.dataset != own:
            for row in seen.rows(number):
                seen.add(row)

    paths = [shard.path for shard in shards if shard.dataset == own]
    pieces = [
        Piece((ctx.digest(path), hash_bytes(stays.tobytes())), (path, stays))
        for path, stays in zip(paths, kept(seen, shards, own, told.add), strict=True)
    ]
    is_large = sum(int(piece.payload[1].sum()) for piece in pieces) > SMALL_ROWS
    return write_pieces(ctx, pieces, _staying, form, of=of, is_large=is_large)


def _staying(shard: tuple[Path, Any]) -> Iterator[SizedRow]:
    path, stays = shard
    return (row for (_, row), stay in zip(numbered_rows(path, 0), stays, strict=True) if stay)


def one_form(datasets: list[Dataset]) -> str:
    """Return the form of datasets that are compared.

    Raises:
        RuleError: they are of several.
    """
    forms = sorted({form_of(dataset) for dataset in datasets})
    if len(forms) > 1:
        raise RuleError(
            f"datasets of the forms {' and '.join(f'`{form}`' for form in forms)} "
            "cannot be compared",
            code="E0851",
            fix="name datasets of one form",
        )
    return forms[0]
