"""Adapters that begin by what layers read, or by what quantizing changed.

What is expected is computed here, by plain linear algebra from the papers' formulas on a plain
model. So that an artifact shows how it began, one step of next to no size is trained.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import artifact, context, run_rule
from ftbuild_rules.models.merge import merge
from ftbuild_rules.quantization.quantize import quantize
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.grpo import grpo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reward_model import reward_model
from ftbuild_rules.training.sft import sft
from grpo_kit import EVEN, function, make_prompts, some_prompts
from tiny_models import (
    make_model,
    make_tokens,
    packed_rows,
    preference_rows,
    sft_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = [*warnings_of_libraries(), pytest.mark.filterwarnings("ignore:.*MatMul8bitLt")]
LORA: dict[str, Any] = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
ROWS = sft_rows(8)
NAME = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    return artifact(Model, make_model(tmp_path_factory.mktemp("model"), **sizes))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Tokens, make_tokens(tmp_path_factory.mktemp("tokens") / "t", ROWS))


def started(
    tmp_path: Path, inputs: dict[str, Artifact], init: str, rule: Any = sft, **params: Any
) -> Artifact:
    """Return an adapter that is within 1e-6 of how it began."""
    small = {"batch_size": 8, "learning_rate": 1e-7, "max_steps": 1, "lora": {**LORA, "init": init}}
    return run_rule(rule, inputs, {**small, **params}, tmp_path)


def pair_of(adapter: Artifact, name: str = NAME) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    tensors = load_file(adapter.path / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name}.lora_{each}.weight"] for each in "AB")
    return a, b


def plain(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).eval()


def read_by_layer(network: Any, rows: Any, name: str = NAME) -> list[Any]:
    """Return what the layer reads of each row."""
    import torch

    seen: list[Any] = []
    hook = network.get_submodule(name).register_forward_hook(
        lambda _, given, __: seen.append(given[0][0].detach())
    )
    with torch.no_grad():
        for row in rows:
            network(input_ids=torch.tensor([row]))
    hook.remove()
    return seen


def test_corda_takes_the_directions_that_matter_for_the_rows(
    tmp_path: Path, model: Artifact, tokens: Artifact
) -> None:
    import torch

    adapter = started(tmp_path, {"model": model, "data": tokens}, "corda")
    network = plain(model.path)
    weight = network.get_submodule(NAME).weight.detach().double()
    read = [
        x.double() / x.max().abs() for x in read_by_layer(network, [r["input_ids"] for r in ROWS])
    ]
    covariance = sum(x.T @ x for x in read) / len(read)
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    u, s, v = torch.linalg.svd(weight @ covariance)
    expected = u[:, :4] @ torch.diag(s[:4]) @ v[:4] @ torch.linalg.inv(covariance)
    a, b = pair_of(adapter)
    taken_out = -(b[:, 4:] @ a[4:]).double() * 2
    assert torch.allclose(taken_out, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    # Not those that are the largest by themselves.
    u, s, v = torch.linalg.svd(weight)
    largest = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
    assert (taken_out - largest).norm() > 0.1 * largest.norm()

    merged = run_rule(merge, {"model": model, "adapter": adapter}, {}, tmp_path)
    after = plain(merged.path).get_submodule(NAME).weight
    assert torch.allclose(after.double(), weight, atol=1e-5)


def test_eva_begins_with_the_principal_components_of_what_is_read(
    tmp_path: Path, model: Artifact, tokens: Artifact
) -> None:
    import torch

    adapter = started(tmp_path, {"model": model, "data": tokens}, "eva")
    read = read_by_layer(plain(model.path), [row["input_ids"] for row in ROWS])
    trained = [torch.tensor(row["labels"]) != -100 for row in ROWS]
    states = torch.cat([x[mask] for x, mask in zip(read, trained, strict=True)])
    components = torch.linalg.svd(states - states.mean(0))[2][:4]
    a, b = pair_of(adapter)
    assert b.abs().max() < 1e-6
    alike = torch.linalg.svdvals(a / a.norm(dim=1, keepdim=True) @ components.T)
    assert alike.min() > 0.95  # PEFT stops where two rounds differ by less than 1 %
    random = torch.linalg.svdvals(torch.linalg.qr(torch.randn(64, 4))[0].T @ components.T)
    assert random.min() < 0.5


def test_rows_that_are_looked_at_make_the_start(
    tmp_path: Path, model: Artifact, tokens: Artifact
) -> None:
    import torch

    inputs = {"model": model, "data": tokens}
    whole = started(tmp_path, inputs, "eva")
    half = started(tmp_path, inputs, "eva", lora={**LORA, "init": "eva", "init_rows": 4})
    assert not torch.allclose(pair_of(whole)[0], pair_of(half)[0], atol=1e-2)
    [first, second] = [started(tmp_path, inputs, "eva") for _ in range(2)]
    assert all(map(torch.equal, pair_of(first), pair_of(second)))


def test_too_few_tokens_for_eva_are_refused(tmp_path: Path, model: Artifact) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    data = artifact(Tokens, make_tokens(tmp_path / "few", rows))
    with pytest.raises(RuleError) as caught:
        started(tmp_path, {"model": model, "data": data}, "eva")
    [problem] = caught.value.problems
    assert (problem.code, problem.what) == (
        "E0918",
        '`lora.init = "eva"` with `r = 4` needs as many tokens that are trained on; the first 1 '
        "rows of `tokens` have 2",
    )


PAIRS: dict[str, Any] = {"rows": preference_rows(8)}
STEPS: dict[str, Any] = {"rows": step_rows(8), "form": "stepwise"}


@pytest.mark.parametrize("init", ["eva", "corda"])
@pytest.mark.parametrize(
    ("rule", "data"),
    [
        (orpo, PAIRS),
        (reward_model, PAIRS),
        (prm, STEPS),
        (sft, {"rows": packed_rows(ROWS)}),
    ],
)
def test_rows_of_each_method_can_be_looked_at(
    tmp_path: Path, model: Artifact, rule: Any, data: dict[str, Any], init: str
) -> None:
    made = make_tokens(tmp_path / "tokens", **data)
    inputs = {"model": model, "data": artifact(Tokens, made)}
    ctx = context(tmp_path)
    params = {"lora": {**LORA, "init": init}, "max_steps": 3, "learning_rate": 1e-2}
    run_rule(rule, inputs, params, tmp_path, ctx=ctx)
    assert ctx.known["last_loss"] < ctx.known["first_loss"]


def test_prompts_alone_can_be_looked_at(tmp_path: Path, model: Artifact) -> None:
    inputs = {
        "model": model,
        "data": artifact(Tokens, make_prompts(tmp_path / "prompts", some_prompts(4))),
        "rewards": (function(tmp_path / "code", EVEN, "even"),),
    }
    params = {"batch_size": 4, "num_generations": 4, "max_completion_length": 4}
    adapter = started(tmp_path, inputs, "eva", rule=grpo, **params, learning_rate=1e-2)
    assert isinstance(adapter, Adapter)


# LoftQ


def quantized(model: Artifact, tmp_path: Path, method: str) -> Artifact:
    return run_rule(quantize, {"model": model}, {"method": method}, tmp_path)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_loftq_begins_with_the_largest_part_of_what_quantizing_changed(
    tmp_path: Path, model: Artifact, tokens: Artifact, method: str
) -> None:
    import torch
    from peft import PeftModel
    from peft.utils.loftq_utils import _low_rank_decomposition

    base = quantized(model, tmp_path, method)
    inputs = {"model": base, "quantized_from": model, "data": tokens}
    adapter = started(tmp_path, inputs, "loftq")
    coarse = plain(base.path).dequantize()
    whole = plain(model.path)
    error = whole.get_submodule(NAME).weight - coarse.get_submodule(NAME).weight.float()
    parts = _low_rank_decomposition(error.detach(), reduced_rank=4)
    a, b = pair_of(adapter)
    assert torch.allclose(2 * (b @ a), parts["L"] @ parts["R"], atol=1e-5)
    assert json.loads((adapter.path / "base.json").read_bytes()) == {
        "base": base.digest,
        "makes_up_for": model.digest,
    }

    onto_quantized = run_rule(merge, {"model": base, "adapter": adapter}, {}, tmp_path)
    merged = plain(onto_quantized.path)
    by_peft = PeftModel.from_pretrained(coarse, adapter.path).merge_and_unload().state_dict()
    for name, value in merged.state_dict().items():
        assert torch.allclose(value, by_peft[name].float(), rtol=1e-6, atol=1e-7), name
    left = whole.get_submodule(NAME).weight - merged.get_submodule(NAME).weight
    assert left.norm() < 0.9 * error.norm()


def test_loftq_belongs_to_the_quantized_model_for_good(
    tmp_path: Path, model: Artifact, tokens: Artifact
) -> None:
    """Onto the model in full precision the errors would be added that it has not."""
    base = quantized(model, tmp_path, "nf4")
    adapter = started(tmp_path, {"model": base, "quantized_from": model, "data": tokens}, "loftq")
    further = run_rule(
        sft,
        {"model": base, "adapter": adapter, "data": tokens},
        {"max_steps": 2, "learning_rate": 1e-2},
        tmp_path,
    )
    for each in (adapter, further):
        with pytest.raises(RuleError) as caught:
            run_rule(merge, {"model": model, "adapter": each}, {}, tmp_path)
        [problem] = caught.value.problems
        assert problem.code == "E0906"
        assert problem.why == (
            "it began with what quantizing had changed (LoftQ), which this model lacks"
        )


@pytest.mark.parametrize(("rule", "data"), [(reward_model, PAIRS), (prm, STEPS)])
def test_judge_begins_by_loftq_too(
    tmp_path: Path, model: Artifact, rule: Any, data: dict[str, Any]
) -> None:
    made = make_tokens(tmp_path / "tokens", **data)
    inputs = {
        "model": quantized(model, tmp_path, "nf4"),
        "quantized_from": model,
        "data": artifact(Tokens, made),
    }
    a, b = pair_of(started(tmp_path, inputs, "loftq", rule=rule))
    assert (b @ a).norm() > 0.01


def test_preferences_continue_what_began_by_loftq(
    tmp_path: Path, model: Artifact, tokens: Artifact
) -> None:
    """Its reference is the adapter as it was, so all rewards begin at zero."""
    base = quantized(model, tmp_path, "nf4")
    adapter = started(tmp_path, {"model": base, "quantized_from": model, "data": tokens}, "loftq")
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows()))
    ctx = context(tmp_path)
    inputs = {"model": base, "adapter": adapter, "data": pairs}
    run_rule(dpo, inputs, {"max_steps": 2, "learning_rate": 1e-2}, tmp_path, ctx=ctx)
    assert abs(ctx.steps[0][2]["rewards/margins"]) < 1e-5


def test_model_that_it_was_not_quantized_from_is_refused(
    tmp_path: Path, model: Artifact, tokens: Artifact
) -> None:
    other = artifact(Model, make_model(tmp_path / "other", seed=3, hidden_size=64))
    inputs = {"model": quantized(model, tmp_path, "nf4"), "quantized_from": other, "data": tokens}
    with pytest.raises(RuleError, match="was not quantized from `quantized_from`"):
        started(tmp_path, inputs, "loftq")


@pytest.mark.parametrize("rule", [dpo, kto])
def test_start_that_is_not_the_base_has_no_reference(
    tmp_path: Path, model: Artifact, rule: Any
) -> None:
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows()))
    base = quantized(model, tmp_path, "nf4")
    inputs = {"model": base, "quantized_from": model, "data": pairs}
    with pytest.raises(AttributeProblem) as caught:
        started(tmp_path, inputs, "loftq", rule=rule)
    assert caught.value.what == (
        '`lora.init = "loftq"` begins as another model than the base, which is the reference here'
    )


@pytest.mark.parametrize(
    ("has_source", "is_quantized", "lora", "what"),
    [
        (
            True,
            False,
            {"init": "loftq"},
            '`init = "loftq"` makes up for what quantizing changed, and `model` is not quantized',
        ),
        (
            False,
            True,
            {"init": "loftq"},
            '`init = "loftq"` needs the weights as they were before they were quantized',
        ),
        (
            True,
            True,
            {"init": "loftq", "dora": True},
            '`init = "loftq"` cannot be combined with `dora`',
        ),
        (True, True, {}, '`quantized_from` belongs to `lora.init = "loftq"`'),
    ],
)
def test_loftq_without_what_it_needs_is_refused(
    tmp_path: Path,
    model: Artifact,
    tokens: Artifact,
    has_source: bool,
    is_quantized: bool,
    lora: dict[str, Any],
    what: str,
) -> None:
    base = quantized(model, tmp_path, "nf4") if is_quantized else model
    inputs = {"model": base, "data": tokens, **({"quantized_from": model} if has_source else {})}
    with pytest.raises(AttributeProblem) as caught:
        run_rule(sft, inputs, {"lora": {**LORA, **lora}}, tmp_path)
    assert caught.value.what == what
