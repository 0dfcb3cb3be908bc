"""GPTQ beside its definition, the format beside gptqmodel's, and adapters on top of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import AttributeProblem, Model, QuantizedModel, RuleError, Tokens
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.evaluation.generate import generate
from ftbuild_rules.models.merge import merge
from ftbuild_rules.quantization._dequantize import dequantize
from ftbuild_rules.quantization._gptq import Grid, pack, round_weight, unpack
from ftbuild_rules.quantization.quantize import quantize
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.grpo import grpo
from ftbuild_rules.training.ipo import ipo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.prm import prm
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

pytestmark = warnings_of_libraries()


def by_definition(weight: Any, hessian: Any, grid: Grid) -> Any:
    """Round as Frantar et al. derive it: after each input the inverse loses its row and column.

    No Cholesky factor, no stretches, one weight row at a time, in float64.
    """
    import numpy as np

    h = hessian.double().numpy().copy()
    h += np.eye(len(h)) * grid.damping * np.diag(h).mean()
    order = list(range(len(h)))
    if grid.act_order:
        order = sorted(order, key=lambda i: (-h[i, i], i))
    size = len(h) if grid.group_size == -1 else grid.group_size
    top, found = 2**grid.bits - 1, np.zeros(weight.shape, dtype=int)
    for row in range(len(weight)):
        w, inverse, left = weight[row].double().numpy().copy(), np.linalg.inv(h), list(order)
        for place, i in enumerate(order):
            if place % size == 0:
                scale = float(np.float16(2 * np.abs(w[order[place : place + size]]).max() / top))
            found[row, i] = np.clip(np.round(w[i] / scale) + grid.zero, 0, top)
            error = (w[i] - (found[row, i] - grid.zero) * scale) / inverse[i, i]
            for j in left:
                w[j] -= error * inverse[i, j]
            inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
            left.remove(i)
    return found


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 16, act_order=False, damping=0.01),
        Grid(4, 16, act_order=True, damping=0.01),
        Grid(8, -1, act_order=False, damping=0.05),
        Grid(2, 32, act_order=True, damping=0.1),
    ],
)
def test_numbers_are_those_of_the_definition(grid: Grid) -> None:
    import torch

    torch.manual_seed(1)
    x = torch.randn(200, 64) @ torch.randn(64, 64)  # inputs that go together
    hessian = 2 * x.T @ x
    weight = torch.randn(6, 64)
    rounded = round_weight(weight, hessian, grid)
    expected = torch.tensor(by_definition(weight, hessian, grid))
    assert (rounded.numbers == expected).float().mean() > 0.995  # float32 against float64
    nearest = _nearest(weight, grid)
    by_gptq = ((rounded.value(grid.zero) - weight) @ x.T).norm()
    by_rounding = ((nearest - weight) @ x.T).norm()
    assert by_gptq < 0.8 * by_rounding


def _nearest(weight: Any, grid: Grid) -> Any:
    import torch

    # With H = 1 nothing is passed on: each value goes to the nearest of its group.
    plain = Grid(grid.bits, grid.group_size, act_order=False, damping=grid.damping)
    return round_weight(weight, torch.eye(weight.shape[1]), plain).value(grid.zero)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_packed_is_unpacked(bits: int) -> None:
    import torch

    torch.manual_seed(2)
    grid = Grid(bits, 32, act_order=True, damping=0.01)
    x = torch.randn(100, 64)
    rounded = round_weight(torch.randn(32, 64), 2 * x.T @ x, grid)
    parts = pack("m.weight", rounded, grid)
    assert parts["m.qweight"].shape == (64 * bits // 32, 32)
    assert parts["m.qzeros"].shape == (2, 32 * bits // 32)
    found = unpack({name.removeprefix("m."): part for name, part in parts.items()}, bits)
    assert torch.equal(found, rounded.value(grid.zero))


def test_an_input_that_is_never_used_gets_zero() -> None:
    import torch

    x = torch.randn(50, 32)
    x[:, 5] = 0.0
    grid = Grid(4, 32, act_order=False, damping=0.01)
    rounded = round_weight(torch.randn(4, 32), 2 * x.T @ x, grid)
    assert not rounded.value(grid.zero)[:, 5].any()


def inputs(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "intermediate_size": 128, **settings}
    model = artifact(Model, make_model(tmp_path / "model", **sizes))
    return {"model": model, "data": artifact(Tokens, make_tokens(tmp_path / "t", sft_rows(24)))}


def by_gptq(given: dict[str, Any], tmp_path: Path, **params: Any) -> QuantizedModel:
    settings = {"method": "gptq", "group_size": 32, **params}
    made = run_rule(quantize, given, settings, tmp_path)
    assert isinstance(made, QuantizedModel)
    return made


def test_artifact_is_the_same_again_and_closer_on_its_rows_than_nearest_rounding(
    tmp_path: Path,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    given = inputs(tmp_path)
    made = by_gptq(given, tmp_path)
    assert by_gptq(given, tmp_path).digest == made.digest
    config = json.loads((made.path / "config.json").read_bytes())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == ("gptq", 4, 32)
    full = dequantize(made, tmp_path / "full")
    models = [
        AutoModelForCausalLM.from_pretrained(p).eval() for p in (given["model"].path, full.path)
    ]
    weights = dict(models[0].named_parameters())
    grid = Grid(4, 32, act_order=False, damping=0.05)
    rounded = AutoModelForCausalLM.from_pretrained(given["model"].path).eval()
    for name, parameter in rounded.named_parameters():
        if name in json.loads((made.path / "quantization.json").read_bytes())["layers"]:
            parameter.data.copy_(_nearest(weights[name].detach(), grid))
    ids = [torch.tensor([row["input_ids"]]) for row in sft_rows(24)]
    with torch.no_grad():
        logits = [torch.cat([m(i).logits[0] for i in ids]) for m in (*models, rounded)]
    assert (logits[1] - logits[0]).norm() < (logits[2] - logits[0]).norm()


def test_adapter_on_top_trains_answers_and_merges(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    base = by_gptq(given, tmp_path, act_order=True)
    lora = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
    steps = {"lora": lora, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    adapter = run_rule(sft, {"model": base, "data": given["data"]}, steps, tmp_path)
    asked = {"prompts": ["Open?"], "max_new_tokens": 4}
    made = run_rule(generate, {"model": base, "adapter": adapter}, asked, tmp_path)
    assert len(json.loads((made.path / "report.json").read_bytes())["answers"]) == 1
    for model in (base, given["model"]):
        run_rule(merge, {"model": model, "adapter": adapter}, {}, tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model by GPTQ, and what it was made from."""
    folder = tmp_path_factory.mktemp("gptq")
    given = inputs(folder)
    return by_gptq(given, folder), given["model"]


@pytest.mark.parametrize("rule", [dpo, ipo, kto, orpo, reward_model, prm, grpo])
def test_every_method_trains_an_adapter_on_top(
    tmp_path: Path, base: tuple[Any, Any], rule: Any
) -> None:
    given = {"model": base[0], **data_of(rule, tmp_path)}
    lora = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
    steps = {"lora": lora, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    if rule is grpo:
        steps |= {"num_generations": 4, "max_completion_length": 4}
    made = run_rule(rule, given, steps, tmp_path)
    assert json.loads((made.path / "base.json").read_bytes()) == {
        "base": base[0].digest,
        "quantized_from": base[1].digest,
    }


def test_loftq_makes_up_for_a_part_of_what_gptq_changed(
    tmp_path: Path, base: tuple[Any, Any]
) -> None:
    from safetensors.torch import load_file

    coarse, whole = base
    given = {"model": coarse, "quantized_from": whole, **data_of(sft, tmp_path)}
    lora = {"r": 8, "alpha": 8, "target_modules": ["q_proj"], "init": "loftq"}
    steps = {"lora": lora, "max_steps": 1, "learning_rate": 1e-7}
    adapter = run_rule(sft, given, steps, tmp_path)
    merged = run_rule(merge, {"model": coarse, "adapter": adapter}, {}, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    paths = [dequantize(coarse, tmp_path / "full").path, merged.path, whole.path]
    before, after, wanted = (load_file(path / "model.safetensors")[name] for path in paths)
    assert 0 < (after - wanted).norm() < 0.9 * (before - wanted).norm()


def data_of(rule: Any, tmp_path: Path) -> dict[str, Any]:
    """Return what a method trains on."""
    if rule is grpo:
        prompts = make_prompts(tmp_path / "prompts", some_prompts(4))
        rewards = (function(tmp_path / "code", EVEN, "even"),)
        return {"data": artifact(Tokens, prompts), "rewards": rewards}
    form = {prm: "stepwise", sft: "sft"}.get(rule, "preference")
    rows: Any = {"stepwise": step_rows, "sft": sft_rows, "preference": preference_rows}[form]()
    return {"data": artifact(Tokens, make_tokens(tmp_path / "data", rows, form=form))}


def test_a_size_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    given = inputs(tmp_path, intermediate_size=80)
    with pytest.raises(RuleError) as caught:
        by_gptq(given, tmp_path)
    assert caught.value.render() == (
        "error[E0971]: the weight `model.layers.0.mlp.down_proj.weight` cannot be quantized\n"
        "  --> model.layers.0.mlp.down_proj.weight\n"
        "  why: its shape is [64, 80]; both sizes must be multiples of 32, and the second of "
        "`group_size`\n"
        "  fix: choose a smaller `group_size`, or name the layer in `skip_modules`"
    )


def test_rows_belong_to_gptq_and_to_nothing_else(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    with pytest.raises(AttributeProblem, match="`gptq` needs rows to calibrate on"):
        run_rule(quantize, {"model": given["model"]}, {"method": "gptq"}, tmp_path)
    with pytest.raises(AttributeProblem, match="`data` is what `gptq` is calibrated on"):
        run_rule(quantize, given, {"method": "nf4"}, tmp_path)
    with pytest.raises(AttributeProblem, match="`group_size` belongs to `gptq`, not to `nf4`"):
        run_rule(quantize, {"model": given["model"]}, {"group_size": 32}, tmp_path)


def test_dora_on_gptq_is_refused_for_peft_cannot_load_it(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    base = by_gptq(given, tmp_path)
    with pytest.raises(RuleError) as caught:
        run_rule(sft, {"model": base, "data": given["data"]}, {"lora": {"dora": True}}, tmp_path)
    assert caught.value.problems[0].code == "E0950"
    assert "PEFT has no `dora` for weights by GPTQ" in str(caught.value)
