r"""Format `segments`: plain text in pieces, each with a flag whether it is trained on.

{"segments": [{"text": "Q: 2 + 2?\nA: ", "train": false}, {"text": "4", "train": true}]}

Axolotl's name for the flag is `label`. Texts are joined as they are; no template is applied.
"""

from typing import Any

from ftbuild_rules.formats._messages import parse_json
from ftbuild_rules.formats._words import BadRow, kind, names, text

FORM = "segments"
COLUMNS = ("segments",)
NEEDED = ("segments",)
_FLAGS = ("train", "label")


def normalise(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row's segments.

    Raises:
        BadRow: it is no list of texts with flags, or none of them is trained on.
    """
    value = row["segments"]
    if isinstance(value, str):
        value = parse_json(value, "`segments`")
    if not isinstance(value, list) or not value:
        raise BadRow(
            "E0811",
            f"`segments` should be a list; found {kind(value)}",
            'write "segments": [{"text": "…", "train": true}, …]',
        )
    segments = [_segment(item, f"segment {number}") for number, item in enumerate(value, 1)]
    if not any(item["train"] and item["text"] for item in segments):
        raise BadRow("E0813", "no segment is trained on", 'set "train": true on one')
    return {"segments": segments}


def _segment(value: Any, where: str) -> dict[str, Any]:
    flags = [key for key in _FLAGS if isinstance(value, dict) and isinstance(value.get(key), bool)]
    if len(flags) != 1 or set(value) != {"text", flags[0]}:
        found = names(value) if isinstance(value, dict) else kind(value)
        raise BadRow(
            "E0811",
            f"{where} should have `text` and `train`, which is true or false; found {found}",
            'write {"text": "…", "train": true}',
        )
    return {"text": text(value["text"], f"`text` of {where}"), "train": value[flags[0]]}
