"""`base_model` from a Transformers directory."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import AttributeProblem, Model, RuleError
from ftbuild.testing import run_rule, source
from ftbuild_rules.models.base_model import base_model
from tiny_models import TEMPLATE, make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", dtype="bfloat16")


def bring_in(directory: Path, tmp_path: Path, **params: Any) -> Model:
    made = run_rule(base_model, {"source": source(directory)}, params, tmp_path)
    assert isinstance(made, Model)
    return made


def test_only_needed_files_are_taken_and_byte_for_byte(model: Path, tmp_path: Path) -> None:
    for extra in ("README.md", "modeling_custom.py", "pytorch_model.bin", "training_args.bin"):
        (model / extra).write_bytes(b"x")
    (model / "original").mkdir()
    (model / "original" / "consolidated.safetensors").write_bytes(b"x")
    made = bring_in(model, tmp_path)
    names = sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*"))
    assert names == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all((made.path / n).read_bytes() == (model / n).read_bytes() for n in names)


def test_sharded_weights_keep_their_files(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", max_shard_size="40KB")
    made = bring_in(model, tmp_path)
    shards = sorted(p.name for p in model.glob("*.safetensors*"))
    assert len(shards) > 2
    assert sorted(p.name for p in made.path.glob("*.safetensors*")) == shards


def test_dtype_rounds_each_value_once(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model = make_model(tmp_path / "model", dtype="float32")
    made = bring_in(model, tmp_path, dtype="bfloat16")
    before, after = (load_file(d / "model.safetensors") for d in (model, made.path))
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    assert json.loads((made.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_template_of_the_tokenizer_config_gets_a_file_of_its_own(
    model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").unlink()
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    templates = [
        {"name": "default", "template": "A {{ 1 }}"},
        {"name": "tool_use", "template": "B {{ 2 }}"},
    ]
    path.write_text(json.dumps({**config, "chat_template": templates}))
    made = bring_in(model, tmp_path)
    assert (made.path / "chat_template.jinja").read_text() == "A {{ 1 }}"
    other = made.path / "additional_chat_templates" / "tool_use.jinja"
    assert other.read_text() == "B {{ 2 }}"
    assert json.loads((made.path / "tokenizer_config.json").read_text()) == config


def test_chat_template_replaces_the_models_own(model: Path, tmp_path: Path) -> None:
    own = "{{ messages[0]['content'] }}"
    assert (model / "chat_template.jinja").read_text() == TEMPLATE
    made = bring_in(model, tmp_path, chat_template=own)
    assert (made.path / "chat_template.jinja").read_text() == own
    named = bring_in(model, tmp_path, chat_template="chatml")
    assert "<|im_start|>" in (named.path / "chat_template.jinja").read_text()
    assert (model / "chat_template.jinja").read_text() == TEMPLATE


def test_unknown_template_name_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AttributeProblem) as caught:
        bring_in(model, tmp_path, chat_template="chatmll")
    assert caught.value.what == "there is no chat template `chatmll`"


@pytest.mark.fault("46", "pickled weights of a model")
def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(RuleError) as caught:
        bring_in(model, tmp_path)
    assert caught.value.render() == (
        "error[E0921]: the model's weights are pickled (`pytorch_model.bin`), and unpickling runs "
        "code\n"
        "  --> pytorch_model.bin\n"
        "  fix: take a revision that has safetensors; or, if you trust these, name the source as "
        "`pickled` and their digests as `allow_pickled`"
    )


@pytest.mark.parametrize(
    ("file", "key", "value", "path"),
    [
        ("config.json", "auto_map", {"AutoModel": "modeling.X"}, "auto_map"),
        ("config.json", "trust_remote_code", True, "trust_remote_code"),
        ("config.json", "_attn_implementation_internal", "a/b", "_attn_implementation_internal"),
        ("config.json", "_attn_implementation", "hub/kernel", "_attn_implementation"),
        ("config.json", "text_config", {"auto_map": {"A": "b"}}, "text_config.auto_map"),
        ("config.json", "parts", [{"trust_remote_code": True}], "parts.0.trust_remote_code"),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["t.X", None]}, "auto_map"),
        ("generation_config.json", "trust_remote_code", True, "trust_remote_code"),
    ],
)
def test_settings_that_load_code_are_refused(
    model: Path, tmp_path: Path, file: str, key: str, value: Any, path: str
) -> None:
    settings = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(RuleError) as caught:
        bring_in(model, tmp_path)
    problem = caught.value.problems[0]
    assert (problem.code, problem.what) == (
        "E0922",
        f"`{path}` in `{file}` loads code from outside",
    )


def test_harmless_settings_pass(model: Path, tmp_path: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    harmless = {"trust_remote_code": False, "auto_map": {}, "_attn_implementation": "sdpa"}
    (model / "config.json").write_text(json.dumps({**settings, **harmless}))
    bring_in(model, tmp_path)


def test_adapter_and_quantized_model_and_nothing_are_refused(model: Path, tmp_path: Path) -> None:
    def refused(directory: Path) -> tuple[str, str]:
        with pytest.raises(RuleError) as caught:
            bring_in(directory, tmp_path)
        return caught.value.problems[0].code, caught.value.problems[0].what

    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "quantization_config": {}}))
    what = "the model's weights are quantized; `base_model` takes full weights"
    assert refused(model) == ("E0928", what)
    (model / "config.json").write_text("[1]")
    assert refused(model) == ("E0923", "`config.json` is not a JSON object")
    (model / "config.json").unlink()
    assert refused(model) == ("E0920", "the source has no `config.json`")
    (model / "adapter_config.json").write_text("{}")
    assert refused(model) == ("E0920", "the source is an adapter, not a model")
