"""Format `tokenized`: token ids, made elsewhere; nothing is tokenized again.

{"input_ids": [1, 15043, 2], "labels": [-100, 15043, 2], "attention_mask": [1, 1, 1]}

Without `labels` all tokens are trained on. Where `attention_mask` is 0 stands padding, which is
taken away. The ids must be those of the model's own tokenizer: nobody can check that later.
"""

from typing import Any

from ftbuild_rules.formats._messages import parse_json
from ftbuild_rules.formats._words import BadRow, kind

FORM = "tokenized"
COLUMNS = ("input_ids", "labels", "attention_mask")
NEEDED = ("input_ids",)
_MASKED = -100


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row's ids and labels.

    Raises:
        BadRow: a column is no list of ids, the lengths differ, or nothing is trained on.
    """
    ids = _numbers(row["input_ids"], "input_ids")
    labels = _numbers(row.get("labels", ids), "labels")
    mask = _numbers(row.get("attention_mask", [1] * len(ids)), "attention_mask")
    for name, values in (("labels", labels), ("attention_mask", mask)):
        if len(values) != len(ids):
            raise BadRow(
                "E0811",
                f"`{name}` has {len(values)} entries, `input_ids` has {len(ids)}",
                "give one for each token",
            )
    kept = [place for place, shown in enumerate(mask) if shown]
    ids, labels = [ids[place] for place in kept], [labels[place] for place in kept]
    _check(ids, labels)
    return {"input_ids": ids, "labels": labels}


def _numbers(value: Any, column: str) -> list[int]:
    if isinstance(value, str):
        value = parse_json(value, f"`{column}`")
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        found = "a list with other values" if isinstance(value, list) else kind(value)
        raise BadRow(
            "E0811",
            f"`{column}` should be a list of whole numbers; found {found}",
            f'write "{column}": [1, 2, …]',
        )
    return value


def _check(ids: list[int], labels: list[int]) -> None:
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if not 0 <= token < 1 << 31:
            raise BadRow("E0811", f"`input_ids` holds {token}, which is no id", "write ids")
        if label not in (_MASKED, token):
            raise BadRow(
                "E0811",
                f"entry {place} of `labels` is {label},"
                f" which is neither its token {token} nor -100",
                "labels stand where their tokens do; the loss shifts them",
            )
    if all(label == _MASKED for label in labels):
        raise BadRow("E0813", "no token is trained on: all labels are -100", "remove the row")
