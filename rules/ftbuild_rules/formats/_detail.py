"""Flags for parts of a message: which characters of its text are trained on.

{"content": "Hello, nice to meet you!", "train_detail": [
    {"begin_offset": 0, "end_offset": 8, "train": false}, …]}
{"content": [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you", "train": true}]}

The first is Axolotl's; its end is the last character that is meant.
"""

from typing import Any

from ftbuild.api import canonical_json
from ftbuild_rules.data._json import RefusedError, decoder
from ftbuild_rules.formats._words import BadRow, kind

_FIX = 'write {"begin_offset": 0, "end_offset": 8, "train": false}, in order and without overlap'


def train_detail(value: Any, content: str, where: str) -> str:
    """Return the flags of ranges of a text as canonical JSON: [[begin, end, flag], …].

    Units: characters; `end` is the first that is not meant.

    Raises:
        BadRow: a range is malformed, outside of the text, or overlaps the one before.
    """
    if isinstance(value, str):
        try:
            value = decoder.decode(value)
        except (RefusedError, ValueError, RecursionError) as error:
            raise BadRow(
                "E0811", f"`train_detail` of {where} is no JSON: {error}", "write a JSON value"
            ) from None
    if not isinstance(value, list):
        raise BadRow(
            "E0811", f"`train_detail` of {where} should be a list; found {kind(value)}", _FIX
        )
    ranges: list[tuple[int, int, bool]] = []
    for number, item in enumerate(value, 1):
        begin, end, train = _range(item, f"range {number} of {where}")
        if begin < (ranges[-1][1] if ranges else 0) or end <= begin or end > len(content):
            raise BadRow(
                "E0811",
                f"range {number} of {where}, {begin} to {end - 1}, is not within its text of "
                f"{len(content)} characters and after the range before",
                _FIX,
            )
        ranges.append((begin, end, train))
    return canonical_json(ranges).decode()


def _range(item: Any, where: str) -> tuple[int, int, bool]:
    keys = {"begin_offset": int, "end_offset": int, "train": bool}
    is_right = isinstance(item, dict) and set(item) == set(keys)
    if not is_right or any(type(item[key]) is not wanted for key, wanted in keys.items()):
        raise BadRow("E0811", f"{where} should have `begin_offset`, `end_offset` and `train`", _FIX)
    return item["begin_offset"], item["end_offset"] + 1, item["train"]


def part_flags(content: Any, where: str) -> dict[str, str]:
    """Return the flags that the parts of a text have, as `train_detail`; nothing without any.

    Raises:
        BadRow: a flag is neither true nor false.
    """
    if not isinstance(content, list):
        return {}
    ranges: list[tuple[int, int, bool]] = []
    at = 0
    for part in content:
        end = at + len(part["text"])
        flag = part.get("train")
        if flag is not None and not isinstance(flag, bool):
            raise BadRow(
                "E0811",
                f"`train` of a part of {where} should be true or false",
                "write one of them",
            )
        if flag is not None and end > at:
            ranges.append((at, end, flag))
        at = end
    return {"train_detail": canonical_json(ranges).decode()} if ranges else {}
