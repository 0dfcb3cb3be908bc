"""Several adapters or models merged into one: by hand, and beside PEFT's own functions."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RuleError
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.models._combine import slerp
from ftbuild_rules.models.merge import MergeParams, check, merge
from rules.models.test_merge_families import random_adapter
from tiny_models import make_model, warnings_of_libraries

pytestmark = [
    *warnings_of_libraries(),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def model(folder: Path) -> Artifact:
    return artifact(Model, make_model(folder / "model"))


@pytest.fixture(scope="module")
def adapters(folder: Path, model: Artifact) -> tuple[Artifact, Artifact]:
    first = random_adapter(folder / "first", model, target_modules=ALL)
    second = random_adapter(folder / "second", model, target_modules=["q_proj", "up_proj"])
    from safetensors.torch import load_file, save_file

    weights = second.path / "adapter_model.safetensors"
    save_file({name: -1.5 * value.flip(0) for name, value in load_file(weights).items()}, weights)
    return first, artifact(Adapter, second.path)


def state(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def merged(
    tmp_path: Path, inputs: dict[str, Any], **params: Any
) -> tuple[dict[str, Any], RecordingContext]:
    ctx = context(tmp_path)
    made = run_rule(merge, inputs, params, tmp_path, ctx=ctx)
    return state(made.path), ctx


def added_by(tmp_path: Path, model: Artifact, adapters: Any) -> list[dict[str, Any]]:
    """Return what each adapter adds to each weight, by merging it alone."""
    base = state(model.path)
    alone = [merged(tmp_path, {"model": model, "adapter": a})[0] for a in adapters]
    return [{name: one[name] - base[name] for name in base} for one in alone]


def test_linear_sum_is_what_peft_concatenates(
    tmp_path: Path, model: Artifact, adapters: tuple[Artifact, Artifact]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found, ctx = merged(tmp_path, {"model": model, "adapters": adapters}, weights=[0.7, 0.4])
    base = AutoModelForCausalLM.from_pretrained(model.path)
    policy = PeftModel.from_pretrained(base, adapters[0].path, adapter_name="first")
    policy.load_adapter(adapters[1].path, adapter_name="second")
    policy.add_weighted_adapter(["first", "second"], [0.7, 0.4], "both", combination_type="cat")
    policy.set_adapter("both")
    expected = policy.merge_and_unload().state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    assert ctx.known["logit_error"] < ctx.known["logit_error_bound"] < ctx.known["adapter_effect"]


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_sparse_methods_are_those_of_peft_on_whole_products(
    tmp_path: Path, model: Artifact, adapters: tuple[Artifact, Artifact], method: str
) -> None:
    import torch
    from peft.utils import merge_utils

    params = {"method": method, "weights": [0.7, 0.4], "density": 0.3}
    found, ctx = merged(tmp_path, {"model": model, "adapters": adapters}, **params)
    again, _ = merged(tmp_path, {"model": model, "adapters": adapters}, **params)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert "logit_error" not in ctx.known
    base, added = state(model.path), added_by(tmp_path, model, adapters)
    name = "model.layers.1.mlp.up_proj.weight"
    change = found[name] - base[name]
    if method == "ties":
        expected = merge_utils.ties([a[name] for a in added], torch.tensor([0.7, 0.4]), 0.3)
        torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-4)
    kept = (change.abs() > 1e-7).float().mean().item()
    assert 0.3 < kept < 0.6  # of two times three in ten, some are of one value
    other, _ = merged(tmp_path, {"model": model, "adapters": adapters}, **params, seed=7)
    assert torch.equal(found[name], other[name]) == (method == "ties")


def test_ties_keeps_the_largest_and_the_sign_of_the_majority(
    tmp_path: Path, model: Artifact
) -> None:
    """By hand: 4, -1, 2, 0 and -5, 3, 1, 1, the larger half of each: 4, _, 2, _ and -5, 3, _, _.

    The signs of the sums -1, 3, 2 are those of -5, 3 and 2; with weights 1 and 0.5 that leaves
    -2.5, 1.5, 2, 0.
    """
    import torch
    from safetensors.torch import save_file

    base = state(model.path)
    name = "model.norm.weight"
    others = []
    for number, first in enumerate(([4.0, -1.0, 2.0, 0.0], [-5.0, 3.0, 1.0, 1.0])):
        import shutil

        folder = shutil.copytree(model.path, tmp_path / f"other{number}")
        change = torch.tensor(first).repeat(8)
        save_file({**base, name: base[name] + change}, folder / "model.safetensors")
        others.append(artifact(Model, folder))
    inputs = {"model": model, "models": tuple(others)}
    found, _ = merged(tmp_path, inputs, method="ties", weights=[1.0, 0.5], density=0.5)
    expected = torch.tensor([-2.5, 1.5, 2.0, 0.0]).repeat(8)
    torch.testing.assert_close(found[name] - base[name], expected, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(found[k], base[k]) for k in base if k != name)


def test_slerp_goes_along_the_arc() -> None:
    """Half-way between (1, 0) and (0, 1) lies (sin 45°, sin 45°); a third of the way, 30°."""
    import torch

    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = 0.5**0.5
    torch.testing.assert_close(slerp(x, y, 0.5), torch.tensor([half, half]))
    torch.testing.assert_close(slerp(x, y, 1 / 3), torch.tensor([0.75**0.5, 0.5]))
    torch.testing.assert_close(slerp(x, 3 * x, 0.5), torch.tensor([2.0, 0.0]))


def test_slerp_of_models_ends_at_the_models(tmp_path: Path, model: Artifact) -> None:
    import torch

    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    inputs = {"model": model, "models": (other,)}
    for share, end in ((0.0, model), (1.0, other)):
        found, _ = merged(tmp_path, inputs, method="slerp", weights=[share])
        for name, value in state(end.path).items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_adapter_and_its_ancestor_are_merged(tmp_path: Path, model: Artifact) -> None:
    """An adapter that continues another has the same base: it takes its place or is weighed."""
    import torch
    from safetensors.torch import load_file, save_file

    parent = random_adapter(tmp_path / "parent", model, target_modules=["q_proj"])
    child = random_adapter(tmp_path / "child", model, target_modules=["q_proj"])
    weights = child.path / "adapter_model.safetensors"
    save_file({k: v + 0.02 for k, v in load_file(parent.path / weights.name).items()}, weights)
    child = artifact(Adapter, child.path)
    inputs = {"model": model, "adapters": (parent, child)}
    found, ctx = merged(tmp_path, inputs, weights=[-0.5, 1.5])
    base, (one, two) = state(model.path), added_by(tmp_path, model, (parent, child))
    for name in base:
        expected = base[name] - 0.5 * one[name] + 1.5 * two[name]
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    assert ctx.known["logit_error"] < ctx.known["logit_error_bound"]


def test_stacked_adapter_belongs_to_the_merged_model(tmp_path: Path, model: Artifact) -> None:
    first = random_adapter(tmp_path / "first", model, target_modules=["q_proj"])
    middle = run_rule(merge, {"model": model, "adapter": first}, {}, tmp_path)
    second = random_adapter(tmp_path / "second", middle, target_modules=["v_proj"])
    with pytest.raises(RuleError, match="was not trained on `model`") as caught:
        merged(tmp_path, {"model": model, "adapter": second})
    assert caught.value.problems[0].code == "E0906"
    _, ctx = merged(tmp_path, {"model": middle, "adapter": second})
    assert ctx.known["merged_weights"] == 2


def test_model_of_another_shape_is_refused(tmp_path: Path, model: Artifact) -> None:
    other = artifact(Model, make_model(tmp_path / "other", intermediate_size=40))
    with pytest.raises(RuleError) as caught:
        merged(tmp_path, {"model": model, "models": (other,)}, weights=[0.5])
    assert caught.value.render() == (
        "error[E0935]: the model `models` has another shape than `model`\n"
        "  why: `model.layers.0.mlp.down_proj.weight` is (32, 40) there and (32, 48) in `model`\n"
        "  fix: merge models that were trained from one base"
    )


@pytest.mark.parametrize(
    ("kinds", "params", "said"),
    [
        ({}, {}, ("adapter", "there is nothing to merge into `model`")),
        ({"adapter": 1, "adapters": 2}, {}, ("adapter", "stands beside several")),
        ({"adapters": 2}, {}, ("weights", "there are 2 to merge and 0 weights")),
        ({"adapters": 2}, {"weights": (0.5,)}, ("weights", "there are 2 to merge and 1 weights")),
        ({"adapters": 1}, {"method": "slerp"}, ("method", "`slerp` is for two models")),
        ({"adapter": 1}, {"method": "ties"}, ("method", "has no meaning for one adapter")),
        ({"adapter": 1}, {"weights": (0.5,)}, ("weights", "has no meaning for one adapter")),
        (
            {"adapters": 2},
            {"weights": (0.5, 0.5), "density": 0.5},
            ("density", "has no meaning for `linear`"),
        ),
    ],
)
def test_parts_and_weights_must_go_together(
    kinds: dict[str, int], params: dict[str, Any], said: tuple[str, str]
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        check({name: ("adapter",) * n for name, n in kinds.items()}, MergeParams(**params))
    assert (caught.value.attribute, caught.value.what) == said
    assert caught.value.fix
