"""Code and pickles of a model: refused, but where they are trusted by name and by digest."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import artifact, run_rule, source
from ftbuild_rules.models.base_model import base_model
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)
"""
AUTO_MAP = {
    "AutoConfig": "modeling_mine.MineConfig",
    "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model whose class is in a file of its own."""
    model = make_model(tmp_path / "own")
    (model / "modeling_mine.py").write_text(CODE)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": AUTO_MAP}
    (model / "config.json").write_text(json.dumps(config))
    return model


def only(directory: Path, pattern: str, tmp_path: Path) -> Any:
    """Return the files that match, as a build takes them out of a folder."""
    folder = tmp_path / f"only-{pattern.replace('*', '_')}"
    folder.mkdir()
    for path in directory.glob(pattern):
        (folder / path.name).write_bytes(path.read_bytes())
    return source(folder)


def refused(inputs: dict[str, Any], tmp_path: Path, **params: Any) -> str:
    with pytest.raises(RuleError) as caught:
        run_rule(base_model, inputs, params, tmp_path)
    return caught.value.render()


def test_code_is_refused_until_it_is_named_and_then_runs_in_every_rule(
    tmp_path: Path, own: Path
) -> None:
    said = refused({"source": source(own)}, tmp_path)
    assert said.startswith("error[E0922]: `auto_map` in `config.json` loads code from outside")
    assert "name their folder or repository as `code`" in said

    inputs = {"source": source(own), "code": only(own, "*.py", tmp_path)}
    made = run_rule(base_model, inputs, {}, tmp_path)
    assert (made.path / "modeling_mine.py").read_text() == CODE
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", sft_rows(4)))
    params = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    for lora in ({}, {"lora": {"r": 4}}):
        trained = run_rule(sft, {"model": made, "data": tokens}, {**params, **lora}, tmp_path)
        assert isinstance(trained, Artifact)
        if not lora:
            assert (trained.path / "modeling_mine.py").read_text() == CODE


@pytest.mark.fault("47", "code of a model that is not named")
@pytest.mark.parametrize("target", ["someone/repo--modeling_mine.MineConfig", "other.MineConfig"])
def test_class_that_is_in_no_named_file_is_refused(tmp_path: Path, own: Path, target: str) -> None:
    config = json.loads((own / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = target
    (own / "config.json").write_text(json.dumps(config))
    inputs = {"source": source(own), "code": only(own, "*.py", tmp_path)}
    assert refused(inputs, tmp_path).splitlines()[0] == (
        f"error[E0922]: `auto_map.AutoConfig` names `{target}`, which is in no file of `code`"
    )


@pytest.mark.parametrize("is_tied", [False, True])
def test_pickled_weights_are_taken_by_their_digest_alone(tmp_path: Path, is_tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "model", tie_word_embeddings=is_tied)
    network = AutoModelForCausalLM.from_pretrained(model)
    torch.save(network.state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model.iterdir():
        if path.suffix != ".bin":
            (bare / path.name).write_bytes(path.read_bytes())
    pickled = only(model, "pytorch_model*.bin", tmp_path)
    inputs = {"source": source(bare), "pickled": pickled}
    [file] = pickled.files
    said = refused(inputs, tmp_path)
    assert said.splitlines()[0] == (
        "error[E0921]: the pickled weights `pytorch_model.bin` are not allowed"
    )
    assert f'add its digest: allow_pickled = ["{file.digest}"]' in said

    made = run_rule(base_model, inputs, {"allow_pickled": [file.digest]}, tmp_path)
    assert isinstance(made, Model)
    assert not list(made.path.glob("*.bin"))
    again = AutoModelForCausalLM.from_pretrained(made.path).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(again[name], tensor)


@pytest.mark.fault("46", "a pickle that runs code")
def test_pickle_that_runs_code_is_refused_even_if_it_is_allowed(tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Evil()}, 2))
    pickled = source(tmp_path / "evil")
    inputs = {"source": source(model), "pickled": pickled}
    said = refused(inputs, tmp_path, allow_pickled=[pickled.files[0].digest])
    assert said.splitlines()[0] == (
        "error[E0921]: `pytorch_model.bin` holds more than weights, or is damaged"
    )
    assert not (tmp_path / "owned").exists()
