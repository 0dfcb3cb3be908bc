"""How models, adapters and reports look."""

import json
from pathlib import Path

import pytest

from ftbuild.api import Adapter, Model, QuantizedModel, Report, RewardModel, View
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.quantization.quantize import quantize
from ftbuild_rules.viewers import adapter as adapter_viewer
from ftbuild_rules.viewers import model as model_viewer
from ftbuild_rules.viewers import quantized_model as quantized_viewer
from ftbuild_rules.viewers import report as report_viewer
from ftbuild_rules.viewers import reward_model as reward_viewer
from tiny_models import make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()


def text(view: View) -> list[str]:
    return ["".join(span.text for span in line) for line in view.lines]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_model_shows_shapes_and_norms(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file

    path = make_model(tmp_path / "model", dtype=dtype)
    view = model_viewer.inspect(artifact(Model, path))
    weights = load_file(path / "model.safetensors")
    assert {t["name"]: t["shape"] for t in view.data["tensors"]} == {
        name: list(weight.shape) for name, weight in weights.items()
    }
    for tensor in view.data["tensors"]:
        expected = weights[tensor["name"]].double().norm().item()
        assert tensor["norm"] == pytest.approx(expected, rel=1e-9)
    parameters = sum(weight.numel() for weight in weights.values())
    assert text(view)[0] == f"{parameters:,} parameters in {len(weights)} tensors"
    one = model_viewer.inspect(artifact(Model, path), row=3)
    assert one.data["tensors"] == view.data["tensors"][3:4]


def test_models_differ_in_the_changed_tensor_and_setting_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    one, two = (make_model(tmp_path / name) for name in ("one", "two"))
    weights = load_file(two / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][0, 0] += 3.0
    weights[name][1, 1] -= 4.0
    del weights["model.norm.weight"]
    save_file(weights, two / "model.safetensors")
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    view = model_viewer.diff(artifact(Model, one), artifact(Model, two))
    assert view.data["only_in_a"] == ["model.norm.weight"]
    assert view.data["config"] == {"rms_norm_eps": [1e-06, 0.5]}
    (changed,) = view.data["changed"]
    assert changed["name"] == name
    assert changed["max_difference"] == pytest.approx(4.0, abs=1e-5)
    assert changed["norm_of_difference"] == pytest.approx(5.0, abs=1e-5)
    assert text(view) == [
        "~ rms_norm_eps: 1e-06 -> 0.5",
        "- model.norm.weight",
        f"~ {name}  largest difference 4, norm 5",
        f"{len(weights) - 1} equal tensors",
    ]


def test_value_that_is_not_finite_is_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    one, two = (make_model(tmp_path / name) for name in ("one", "two"))
    weights = load_file(two / "model.safetensors")
    weights["model.norm.weight"][5] = float("inf")
    save_file(weights, two / "model.safetensors")
    view = model_viewer.inspect(artifact(Model, two))
    norms = {tensor["name"]: tensor["norm"] for tensor in view.data["tensors"]}
    assert norms["model.norm.weight"] is None
    json.dumps(view.data, allow_nan=False)
    difference = model_viewer.diff(artifact(Model, one), artifact(Model, two))
    assert "~ model.norm.weight  a value is not finite" in text(difference)


def make_adapter(directory: Path, *, value: float) -> Adapter:
    import torch
    from safetensors.torch import save_file

    directory.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "base.json").write_text(json.dumps({"base": "ab" * 32}))
    tensors = {"q.lora_A.weight": torch.full((2, 2), value), "q.lora_B.weight": torch.zeros(2, 2)}
    save_file(tensors, directory / "adapter_model.safetensors")
    made = artifact(Adapter, directory)
    assert isinstance(made, Adapter)
    return made


def test_adapter_shows_its_base_and_tensors(tmp_path: Path) -> None:
    one = make_adapter(tmp_path / "one", value=1.0)
    assert text(adapter_viewer.inspect(one)) == [
        "LORA r=2 alpha=4, 2 tensors",
        f"base: {'ab' * 32}",
        "q.lora_A.weight  F32   2x2            norm 2",
        "q.lora_B.weight  F32   2x2            norm 0",
    ]
    two = make_adapter(tmp_path / "two", value=1.5)
    assert text(adapter_viewer.diff(one, two)) == [
        "~ q.lora_A.weight  largest difference 0.5, norm 1",
        "1 equal tensors",
    ]


def test_judge_shows_as_what_it_is_a_whole_model_or_an_adapter(tmp_path: Path) -> None:
    whole = artifact(RewardModel, make_model(tmp_path / "whole"))
    assert reward_viewer.inspect(whole).data == model_viewer.inspect(whole).data
    part = artifact(RewardModel, make_adapter(tmp_path / "part", value=1.0).path)
    assert text(reward_viewer.inspect(part))[0] == "LORA r=2 alpha=4, 2 tensors"
    assert text(reward_viewer.diff(part, part)) == ["2 equal tensors"]
    assert text(reward_viewer.diff(part, whole)) == [
        "one is an adapter, the other a whole model: they have no tensor in common"
    ]


def test_quantized_model_shows_its_method_and_how_far_each_layer_is_off(tmp_path: Path) -> None:
    model = artifact(Model, make_model(tmp_path / "model", num_hidden_layers=1))
    made = run_rule(quantize, {"model": model}, {"method": "nf4"}, tmp_path)
    view = quantized_viewer.inspect(artifact(QuantizedModel, made.path))
    about = json.loads((made.path / "quantization.json").read_bytes())
    shown = text(view)
    assert shown[0] == f"nf4, {view.data['bytes'] / 1e6:.1f} MB in 33 tensors"
    assert shown[1:3] == [
        f"made from: {model.digest}",
        f"relative error: {about['relative_error']:.4g}",
    ]
    name = "model.layers.0.mlp.down_proj.weight"
    found = about["layers"][name]
    assert shown[3] == (
        f"{name}  off by {found['relative_error']:.4g}, at most {found['largest_difference']:.4g}"
    )
    assert [len(quantized_viewer.inspect(made, row=3).lines)] == [4]
    other = run_rule(quantize, {"model": model}, {"method": "fp4"}, tmp_path)
    difference = quantized_viewer.diff(made, other)
    assert difference.data["quantization"]["method"] == ["nf4", "fp4"]
    assert "model.embed_tokens.weight" not in {c["name"] for c in difference.data["changed"]}


def test_report_shows_answers_and_what_changed(tmp_path: Path) -> None:
    reports = []
    for name, answer in (("one", "No."), ("two", "Yes,\nat ten.")):
        (tmp_path / name).mkdir()
        answers = [{"prompt": "Open?", "answer": answer}, {"prompt": "Hi", "answer": "Hi!"}]
        path = tmp_path / name / "report.json"
        path.write_text(json.dumps({"answers": answers, "loss": len(answer)}))
        reports.append(artifact(Report, tmp_path / name))
    assert text(report_viewer.inspect(reports[1])) == [
        "loss: 12",
        "Open?",
        "Yes,",
        "at ten.",
        "Hi",
        "Hi!",
    ]
    assert text(report_viewer.inspect(reports[1], row=1)) == ["loss: 12", "Hi", "Hi!"]
    difference = report_viewer.diff(*reports)
    assert text(difference) == [
        "~ loss: 3 -> 12",
        "Open?",
        "- No.",
        "+ Yes,\nat ten.",
        "1 equal answers",
    ]
    assert difference.data["answers"] == [{"prompt": "Open?", "a": "No.", "b": "Yes,\nat ten."}]
