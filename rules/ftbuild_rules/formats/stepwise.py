"""Format `stepwise`: a solution in steps, each labelled right or wrong, as a PRM learns from it.

{"prompt": "2 + 3 * 4?", "completions": ["3 * 4 = 12", "2 + 12 = 15"], "labels": [true, false]}

The same as TRL's: the texts are plain, no template is applied.
"""

from typing import Any

from ftbuild_rules.formats._messages import parse_json
from ftbuild_rules.formats._words import BadRow, kind, text

FORM = "stepwise"
PROMPT = "prompt"
COLUMNS = ("prompt", "completions", "labels")
NEEDED = ("prompt", "completions", "labels")
ALIASES = {"completions": ("steps",)}


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return prompt, steps and labels.

    Raises:
        BadRow: a step is empty, or there is not one label for each.
    """
    prompt = text(row["prompt"], "`prompt`")
    if not prompt.strip():
        raise BadRow("E0813", "`prompt` is empty", "write it, or remove the row")
    steps = [text(step, f"step {n}") for n, step in enumerate(_list(row, "completions"), 1)]
    empty = next((number for number, step in enumerate(steps, 1) if not step.strip()), None)
    if empty is not None:
        raise BadRow("E0813", f"step {empty} is empty", "remove it, and its label")
    labels = _list(row, "labels")
    if len(labels) != len(steps):
        raise BadRow(
            "E0811",
            f"there are {len(steps)} steps and {len(labels)} labels",
            "give one label for each step",
        )
    return {"prompt": prompt, "completions": steps, "labels": [_label(item) for item in labels]}


def _list(row: dict[str, Any], column: str) -> list[Any]:
    value = row[column]
    if isinstance(value, str):
        value = parse_json(value, f"`{column}`")
    if not isinstance(value, list) or not value:
        raise BadRow(
            "E0811", f"`{column}` should be a list; found {kind(value)}", "write a list of steps"
        )
    return value


def _label(value: Any) -> bool:
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise BadRow(
        "E0811", f"a label should be true or false; found {kind(value)}", "write true or false"
    )
