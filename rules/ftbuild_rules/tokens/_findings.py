"""What is wrong with rows, counted: one error for each sort, with its first rows.

Rows are tokenized shard by shard and a shard's result is kept, so what was found is kept beside
it as numbers within the shard; the row's number in the dataset is known only when all are done.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ftbuild.api import Place, RuleError

Allowable = Literal[
    "no_trainable_tokens",
    "end_of_turn",
    "double_bos",
    "equal_pairs",
    "prompt_prefix",
    "split_tokens",
    "template_tokens",
]

_FIRST_ROWS = 5

# sort -> (code, what happened to the rows, what to do)
_SORTS = {
    "template": (
        "E0821",
        "are refused by the chat template",
        'mend the rows, or take another template: `chat_template = "…"`',
    ),
    "inexact": (
        "E0822",
        "cannot be masked exactly with this chat template",
        "take a template that marks the assistant's text with {% generation %}, or "
        "`last_turn_only = true`",
    ),
    "no_trainable_tokens": (
        "E0823",
        "have no trainable token",
        "look at `train_on`, `max_length` and the rows' own `train` flags",
    ),
    "too_long": (
        "E0824",
        "are longer than `max_length`",
        'raise `max_length`, or say what to do with them: `overflow = "drop"`, "truncate" or '
        '"split"',
    ),
    "end_of_turn": (
        "E0825",
        "never train the end of a turn, so the model would not learn to stop",
        "the chat template should end a turn with a special token of the tokenizer; where it has "
        'none, `train_on_eot = "none"`',
    ),
    "double_bos": (
        "E0826",
        "begin with two BOS tokens",
        "remove the BOS token from the rows' text",
    ),
    "equal_pairs": (
        "E0827",
        "have a chosen answer that equals the rejected one",
        "remove the rows; where only `max_length` makes them equal, raise it",
    ),
    "prompt_prefix": (
        "E0828",
        "have a prompt that is no prefix of the conversation: the model would be trained on "
        "another context than it sees when it answers",
        "take a chat template that renders the prompt alone as it does before an answer",
    ),
    "split_tokens": (
        "E0829",
        "have a token that reaches over the edge of a trained text",
        "remove the white space at the edges of the answers",
    ),
    "vocabulary": (
        "E0837",
        "have ids that the tokenizer does not know",
        "make the rows with this model's tokenizer, or name the model they were made for",
    ),
    "template_tokens": (
        "E0835",
        "have a token of the chat template that the tokenizer splits",
        "take a chat template whose tokens the tokenizer knows",
    ),
}


@dataclass
class Findings:
    """The rows of one shard with which something is wrong."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    detail: dict[str, str] = field(default_factory=dict)
    """Of the first row of a sort: what exactly."""

    def add(self, sort: str, row: int, detail: str = "") -> None:
        """Note that row number `row` of the shard is of this sort."""
        self.rows.setdefault(sort, []).append(row)
        self.detail.setdefault(sort, detail)

    def to_plain(self) -> dict[str, Any]:
        """Return the counts, the first rows and the detail of each sort as a JSON value."""
        return {
            sort: [len(rows), rows[:_FIRST_ROWS], self.detail[sort]]
            for sort, rows in self.rows.items()
        }


@dataclass(frozen=True)
class ShardFindings:
    """What a shard's result says of its rows."""

    first_row: int
    """The number in the dataset of the shard's first row."""
    sorts: dict[str, Any]


def check_findings(
    shards: Iterable[ShardFindings], allowed: Iterable[str], *, rows: int, label: str
) -> None:
    """Check that nothing was found but what the target allows.

    Raises:
        RuleError: there is; a problem for each sort.
    """
    counts: dict[str, int] = {}
    first: dict[str, list[int]] = {}
    details: dict[str, str] = {}
    for shard in shards:
        for sort, (count, numbers, detail) in shard.sorts.items():
            counts[sort] = counts.get(sort, 0) + count
            first.setdefault(sort, []).extend(shard.first_row + number for number in numbers)
            details.setdefault(sort, detail)
    silent = set(allowed)
    errors = [
        _error(sort, (counts[sort], rows), first[sort], details[sort], label)
        for sort in _SORTS
        if sort in counts and sort not in silent
    ]
    if errors:
        errors[0].problems = tuple(problem for error in errors for problem in error.problems)
        raise errors[0]


def _error(
    sort: str, share: tuple[int, int], numbers: list[int], detail: str, label: str
) -> RuleError:
    """Return the error for the rows of one sort: `share` is how many they are, of how many."""
    code, what, fix = _SORTS[sort]
    listed = ", ".join(str(number) for number in numbers[:_FIRST_ROWS])
    more = ", …" if share[0] > _FIRST_ROWS else ""
    if sort in get_args(Allowable):
        fix = f'{fix}; or allow it: `allow = ["{sort}"]`'
    return RuleError(
        f"{share[0]:,} of {share[1]:,} rows {what}",
        code=code,
        where=Place(label, within=f"rows {listed}{more}"),
        why=f"row {numbers[0]}: {detail}" if detail else None,
        fix=fix,
    )
