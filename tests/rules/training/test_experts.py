"""LoRA on the experts of a mixture, which are weights that no layer of their own holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.models.merge import merge
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, preference_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
TWO = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2_moe": {**TWO, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"head_dim": 8, **TWO},
}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("models")
    return {
        kind: artifact(Model, make_model(folder / kind, kind=kind, **settings))
        for kind, settings in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Tokens, make_tokens(tmp_path_factory.mktemp("tokens") / "t", sft_rows(8)))


def train(
    tmp_path: Path, rule: Any, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 3}
    return run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def adapted(adapter: Artifact) -> set[str]:
    """The last parts of the names of what is adapted in the first layer."""
    from safetensors import safe_open

    with safe_open(adapter.path / "adapter_model.safetensors", "pt") as opened:
        names = [n for n in opened.keys() if "layers.0" in n and "lora_A" in n]  # noqa: SIM118
    return {n.removesuffix(".lora_A.weight").partition("layers.0.")[2] for n in names}


@pytest.mark.parametrize(
    ("kind", "lora", "expected"),
    [
        ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3"]}, {"self_attn.q_proj"}),
        ("mixtral", {"target_modules": [], "target_parameters": EXPERTS}, set()),
        (
            "qwen2_moe",
            {"target_modules": ["v_proj"], "target_parameters": EXPERTS},
            {"self_attn.v_proj"},
        ),
        ("qwen3_moe", {"target_modules": ["gate_proj", "up_proj", "down_proj"]}, set()),
        (
            "qwen3_moe",
            {"target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 2}},
            {f"self_attn.{name}_proj" for name in "qkvo"} | {"mlp.gate"},
        ),
    ],
)
def test_experts_are_adapted_and_merged_and_continued(
    tmp_path: Path,
    models: dict[str, Artifact],
    tokens: Artifact,
    kind: str,
    lora: dict[str, Any],
    expected: set[str],
) -> None:
    """What is merged is what PEFT computes beside the base; PEFT wraps the second tensor twice."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = models[kind]
    adapter, ctx = train(tmp_path, sft, {"model": model, "data": tokens}, lora={"r": 4, **lora})
    assert ctx.warnings == []
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    assert adapted(adapter) == expected | {"mlp.experts", "mlp.experts.base_layer"}
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows(8)))
    inputs = {"model": model, "adapter": adapter, "data": pairs}
    polite, ctx = train(tmp_path, dpo, inputs)
    assert ctx.steps[0][2]["rewards/margins"] == 0.0
    merged = run_rule(merge, {"model": model, "adapter": polite}, {}, tmp_path)
    ids = torch.tensor([sft_rows()[0]["input_ids"]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model.path).eval()
        before = base(ids).logits
        after = AutoModelForCausalLM.from_pretrained(merged.path).eval()(ids).logits
        beside = PeftModel.from_pretrained(base, polite.path).eval()(ids).logits
    assert not torch.allclose(before, beside, atol=1e-2)
    assert torch.allclose(after, beside, atol=1e-4)


@pytest.mark.parametrize(
    "lora", [{}, {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}]
)
def test_experts_that_are_left_out_are_told(
    tmp_path: Path, models: dict[str, Artifact], tokens: Artifact, lora: dict[str, Any]
) -> None:
    """PEFT knows the experts of Mixtral and of Qwen3 by their old names, and not those of Qwen2."""
    inputs = {"model": models["qwen2_moe"], "data": tokens}
    adapter, ctx = train(tmp_path, sft, inputs, max_steps=1, lora={"r": 4, **lora})
    assert "mlp.experts" not in adapted(adapter)
    assert ctx.warnings == [
        "the experts of `model` are not adapted: they are weights that no layer of their own "
        'holds; lora = { target_parameters = ["experts.gate_up_proj", "experts.down_proj"] } '
        "adapts them too"
    ]
    named, ctx = train(
        tmp_path, sft, inputs, max_steps=1, lora={"r": 4, "target_modules": ["q_proj"]}
    )
    assert (adapted(named), ctx.warnings) == ({"self_attn.q_proj"}, [])


@pytest.mark.parametrize(
    ("lora", "what", "fix"),
    [
        (
            {"dropout": 0.1},
            "PEFT has no `dropout = 0.1` for weights that no layer of their own holds, such as "
            "`model.layers.0.mlp.experts.down_proj`",
            "remove it; or list the names of layers in `lora.target_modules`, without the experts",
        ),
        (
            {"init": "pissa"},
            'PEFT has no `init = "pissa"` for weights that no layer of their own holds, such as '
            "`model.layers.0.mlp.experts.down_proj`",
            "remove it; or list the names of layers in `lora.target_modules`, without the experts",
        ),
        (
            {"target_modules": ["w1"]},
            "Cannot convert PEFT target(s) w1 without also targeting w3 because they are fused "
            "into gate_up_proj.",
            "name both in `lora.target_modules`",
        ),
        (
            {"target_modules": ["experts"]},
            "`model.layers.0.mlp.experts` is a MixtralExperts, which is no layer to adapt",
            'set `target_parameters = ["experts.gate_up_proj", "experts.down_proj"]`',
        ),
        (
            {"target_modules": ".*[.]0[.].*q_proj"},
            "the pattern `.*[.]0[.].*q_proj` in `lora.target_modules` does not match "
            "`model.layers.1.self_attn.q_proj`, and of a mixture of experts PEFT adapts all layers "
            "of a name",
            'write them as a list: ["q_proj"], or whole names for some of them',
        ),
        (
            {"target_parameters": ["experts.up_proj"]},
            "`experts.up_proj` in `lora.target_parameters` is no weight of the model",
            "weights of experts are `experts.gate_up_proj`, `experts.down_proj`",
        ),
        (
            {"target_parameters": ["q_proj.weight"]},
            "`q_proj.weight` in `lora.target_parameters` is of the layer "
            "`model.layers.0.self_attn.q_proj`",
            'name the layer in `lora.target_modules`: ["q_proj"]',
        ),
    ],
)
def test_table_that_experts_do_not_fit_is_refused(
    tmp_path: Path,
    models: dict[str, Artifact],
    tokens: Artifact,
    lora: dict[str, Any],
    what: str,
    fix: str,
) -> None:
    with pytest.raises(RuleError) as caught:
        train(tmp_path, sft, {"model": models["mixtral"], "data": tokens}, lora=lora)
    [problem] = caught.value.problems
    assert (problem.code, problem.what, problem.fix) == ("E0950", what, fix)


def test_whole_names_adapt_some_layers_of_a_mixture(
    tmp_path: Path, models: dict[str, Artifact], tokens: Artifact
) -> None:
    lora = {"target_modules": ["layers.0.self_attn.q_proj"]}
    inputs = {"model": models["mixtral"], "data": tokens}
    adapter, _ = train(tmp_path, sft, inputs, max_steps=1, lora=lora)
    assert adapted(adapter) == {"self_attn.q_proj"}
    settings = json.loads((adapter.path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["layers.0.self_attn.q_proj"]
