"""Adapters of quantized models: trained in float32, merged onto what they were trained on or on
what that was made from, and onto nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, AttributeProblem, Model, QuantizedModel, RuleError, Tokens
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.evaluation.generate import generate
from ftbuild_rules.models.merge import merge
from ftbuild_rules.quantization._dequantize import dequantize
from ftbuild_rules.quantization.quantize import quantize
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.grpo import grpo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reference_logprobs import reference_logprobs
from ftbuild_rules.training.reward_model import reward_model
from ftbuild_rules.training.sft import sft
from grpo_kit import EVEN, function, make_prompts, some_prompts
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    sft_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = [*warnings_of_libraries(), pytest.mark.filterwarnings("ignore:.*MatMul8bitLt")]
LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
STEPS = {"lora": LORA, "max_steps": 3, "batch_size": 4, "learning_rate": 1e-2}
METHODS = ["nf4", "fp4", "int8"]


def full(tmp_path: Path, **settings: Any) -> Model:
    sizes = {"hidden_size": 64, "intermediate_size": 128, **settings}
    made = artifact(Model, make_model(tmp_path / "model", **sizes))
    assert isinstance(made, Model)
    return made


def quantized(model: Model, tmp_path: Path, method: str = "nf4", **params: Any) -> QuantizedModel:
    made = run_rule(quantize, {"model": model}, {"method": method, **params}, tmp_path)
    assert isinstance(made, QuantizedModel)
    return made


def tokens(tmp_path: Path, rows: Any = None, **settings: Any) -> Tokens:
    made = artifact(Tokens, make_tokens(tmp_path / "tokens", rows or sft_rows(), **settings))
    assert isinstance(made, Tokens)
    return made


def trained(base: Any, data: Tokens, tmp_path: Path, **params: Any) -> Adapter:
    inputs = {"model": base, "data": data, **params.pop("inputs", {})}
    made = run_rule(sft, inputs, {**STEPS, **params}, tmp_path)
    assert isinstance(made, Adapter)
    return made


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {n: t for file in path.glob("*.safetensors") for n, t in load_file(file).items()}


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40).unsqueeze(0)).logits


@pytest.mark.parametrize("method", METHODS)
def test_adapter_of_a_quantized_model_knows_both_bases_and_merges_onto_either(
    tmp_path: Path, method: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = full(tmp_path)
    base = quantized(model, tmp_path, method)
    adapter = trained(base, tokens(tmp_path), tmp_path)
    assert json.loads((adapter.path / "base.json").read_bytes()) == {
        "base": base.digest,
        "quantized_from": model.digest,
    }
    assert {t.dtype for t in weights(adapter.path).values()} == {torch.float32}

    onto_full = run_rule(merge, {"model": model, "adapter": adapter}, {}, tmp_path)
    unquantized = AutoModelForCausalLM.from_pretrained(model.path)
    expected = PeftModel.from_pretrained(unquantized, adapter.path).merge_and_unload()
    found = weights(onto_full.path)
    assert all(torch.equal(found[name], expected.state_dict()[name]) for name in found)

    onto_quantized = run_rule(merge, {"model": base, "adapter": adapter}, {}, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).dequantize()
    expected = PeftModel.from_pretrained(loaded, adapter.path).merge_and_unload()
    found = weights(onto_quantized.path)
    for name, value in found.items():
        assert torch.allclose(value, expected.state_dict()[name], rtol=1e-6, atol=1e-7), name
    assert "quantization_config" not in json.loads(
        (onto_quantized.path / "config.json").read_bytes()
    )
    assert not (onto_quantized.path / "quantization.json").exists()
    assert not torch.equal(
        found["model.layers.0.mlp.up_proj.weight"],
        weights(model.path)["model.layers.0.mlp.up_proj.weight"],
    )  # no layer of the adapter, and yet another value: that of the quantized model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_dequantized_model_is_the_one_that_transformers_dequantizes(
    tmp_path: Path, method: str, dtype: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = quantized(full(tmp_path, dtype=dtype, max_shard_size="60KB"), tmp_path, method)
    made = dequantize(base, tmp_path / "full")
    ours = AutoModelForCausalLM.from_pretrained(made.path)
    theirs = AutoModelForCausalLM.from_pretrained(base.path).dequantize()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value.to(getattr(torch, dtype))), name
    assert len([*made.path.glob("*.safetensors")]) > 2


def test_transposed_layers_are_turned_back(tmp_path: Path) -> None:
    import torch

    sizes = {"kind": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = full(tmp_path, **sizes)
    made = dequantize(quantized(model, tmp_path), tmp_path / "full")
    name = "transformer.h.0.attn.c_attn.weight"
    before, after = weights(model.path)[name], weights(made.path)[name]
    assert before.shape == after.shape == (64, 192)
    assert float((before - after).norm() / before.norm()) < 0.15
    assert not torch.equal(before, after)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_two_runs_give_the_same_bytes_and_evaluating_changes_nothing(
    tmp_path: Path, method: str
) -> None:
    base, data = quantized(full(tmp_path), tmp_path, method), tokens(tmp_path)
    plain = [trained(base, data, tmp_path).digest for _ in range(2)]
    watched = {"inputs": {"eval_data": data}, "evaluate_every": 1}
    assert {trained(base, data, tmp_path, **watched).digest, *plain} == {plain[0]}


def test_continued_adapter_begins_as_it_was_to_the_last_bit(tmp_path: Path) -> None:
    import torch

    base, data = quantized(full(tmp_path), tmp_path), tokens(tmp_path)
    first = trained(base, data, tmp_path)
    again = trained(base, data, tmp_path, lora=None, inputs={"adapter": first}, learning_rate=1e-30)
    for name, value in weights(first.path).items():
        assert torch.equal(weights(again.path)[name], value), name


def test_loss_of_the_first_step_is_that_of_the_quantized_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ftbuild.testing import context

    base, rows = quantized(full(tmp_path), tmp_path), sft_rows(4)
    ctx = context(tmp_path)
    inputs = {"model": base, "data": tokens(tmp_path, rows)}
    run_rule(sft, inputs, {**STEPS, "max_steps": 1}, tmp_path, ctx=ctx)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    losses: list[float] = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).detach()
        losses += [-float(logps[i, t]) for i, t in enumerate(labels[0, 1:]) if t != -100]
    assert ctx.known["first_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize("rule", [dpo, kto, orpo, reward_model, prm])
def test_every_method_trains_an_adapter_of_a_quantized_model(
    tmp_path: Path, rule: Any, method: str
) -> None:
    import torch

    base = quantized(full(tmp_path), tmp_path, method)
    rows = step_rows() if rule is prm else preference_rows()
    data = tokens(tmp_path, rows, form="stepwise" if rule is prm else "preference")
    made = run_rule(rule, {"model": base, "data": data}, STEPS, tmp_path)
    found = weights(made.path)
    assert {t.dtype for t in found.values()} == {torch.float32}
    assert any(t.any() for name, t in found.items() if "lora_B" in name)


def test_policy_on_a_quantized_model_is_rewarded(tmp_path: Path) -> None:
    prompts = artifact(Tokens, make_prompts(tmp_path / "prompts", some_prompts(4)))
    rewards = (function(tmp_path / "code", EVEN, "even"),)
    given = {"model": quantized(full(tmp_path), tmp_path), "data": prompts, "rewards": rewards}
    drawn = {"num_generations": 4, "max_completion_length": 4}
    made = run_rule(grpo, given, {**STEPS, **drawn}, tmp_path)
    found = weights(made.path)
    assert {str(t.dtype) for t in found.values()} == {"torch.float32"}
    assert any(t.any() for name, t in found.items() if "lora_B" in name)


def test_reference_of_a_quantized_model_is_what_dpo_computes_itself(tmp_path: Path) -> None:
    base = quantized(full(tmp_path), tmp_path)
    data = tokens(tmp_path, preference_rows())
    reference = run_rule(reference_logprobs, {"model": base, "data": data}, {}, tmp_path)
    alone = run_rule(dpo, {"model": base, "data": data}, STEPS, tmp_path)
    given = {"model": base, "data": data, "reference": reference}
    shared = run_rule(dpo, given, STEPS, tmp_path)
    import torch

    for name, value in weights(alone.path).items():
        assert torch.allclose(weights(shared.path)[name], value, atol=1e-5)


def test_quantized_model_answers_with_an_adapter(tmp_path: Path) -> None:
    base = quantized(full(tmp_path), tmp_path)
    adapter = trained(base, tokens(tmp_path), tmp_path)
    asked = {"prompts": ["Open?"], "max_new_tokens": 4}
    made = run_rule(generate, {"model": base, "adapter": adapter}, asked, tmp_path)
    assert len(json.loads((made.path / "report.json").read_bytes())["answers"]) == 1


def test_adapter_fits_no_other_quantization_and_trains_on_no_other_base(tmp_path: Path) -> None:
    model = full(tmp_path)
    base, other = quantized(model, tmp_path), quantized(model, tmp_path, "fp4")
    data = tokens(tmp_path)
    adapter = trained(base, data, tmp_path)
    of_full = trained(model, data, tmp_path)
    refused = [
        (merge, {"model": other, "adapter": adapter}, {}),
        (merge, {"model": base, "adapter": of_full}, {}),
        (sft, {"model": model, "adapter": adapter, "data": data}, {}),
    ]
    for rule, inputs, params in refused:
        with pytest.raises(RuleError) as caught:
            run_rule(rule, inputs, params, tmp_path)
        assert caught.value.problems[0].code == "E0906"


def test_weights_of_a_quantized_model_cannot_be_trained_themselves(tmp_path: Path) -> None:
    base = quantized(full(tmp_path), tmp_path)
    with pytest.raises(AttributeProblem) as caught:
        run_rule(sft, {"model": base, "data": tokens(tmp_path)}, {}, tmp_path)
    assert str(caught.value) == "`model` is quantized, and quantized weights cannot be trained"
    assert caught.value.fix is not None
    assert caught.value.fix.startswith("add `lora = { r = 16 }` to train an adapter")
