"""A tiny random model of each family: trained by the common ways, and loaded by plain libraries."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.models.merge import merge
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.sft import sft
from tiny_models import (
    make_model,
    make_tokens,
    packed_rows,
    preference_rows,
    sft_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()
LORA = {"r": 4, "alpha": 8}
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "phi": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen2_moe": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
    "phi3": {},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "gptj": GPTJ,
    "gpt_neox": {},
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp(request.param)
    return artifact(Model, make_model(folder, kind=request.param, **FAMILIES[request.param]))


def train(
    tmp_path: Path, rule: Any, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 2}
    config = json.loads((inputs["model"].path / "config.json").read_text())
    if config["model_type"] == "gemma2":
        defaults |= {"attention": "eager"}
    return run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def test_family_trains_merges_and_is_loaded(tmp_path: Path, model: Artifact) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = artifact(Tokens, make_tokens(tmp_path / "rows", sft_rows()))
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows()))
    whole, ctx = train(tmp_path, sft, {"model": model, "data": rows})
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    AutoModelForCausalLM.from_pretrained(whole.path)

    adapter, ctx = train(tmp_path, sft, {"model": model, "data": rows}, lora=LORA)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    inputs = {"model": model, "adapter": adapter, "data": pairs}
    polite, ctx = train(tmp_path, dpo, inputs)
    assert ctx.steps[0][2]["rewards/margins"] == 0.0
    new, _ = train(tmp_path, dpo, {"model": model, "data": pairs}, lora=LORA)

    ids = torch.tensor([sft_rows()[0]["input_ids"]])
    merged = run_rule(merge, {"model": model, "adapter": polite}, {}, tmp_path)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model.path).eval()
        before = base(ids).logits
        after = AutoModelForCausalLM.from_pretrained(merged.path).eval()(ids).logits
        beside = PeftModel.from_pretrained(base, polite.path).eval()(ids).logits
    assert not torch.allclose(before, beside, atol=1e-2)
    assert torch.allclose(after, beside, atol=1e-3)
    assert new.digest != polite.digest
    # The new one, of all linear layers, in a base of its own.
    plain = AutoModelForCausalLM.from_pretrained(model.path)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(plain, new.path).eval()(ids).logits
    assert loaded.isfinite().all()
    assert not torch.equal(loaded, before)


def test_family_keeps_packed_documents_apart(tmp_path: Path, model: Artifact) -> None:
    apart = artifact(Tokens, make_tokens(tmp_path / "apart", sft_rows()))
    packed = artifact(Tokens, make_tokens(tmp_path / "packed", packed_rows(sft_rows())))
    inputs = {"model": model, "data": packed, "eval_data": packed}
    _, of_packed = train(tmp_path, sft, inputs, batch_size=12, lora=LORA)
    _, of_apart = train(
        tmp_path, sft, {**inputs, "data": apart, "eval_data": apart}, batch_size=12, lora=LORA
    )
    first, second = (ctx.known["eval_loss"] for ctx in (of_packed, of_apart))
    assert first == pytest.approx(second, abs=1e-4)


def test_attention_that_a_family_has_not_is_refused_by_name(tmp_path: Path) -> None:
    model = artifact(Model, make_model(tmp_path / "model", kind="gemma2", head_dim=8))
    rows = artifact(Tokens, make_tokens(tmp_path / "rows", sft_rows(4)))
    with pytest.raises(RuleError) as caught:
        train(tmp_path, sft, {"model": model, "data": rows}, attention="sdpa")
    [problem] = caught.value.problems
    assert (problem.code, problem.what, problem.fix) == (
        "E0955",
        "`model` has no attention `sdpa`",
        'set `attention = "eager"`',
    )
