"""`adapter`: what PEFT saved becomes what training rules make; what is wrong is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError
from ftbuild.testing import artifact, run_rule, source
from ftbuild_rules.models.adapter import adapter
from tiny_models import make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()
WEIGHTS = "adapter_model.safetensors"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model: Artifact) -> Path:
    """A folder as PEFT itself leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj", "q_proj"])
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model.path), config)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    folder = tmp_path_factory.mktemp("saved") / "helper"
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path, saved: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "helper")


def bring_in(tmp_path: Path, folder: Path, model: Artifact) -> Artifact:
    return run_rule(adapter, {"source": source(folder), "model": model}, {}, tmp_path)


def refused(tmp_path: Path, folder: Path, model: Artifact) -> str:
    with pytest.raises(RuleError) as caught:
        bring_in(tmp_path, folder, model)
    return caught.value.render()


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def write(folder: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / WEIGHTS)


def test_adapter_is_canonical_and_knows_its_base(
    tmp_path: Path, saved: Path, model: Artifact
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = bring_in(tmp_path, saved, model)
    names = ["adapter_config.json", WEIGHTS, "base.json", "card.json", "README.md"]
    assert sorted(p.name for p in made.path.iterdir()) == sorted(names)
    assert json.loads((made.path / "base.json").read_text()) == {"base": model.digest}
    config = json.loads((made.path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] is None
    assert "peft_version" not in config
    expected, found = tensors_of(saved), tensors_of(made.path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.path), made.path)


def test_order_version_and_path_are_not_in_the_artifact(
    tmp_path: Path, saved: Path, copy: Path, model: Artifact
) -> None:
    edit(
        copy,
        target_modules=["v_proj", "q_proj"],
        peft_version="0.1",
        base_model_name_or_path="/home/ada/model",
    )
    write(copy, dict(reversed(tensors_of(copy).items())))
    (copy / "README.md").write_text("trained on a Sunday")
    made = bring_in(tmp_path, copy, model)
    assert made.digest == bring_in(tmp_path, saved, model).digest


def test_template_of_the_adapter_is_kept(tmp_path: Path, copy: Path, model: Artifact) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    made = bring_in(tmp_path, copy, model)
    assert (made.path / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.fault("46", "pickled weights of an adapter")
def test_pickled_weights_are_refused(tmp_path: Path, copy: Path, model: Artifact) -> None:
    (copy / WEIGHTS).rename(copy / "adapter_model.bin")
    assert refused(tmp_path, copy, model) == (
        "error[E0921]: the adapter's weights are pickled (`adapter_model.bin`), and unpickling "
        "runs code\n"
        "  --> adapter_model.bin\n"
        "  fix: load it where you trust it and call `save_pretrained`, which writes safetensors"
    )


def test_what_is_no_adapter_is_refused(tmp_path: Path, copy: Path, model: Artifact) -> None:
    (copy / "adapter_config.json").unlink()
    assert refused(tmp_path, copy, model) == (
        "error[E0936]: the source has no `adapter_config.json`\n"
        "  fix: name a folder that PEFT's `save_pretrained` wrote"
    )
    assert refused(tmp_path, model.path, model) == (
        "error[E0936]: the source is a model, not an adapter\n  fix: bring it in by `base_model`"
    )


def test_settings_must_be_of_peft_and_name_no_code(
    tmp_path: Path, copy: Path, model: Artifact
) -> None:
    edit(copy, auto_mapping={"parent_library": "os", "base_model_class": "system"})
    assert refused(tmp_path, copy, model) == (
        "error[E0922]: `adapter_config.json` names code to import in `auto_mapping`\n"
        "  --> adapter_config.json in `auto_mapping`\n"
        "  fix: set `auto_mapping` to null and `task_type` to `CAUSAL_LM`"
    )
    (copy / "adapter_config.json").write_text('{"r": 4}')
    assert refused(tmp_path, copy, model) == (
        "error[E0923]: `adapter_config.json` is no PEFT configuration\n"
        "  --> adapter_config.json\n"
        "  why: it has no `peft_type`\n"
        "  fix: save the adapter again with PEFT's `save_pretrained`"
    )


def test_adapter_of_a_model_with_other_shapes_is_refused(
    tmp_path: Path, saved: Path, model: Artifact
) -> None:
    other = artifact(Model, make_model(tmp_path / "other", hidden_size=64))
    assert refused(tmp_path, saved, other) == (
        "error[E0931]: the adapter's tensor `model.layers.0.self_attn.q_proj.weight` does not "
        "fit the model\n"
        "  --> adapter_model.safetensors\n"
        "  why: its shape is (32, 32), the model's (64, 64)\n"
        "  fix: name the model that the adapter was trained on as `model`"
    )


def test_ranks_that_do_not_agree_are_refused(tmp_path: Path, copy: Path, model: Artifact) -> None:
    tensors = tensors_of(copy)
    write(copy, {**tensors, Q_PROJ: tensors[Q_PROJ][:3].clone()})
    assert refused(tmp_path, copy, model).splitlines()[2] == (
        f"  why: its rank is 3, that of `{Q_PROJ.replace('lora_A', 'lora_B')}` is 4"
    )


def test_missing_magnitude_of_dora_is_refused(tmp_path: Path, copy: Path, model: Artifact) -> None:
    edit(copy, use_dora=True)
    assert refused(tmp_path, copy, model).splitlines()[:3] == [
        f"error[E0931]: the adapter's tensor `{Q_PROJ}` does not fit the model",
        "  --> adapter_model.safetensors",
        "  why: `use_dora` is set, and its magnitude is missing",
    ]


def test_nan_is_refused(tmp_path: Path, copy: Path, model: Artifact) -> None:
    tensors = tensors_of(copy)
    tensors[Q_PROJ][0, 0] = float("nan")
    write(copy, tensors)
    assert refused(tmp_path, copy, model) == (
        f"error[E0913]: the adapter holds NaN or infinite values in `{Q_PROJ}`\n"
        "  --> adapter_model.safetensors\n"
        "  fix: take a checkpoint from before its training went wrong"
    )


def test_truncated_and_doubled_tensors_are_refused(
    tmp_path: Path, copy: Path, model: Artifact
) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-1])
    size = len(whole)
    assert refused(tmp_path, copy, model).splitlines()[2] == (
        f"  why: it has {size - 1} bytes where its header promises {size}"
    )
    (copy / WEIGHTS).write_bytes(whole.replace(b"layers.1.", b"layers.0."))
    assert refused(tmp_path, copy, model).splitlines()[:2] == [
        f"error[E0924]: `{WEIGHTS}` is damaged",
        f"  --> {WEIGHTS}",
    ]


def grow(copy: Path, model: Artifact, *, rows: int, both: bool = True) -> int:
    """Give the adapter embeddings of `rows` more rows than the model's; return their number."""
    import torch

    weight = tensors_of_model(model)["model.embed_tokens.weight"]
    grown = torch.cat([weight, torch.zeros(rows, weight.shape[1])])
    prefix = "base_model.model."
    tensors = {**tensors_of(copy), f"{prefix}model.embed_tokens.weight": grown}
    if both:
        tensors[f"{prefix}lm_head.weight"] = grown.clone()
    write(copy, tensors)
    return int(grown.shape[0])


def tensors_of_model(model: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(model.path / "model.safetensors")


def test_vocabulary_that_does_not_fit_is_refused(
    tmp_path: Path, copy: Path, model: Artifact
) -> None:
    rows = grow(copy, model, rows=1)
    assert refused(tmp_path, copy, model) == (
        f"error[E0934]: the adapter's embeddings have {rows} rows, other than the model's, and "
        "it has no tokenizer that says for what\n"
        "  fix: put the tokenizer that it was trained with into its folder"
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(copy)
    assert refused(tmp_path, copy, model) == (
        f"error[E0934]: the adapter's tokenizer has {rows + 1} ids and its embeddings {rows} rows\n"
        "  --> tokenizer.json\n"
        "  fix: save the adapter with the tokenizer that it was trained with"
    )
    grow(copy, model, rows=2)
    made = bring_in(tmp_path, copy, model)
    assert (made.path / "tokenizer.json").exists()


def test_embedding_without_its_output_layer_is_refused(
    tmp_path: Path, copy: Path, model: Artifact
) -> None:
    rows = grow(copy, model, rows=2, both=False)
    assert refused(tmp_path, copy, model) == (
        "error[E0934]: the adapter's vocabulary does not fit the model: "
        f"`lm_head.weight` has {rows - 2} rows, `model.embed_tokens.weight` has {rows} rows\n"
        "  --> adapter_model.safetensors\n"
        "  fix: save input embedding and output layer both in the adapter (`modules_to_save`)"
    )
