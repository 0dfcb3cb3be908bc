"""Write a model whose weights were trained: same layout, type and tokenizer as its base."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftbuild.api import RuleError, canonical_json
from ftbuild_rules.models._card import CARDS
from ftbuild_rules.models._files import INDEX_NAME
from ftbuild_rules.quantization._dequantize import Base


def save_model(
    model: Any,
    out: Path,
    *,
    base: Base,
    settings: Mapping[str, Any] | None = None,
    trained: dict[str, Any] | None = None,
) -> None:
    """Write `model` to `out` in the type of the files of `base`, with all else from there.

    `settings` are laid over those of the base's `config.json`; `trained` are the weights where
    `model` holds only a share of them.

    Raises:
        RuleError: E0913: a value is not finite.
    """
    import torch

    found = dict(model.named_parameters()) if trained is None else trained
    for name, parameter in sorted(found.items()):
        if not parameter.isfinite().all():
            raise RuleError(
                f"the trained model holds NaN or infinite values in `{name}`",
                code="E0913",
                fix="lower `learning_rate`",
            )
    config = json.loads((base.path / "config.json").read_bytes())
    dtype = getattr(torch, config.get("dtype", config.get("torch_dtype", "float32")))
    if trained is None:
        model.to(dtype).save_pretrained(out)
    else:
        coarse = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in trained.items()
        }
        model.save_pretrained(out, state_dict=coarse)
    for path in out.iterdir():
        if path.suffix != ".safetensors" and path.name != INDEX_NAME:
            path.unlink()
    if (out / INDEX_NAME).exists():
        index = json.loads((out / INDEX_NAME).read_bytes())
        (out / INDEX_NAME).write_bytes(canonical_json(index))
    copy_all_but_weights(base.path, out)
    if settings:
        (out / "config.json").write_bytes(canonical_json({**config, **settings}))


def copy_all_but_weights(source: Path, out: Path) -> None:
    """Copy a model's settings, tokenizer and templates."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        name = path.relative_to(source)
        if path.suffix != ".safetensors" and path.name not in (INDEX_NAME, *CARDS):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
