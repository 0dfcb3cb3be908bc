"""What a user trusts by name: Python files of a model, and pickled weights by their digest."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftbuild.api import Context, Part, Place, RuleError, SourceFile
from ftbuild_rules.models._safetensors import write_tensors
from ftbuild_rules.models._torch import spec_of, tensor_bytes

CODE = Part("code", ("*.py",))
PICKLED = Part("pickled weights", ("pytorch_model*.bin",))
_OUTPUT = "lm_head.weight"


def runs_own_code(model: Path) -> bool:
    """Say whether a model's class is in files of its own: `base_model` took them by `code`."""
    config = json.loads((model / "config.json").read_bytes())
    return bool(config.get("auto_map"))


def take_code(ctx: Context, files: Sequence[SourceFile], config: dict[str, Any]) -> None:
    """Put the Python files beside the model that names them.

    Raises:
        RuleError: E0922: the settings name a class that is in none of them, or elsewhere.
    """
    names = {file.relative for file in files}
    for use, target in sorted(config.get("auto_map", {}).items()):
        module = str(target).partition(".")[0]
        if "--" in str(target) or f"{module}.py" not in names:
            raise RuleError(
                f"`auto_map.{use}` names `{target}`, which is in no file of `code`",
                code="E0922",
                where=Place(path="config.json", within="`auto_map`"),
                fix="name the folder or repository that has the file, and the model beside it",
            )
    for file in files:
        ctx.link(file.path, file.relative)


def unpickled(
    files: Sequence[SourceFile], allowed: Sequence[str], *, is_tied: bool, to: Path
) -> Path:
    """Return allowed pickled weights as one safetensors file, written to `to`.

    Only tensors are unpickled: torch's reader with `weights_only` runs no code of the file.

    Raises:
        RuleError: E0921: one is not allowed by its digest, or holds more than weights.
    """
    import pickle

    import torch

    for file in files:
        if file.digest not in allowed:
            raise RuleError(
                f"the pickled weights `{file.relative}` are not allowed",
                code="E0921",
                where=Place(path=file.name),
                why="unpickling can run code; only tensors are read, if you trust the file",
                fix=f'add its digest: allow_pickled = ["{file.digest}"]',
            )
    state: dict[str, Any] = {}
    for file in sorted(files, key=lambda each: each.relative):
        try:
            state |= torch.load(file.path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, TypeError) as error:
            raise RuleError(
                f"`{file.relative}` holds more than weights, or is damaged",
                code="E0921",
                where=Place(path=file.name),
                why=str(error).splitlines()[0],
                fix="take a revision that has safetensors",
            ) from error
    if is_tied:
        state.pop(_OUTPUT, None)  # the input embedding stands for it
    names = sorted(state)
    specs = [spec_of(name, state[name]) for name in names]
    write_tensors(to, specs, ([tensor_bytes(state[name])] for name in names))
    return to
