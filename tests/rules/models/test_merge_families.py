"""`merge` against PEFT for each family, and for layers with experts."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, Model
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.models.merge import merge
from ftbuild_rules.training._lora import note_base, save_adapter
from tiny_models import make_model, warnings_of_libraries

pytestmark = [
    *warnings_of_libraries(),
    pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {**MOE, "moe_intermediate_size": 24, "head_dim": 8},
    "olmoe": MOE,
    "granitemoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8},
}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def random_adapter(directory: Path, model: Artifact, **settings: Any) -> Artifact:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=10, **settings))
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * 0.05
    directory.mkdir()
    assert isinstance(model, Model)
    save_adapter(policy, directory, note=note_base(model, None, None))
    return artifact(Adapter, directory)


def compare(
    tmp_path: Path, model: Artifact, adapter: Artifact, *, exact: bool
) -> tuple[int, RecordingContext]:
    """Merge by ours and by PEFT; return how many tensors changed."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ctx = context(tmp_path)
    made = run_rule(merge, {"model": model, "adapter": adapter}, {}, tmp_path, ctx=ctx)
    base = AutoModelForCausalLM.from_pretrained(model.path)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    expected = PeftModel.from_pretrained(base, adapter.path).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(made.path).state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if exact:
            assert torch.equal(value, expected[name]), name
        else:
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    assert ctx.known["logit_error"] < ctx.known["logit_error_bound"] < ctx.known["adapter_effect"]
    return sum(not torch.equal(value, before[name]) for name, value in found.items()), ctx


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", list(FAMILIES))
def test_family_is_merged_as_peft_merges_it(tmp_path: Path, kind: str, use_dora: bool) -> None:
    model = artifact(Model, make_model(tmp_path / "model", kind=kind, **FAMILIES[kind]))
    config = json.loads((model.path / "config.json").read_text())
    is_moe = any("experts" in name for name in config)
    targets: Any = "all-linear"
    if is_moe:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = random_adapter(tmp_path / "a", model, target_modules=targets, use_dora=use_dora)
    assert compare(tmp_path, model, adapter, exact=True)[0] >= 8


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"])
def test_experts_are_merged_as_peft_merges_them(
    tmp_path: Path, kind: str, use_rslora: bool
) -> None:
    settings = {**FAMILIES[kind], "max_shard_size": "20KB"}
    model = artifact(Model, make_model(tmp_path / "model", kind=kind, **settings))
    adapter = random_adapter(
        tmp_path / "a",
        model,
        target_modules=["q_proj"],
        target_parameters=EXPERTS,
        use_rslora=use_rslora,
        rank_pattern={r".*\.down_proj": 2},
        alpha_pattern={r".*\.gate_up_proj": 5},
    )
    changed, _ = compare(tmp_path, model, adapter, exact=False)
    assert changed == 2 * 3  # of two layers: q_proj, gate_up_proj, down_proj


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_all_linear_of_experts_is_merged(tmp_path: Path, kind: str) -> None:
    """PEFT's `all-linear` adapts the router too, a parameter that is no layer."""
    model = artifact(Model, make_model(tmp_path / "model", kind=kind, **FAMILIES[kind]))
    adapter = random_adapter(tmp_path / "a", model, target_modules="all-linear")
    assert compare(tmp_path, model, adapter, exact=False)[0] == 2 * 7


def test_one_of_the_two_parameters_of_experts_is_found(tmp_path: Path) -> None:
    model = artifact(Model, make_model(tmp_path / "model", kind="olmoe", **MOE))
    for number, parameter in enumerate(EXPERTS):
        adapter = random_adapter(
            tmp_path / f"a{number}", model, target_modules=[], target_parameters=[parameter]
        )
        assert compare(tmp_path, model, adapter, exact=False)[0] == 2
