"""`dedup`: a dataset without the rows that repeat an earlier one.

[dedup.train]
dataset = "all"
against = ["eval"]          # nor what is in the rows for evaluation
method = "near"

Rows are exact duplicates where they say the same, whatever their metadata and outer white space.
The first of them stays.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from ftbuild.api import (
    AttributeProblem,
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    RuleError,
    rule,
)
from ftbuild_rules.data._duplicates import Likeness, Match, Seen, without
from ftbuild_rules.data._write import form_of, read_index, sized_rows, write_dataset


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


@rule(version=1, output=Dataset, pins=("pyarrow",), preload=("pyarrow", "xxhash"), check=check)
def dedup(ctx: Context, inputs: DedupInputs, params: DedupParams) -> None:
    """Remove the rows that repeat an earlier row, or one of another dataset."""
    datasets = [*inputs.against, inputs.dataset]
    form = one_form(datasets)
    seen = Seen(datasets, Likeness(params.method == "near", params.threshold, params.ngram))
    for number, other in enumerate(inputs.against):
        for index, row in enumerate(sized_rows(other)):
            seen.add(row, number, index)
    own = len(inputs.against)
    found: Counter[str] = Counter()

    def count(row: int, match: Match) -> None:
        where = "within" if match.dataset == own else "against"
        found[f"{'exact' if match.similarity == 1 else 'near'} {where}"] += 1
        other = "row" if match.dataset == own else f"row of {datasets[match.dataset].label}"
        ctx.log(f"row {row} repeats {other} {match.row}, similarity {match.similarity:.3f}")

    kept = write_dataset(ctx, without(sized_rows(inputs.dataset), seen, own, count), form)
    if not kept:
        raise RuleError(
            f"all {read_index(inputs.dataset)['rows']:,} rows repeat rows of `against`",
            code="E0856",
            fix="is `against` the dataset itself?",
        )
    ctx.facts(dropped=found.total(), **{name.replace(" ", "_"): n for name, n in found.items()})


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
