"""`leakage`: which rows for evaluation are among the rows for training, exactly or nearly.

[leakage.check]
train = "train_rows"
eval = "eval_rows"
max_rows = 0                # then it is an error if there is one
"""

from collections.abc import Iterator, Mapping, Sequence

from ftbuild.api import (
    Context,
    Dataset,
    Field,
    Inputs,
    Params,
    Report,
    RuleError,
    canonical_json,
    rule,
)
from ftbuild_rules.data._arrow import PRELOAD
from ftbuild_rules.data._duplicates import Likeness, Match, Seen, Signed, sign
from ftbuild_rules.data._write import read_index
from ftbuild_rules.data.dedup import one_form

_EXAMPLES = 100


class LeakageInputs(Inputs):
    """What is compared."""

    train: Dataset
    """Rows that a model is trained on."""

    eval: Dataset
    """Rows of the same form that it is judged by."""


class LeakageParams(Params):
    """When a row counts as leaked."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """The share of word n-grams that two rows have in common, from which on one is leaked."""

    ngram: int = Field(default=5, ge=1)
    """Of how many words an n-gram consists."""

    max_rows: int | None = Field(default=None, ge=0)
    """How many rows may be leaked before it is an error; without it, they are reported only."""


@rule(version=1, output=Report, pins=("pyarrow",), preload=PRELOAD, cpus="all")
def leakage(ctx: Context, inputs: LeakageInputs, params: LeakageParams) -> None:
    """Report the rows for evaluation that are among those for training."""
    datasets = [inputs.train, inputs.eval]
    one_form(datasets)
    likeness = Likeness(True, params.threshold, params.ngram)
    shards = sign(ctx, datasets, likeness, of=("train", "eval"))
    found = list(_leaked(Seen(shards, likeness), shards))
    exact = sum(match.similarity == 1 for _, match in found)
    if params.max_rows is not None and len(found) > params.max_rows:
        number, match = found[0]
        raise RuleError(
            f"{len(found):,} rows for evaluation are among the rows for training, "
            f"{exact:,} of them exactly; the first: row {number} is like row {match.row}",
            code="E0857",
            fix='remove them: a `dedup` of the one with against = ["the other"]',
        )
    figures = {
        "train_rows": read_index(inputs.train)["rows"],
        "eval_rows": read_index(inputs.eval)["rows"],
        "leaked": len(found),
        "exact": exact,
        "near": len(found) - exact,
    }
    examples = [_plain(number, match) for number, match in found[:_EXAMPLES]]
    report = {**figures, "rows": examples}
    (ctx.out / "report.json").write_bytes(canonical_json(report) + b"\n")
    (ctx.out / "report.md").write_text(_markdown(figures, found[:_EXAMPLES]), "utf-8")
    if found:
        ctx.warn(f"{len(found):,} of {figures['eval_rows']:,} rows for evaluation are leaked")
    ctx.facts(**figures)


def _leaked(seen: Seen, shards: Sequence[Signed]) -> Iterator[tuple[int, Match]]:
    """Yield the numbers of the rows of the second dataset that are like one of the first."""
    for number, shard in enumerate(shards):
        for row in seen.rows(number):
            if shard.dataset == 0:
                seen.add(row)
            elif (match := seen.match(row)) is not None:
                yield shard.start + row.place, match


def _plain(number: int, match: Match) -> dict[str, float]:
    return {"eval": number, "train": match.row, "similarity": round(match.similarity, 6)}


def _markdown(figures: Mapping[str, int], found: list[tuple[int, Match]]) -> str:
    lines = ["# Leakage", "", "| | rows |", "| --- | --- |"]
    lines += [f"| {name} | {count:,} |" for name, count in figures.items()]
    if found:
        lines += [
            "",
            "| row for evaluation | row for training | similarity |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {n} | {match.row} | {match.similarity:.3f} |" for n, match in found]
    return "\n".join(lines) + "\n"
