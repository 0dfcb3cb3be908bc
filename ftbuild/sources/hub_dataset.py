"""Which files of a dataset on the hub are a config's split, by the conventions of the hub.

The card (README.md) may say it, under `configs`. Else names tell: the files of a config lie in a
folder of its name, and those of a split have its name, or `dev`, `valid`, `eval`, in their path;
where no name tells, all files with rows are `train`.
Source: https://huggingface.co/docs/hub/datasets-data-files-configuration
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ftbuild.errors import UsageError

_ROWS = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|txt|tar)(\.(gz|zst|bz2|xz))?", re.IGNORECASE
)
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_Splits = dict[str, list[str]]


def choose(
    spec: str,
    files: Sequence[str],
    card: Mapping[str, Any],
    *,
    config: str | None,
    split: str | None,
) -> list[str]:
    """Return the files of a config's split in their order; `card` is the metadata of README.md.

    Raises:
        UsageError: E0424, there is no such config or split, or more than one to choose from.
    """
    configs = _configs(files, card)
    splits = configs[_one(spec, "config", config, configs, "default")]
    return splits[_one(spec, "split", split, splits, "train")]


def _one(spec: str, what: str, name: str | None, known: Mapping[str, Any], usual: str) -> str:
    if name is None and (usual in known or len(known) == 1):
        return usual if usual in known else next(iter(known))
    if name in known:
        assert name is not None
        return name
    listed = ", ".join(f"`{one}`" for one in sorted(known)) or "none"
    separator = "&" if "?" in spec else "?"
    example = next(iter(sorted(known)), "NAME")
    raise UsageError(
        f"`{spec}` has no {what} `{name}`" if name else f"`{spec}` has more than one {what}",
        code="E0424",
        why=f"it has {listed}",
        fix=f"name one: `{spec}{separator}{what}={example}`"
        if name is None
        else f"name one of these: `{what}={example}`",
    )


def _configs(files: Sequence[str], card: Mapping[str, Any]) -> dict[str, _Splits]:
    declared = _declared(card)
    if declared:
        return {
            name: {split: _matching(files, patterns) for split, patterns in splits.items()}
            for name, splits in declared.items()
        }
    rows = [file for file in sorted(files) if _ROWS.search(file)]
    folders = {file.split("/")[0] for file in rows if "/" in file} - {"data"}
    configs = {folder for folder in folders if not any(_is_of(s, folder + "/") for s in _NAMES)}
    if not configs:
        return {"default": _by_name(rows)}
    return {
        config: _by_name([file for file in rows if file.startswith(f"{config}/")])
        for config in configs
    }


def _declared(card: Mapping[str, Any]) -> dict[str, _Splits]:
    """Return what a card says: for each config, the patterns of each split."""
    return {
        str(one.get("config_name", "default")): _patterns(one["data_files"])
        for one in card.get("configs") or []
        if isinstance(one, dict) and one.get("data_files")
    }


def _patterns(given: Any) -> _Splits:
    if isinstance(given, str):
        return {"train": [given]}
    if all(isinstance(item, str) for item in given):
        return {"train": list(given)}
    return {
        str(item["split"]): [item["path"]] if isinstance(item["path"], str) else list(item["path"])
        for item in given
    }


def _matching(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    found = [
        file
        for pattern in patterns
        for file in sorted(files)
        if re.fullmatch(_translated(pattern), file)
    ]
    return list(dict.fromkeys(found))


def _translated(pattern: str) -> str:
    """Return a pattern of paths as a regular expression."""
    steps = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(steps.get(part, re.escape(part)) for part in parts)


def _by_name(rows: Sequence[str]) -> _Splits:
    splits = {split: [file for file in rows if _is_of(split, file)] for split in _NAMES}
    found = {split: named for split, named in splits.items() if named}
    return found or {"train": list(rows)}


def _is_of(split: str, path: str) -> bool:
    names = "|".join(_NAMES[split])
    return re.search(rf"(?:^|[/_.\- ])(?:{names})(?:[/_.\- 0-9]|$)", path.lower()) is not None
