"""Which files a model directory has, and which of them hold its weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from ftbuild.api import RuleError
from ftbuild_rules.models._safetensors import damaged

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TEMPLATE_NAME = "chat_template.jinja"
OF_THE_MODEL = {
    name: f"it is the model's: write `{name}` in the table of the `base_model` target"
    for name in ("add_tokens", "add_special_tokens", "pad_token")
}
"""Attributes of `base_model` that users look for in rules that read a model."""


def files_of(directory: Path) -> dict[str, Path]:
    """Return the files right below `directory` by name."""
    return {path.name: path for path in sorted(directory.iterdir()) if path.is_file()}


def weight_files(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Return which of a model's `files` hold its weights: the index's, else the one file.

    Raises:
        RuleError: E0924: there is no weight file, or the index names one that is absent.
    """
    if INDEX_NAME not in files:
        if SINGLE_NAME in files:
            return (SINGLE_NAME,)
        raise RuleError(
            f"the model has no `{SINGLE_NAME}`",
            code="E0924",
            why="other weights, such as pickled ones (`.bin`, `.pt`), are not read",
            fix="save it with Transformers' `save_pretrained`, or name the source of pickled "
            "weights as `pickled`",
        )
    try:
        names = sorted(set(json.loads(files[INDEX_NAME].read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(INDEX_NAME, f"its `weight_map` cannot be read ({error})") from error
    for name in names:
        if name not in files:
            raise damaged(INDEX_NAME, f"it names `{name}`, which is not among the files")
    return tuple(names)
