"""A model's tokenizer must be the same with and without the model's `config.json`.

`AutoTokenizer` looks into `config.json` for the class of a tokenizer whose own settings name
none, and a class may split text in its own way. But `tokens` reads the tokenizer's files alone
(the weights and the rest of the model are not in its key), while whoever loads the merged model
has the whole directory. So the class is settled here, once, for both.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ftbuild.api import TOKENIZER, RuleError, canonical_json

_SETTINGS = "tokenizer_config.json"


def settle_tokenizer(model: Path, scratch: Path) -> None:
    """Make the tokenizer in the directory `model` the same whether or not its config is there.

    What the whole directory gives is what holds. Nothing is done for a model without a tokenizer.

    Raises:
        RuleError: E0927, it cannot be made so.
    """
    if not (model / "tokenizer.json").exists():
        return
    wanted = _identity(model)
    if _identity(_alone(model, scratch / "tokenizer")) == wanted:
        return
    settings = model / _SETTINGS
    known = json.loads(settings.read_bytes()) if settings.exists() else {}
    named = {**known, "tokenizer_class": type(_tokenizer(model)).__name__}
    settings.unlink(missing_ok=True)  # it may be a link to the source
    settings.write_bytes(canonical_json(named))
    if not wanted == _identity(model) == _identity(_alone(model, scratch / "settled")):
        raise RuleError(
            "the tokenizer gives other ids with the model's `config.json` than without",
            code="E0927",
            fix="set `tokenizer_class` in the model's tokenizer_config.json",
        )


def _alone(model: Path, directory: Path) -> Path:
    """Return a directory with the tokenizer's files and no others."""
    shutil.rmtree(directory, ignore_errors=True)
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model).as_posix()
        if path.is_file() and TOKENIZER.holds(name):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, directory / name)
    return directory


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError):
        return None


def _identity(directory: Path) -> tuple[str, dict[str, Any]] | None:
    """Return what decides the ids: the Rust tokenizer and the special tokens."""
    tokenizer = _tokenizer(directory)
    if tokenizer is None or not tokenizer.is_fast:
        return None
    return tokenizer.backend_tokenizer.to_str(), dict(tokenizer.special_tokens_map)
