"""A tokenizer whose class follows from `config.json` alone, which `tokens` does not read."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from ftbuild.api import TOKENIZER
from ftbuild.testing import run_rule, source
from ftbuild_rules.models.base_model import base_model
from tiny_models import make_model


def ids(directory: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(directory)("a1234 b")["input_ids"]


def alone(model: Path, directory: Path) -> Path:
    directory.mkdir()
    for path in model.iterdir():
        if TOKENIZER.holds(path.name):
            shutil.copyfile(path, directory / path.name)
    return directory


def test_class_that_only_the_config_tells_is_written_down(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "qwen")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("tokenizer_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    # The control: without the class, the files alone make another tokenizer.
    whole = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    bare = AutoTokenizer.from_pretrained(alone(folder, tmp_path / "bare"))
    assert bare.backend_tokenizer.to_str() != whole

    model = run_rule(base_model, {"source": source(folder)}, {}, tmp_path)

    written = json.loads((model.path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "Qwen2Tokenizer"
    both = [model.path, alone(model.path, tmp_path / "alone")]
    found = {AutoTokenizer.from_pretrained(d).backend_tokenizer.to_str() for d in both}
    assert found == {whole}
    assert ids(both[0]) == ids(both[1]) == ids(folder)
