"""`reference_logprobs`: the numbers, training with them, and what else they must not serve."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, AttributeProblem, File, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.data._arrow import read_table
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.ipo import ipo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.reference_logprobs import reference_logprobs
from ftbuild_rules.training.sft import sft
from preference_kit import LORA, load, token_logps
from tiny_models import (
    make_model,
    make_tokens,
    preference_rows,
    sft_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("pairs") / "tokens"
    return artifact(Tokens, make_tokens(folder, preference_rows(), per_shard=3))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model: Artifact) -> Artifact:
    folder = tmp_path_factory.mktemp("adapter")
    tokens = artifact(Tokens, make_tokens(folder / "tokens", sft_rows()))
    params = {"batch_size": 4, "learning_rate": 3e-2, "lora": LORA}
    return run_rule(sft, {"model": model, "data": tokens}, params, folder)


def reference(tmp_path: Path, inputs: dict[str, Artifact], **params: Any) -> Artifact:
    given = {name: inputs[name] for name in inputs if name in ("model", "adapter", "data")}
    return run_rule(reference_logprobs, given, {"batch_size": 3, **params}, tmp_path)


def train(
    tmp_path: Path, rule: Callable[..., Any], inputs: dict[str, Artifact], **params: Any
) -> RecordingContext:
    ctx = context(tmp_path)
    defaults = {"batch_size": 4, "learning_rate": 1e-2, "epochs": 5}
    run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx)
    return ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


def test_numbers_are_sums_over_the_completion_and_over_the_shorter_ones_length(
    tmp_path: Path, model: Artifact, adapter: Artifact, pairs: Artifact
) -> None:
    made = reference(tmp_path, {"model": model, "adapter": adapter, "data": pairs})
    assert isinstance(made, File)
    found = read_table(made.path / "data" / "train-00000.arrow").to_pylist()
    network = load(model, adapter)
    for row, values in zip(preference_rows(), found, strict=True):
        shared = min(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for side in ("chosen", "rejected"):
            logps = token_logps(network, row["prompt_ids"], row[f"{side}_ids"])
            assert values[f"{side}_logps"] == pytest.approx(math.fsum(logps), abs=1e-4)
            expected = math.fsum(logps[:shared])
            assert values[f"{side}_shared_logps"] == pytest.approx(expected, abs=1e-4)
    assert json.loads((made.path / "reference.json").read_text()) == {
        "tokens": pairs.digest,
        "model": model.digest,
        "adapter": adapter.digest,
        "dtype": "float32",
        "kl": None,
    }


def test_mismatched_completions_stand_in_the_order_of_kto(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    from datasets import Dataset

    made = reference(tmp_path, {"model": model, "data": pairs}, kl_batch_size=4, seed=7)
    found = read_table(made.path / "kl.arrow").column("kl_logps").to_pylist()
    apart = [
        {"prompt": row["prompt_ids"], "completion": row[name]}
        for name in ("chosen_ids", "rejected_ids")
        for row in preference_rows()
    ]
    rows = Dataset.from_list(apart).shuffle(seed=7).to_list()
    network = load(model)
    expected = [
        math.fsum(token_logps(network, row["prompt"], rows[other]["completion"]))
        for start in range(0, 16, 4)
        for row, other in zip(
            rows[start : start + 4], (start + 3, start, start + 1, start + 2), strict=True
        )
    ]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("start", ["whole", "new adapter", "continued adapter"])
@pytest.mark.parametrize(
    ("rule", "params"), [(dpo, {"ld_alpha": 0.3}), (ipo, {}), (kto, {"beta": 0.3})]
)
def test_training_with_it_is_training_without_it(
    tmp_path: Path,
    model: Artifact,
    adapter: Artifact,
    pairs: Artifact,
    start: str,
    rule: Callable[..., Any],
    params: dict[str, Any],
) -> None:
    inputs = {"model": model, "data": pairs, "eval_data": pairs}
    if start == "continued adapter":
        inputs["adapter"] = adapter
    lora = {"lora": LORA} if start == "new adapter" else {}
    made = reference(tmp_path, inputs, kl_batch_size=4)
    inside = train(tmp_path, rule, inputs, **params, **lora)
    given = train(
        tmp_path, rule, {**inputs, "reference": made, "eval_reference": made}, **params, **lora
    )
    assert len(losses(inside)) in (10, 20)
    assert losses(given) == pytest.approx(losses(inside), rel=1e-4)
    assert given.known["eval_loss"] == pytest.approx(inside.known["eval_loss"], rel=1e-4)


def test_sweep_holds_no_second_model(
    tmp_path: Path, model: Artifact, pairs: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    inputs = {"model": model, "data": pairs}
    made = reference(tmp_path, inputs)
    loaded: list[Any] = []
    load_model = AutoModelForCausalLM.from_pretrained

    def counted(*given: Any, **named: Any) -> Any:
        loaded.append(given)
        return load_model(*given, **named)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    train(tmp_path, dpo, inputs, epochs=1)
    assert len(loaded) == 2
    train(tmp_path, dpo, {**inputs, "reference": made}, epochs=1)
    assert len(loaded) == 3


def test_two_runs_give_the_same_bytes(tmp_path: Path, model: Artifact, pairs: Artifact) -> None:
    inputs = {"model": model, "data": pairs}
    first, second = (reference(tmp_path, inputs, kl_batch_size=2) for _ in "12")
    assert first.digest == second.digest


def refused(tmp_path: Path, rule: Any, inputs: dict[str, Artifact], **params: Any) -> list[str]:
    with pytest.raises(RuleError) as caught:
        train(tmp_path, rule, inputs, **params)
    return caught.value.render().splitlines()


def test_numbers_of_something_else_are_refused(
    tmp_path: Path, model: Artifact, adapter: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs}
    made = reference(tmp_path, inputs)
    fewer = artifact(Tokens, make_tokens(tmp_path / "fewer", preference_rows(7)))
    assert refused(tmp_path, dpo, {"model": model, "data": fewer, "reference": made}) == [
        "error[E0909]: `reference` was computed with other tokens: its numbers have no meaning "
        "here",
        "  --> reference",
        f"  why: it has the digest {pairs.digest}; here it is {fewer.digest}",
        "  fix: give `reference_logprobs` the same `data`",
    ]
    said = refused(tmp_path, ipo, {**inputs, "adapter": adapter, "reference": made})
    assert said[0] == (
        "error[E0909]: `reference` was computed with another adapter: its numbers have no meaning "
        "here"
    )
    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    said = refused(tmp_path, ipo, {"model": other, "data": pairs, "reference": made})
    assert said[0].startswith("error[E0909]: `reference` was computed with another model")
    said = refused(tmp_path, dpo, {**inputs, "reference": made}, dtype="bfloat16")
    assert said[0] == (
        "error[E0909]: `reference` was computed in float32, and this trains in bfloat16"
    )


def test_order_of_kto_must_be_that_of_the_mismatched_completions(
    tmp_path: Path, model: Artifact, pairs: Artifact
) -> None:
    inputs = {"model": model, "data": pairs}
    made = reference(tmp_path, inputs, kl_batch_size=4)
    assert refused(tmp_path, kto, {**inputs, "reference": made}, batch_size=2) == [
        "error[E0909]: `reference` lacks the mismatched completions that `kto` compares in this "
        "order",
        "  --> reference",
        "  why: they follow from `batch_size` and `seed`; it was made with "
        "{'batch_size': 4, 'seed': 42}",
        "  fix: set `kl_batch_size = 2` and `seed = 42` there",
    ]
    apo = train(
        tmp_path,
        kto,
        {**inputs, "reference": made},
        batch_size=2,
        loss="apo_zero_unpaired",
        epochs=1,
    )
    assert losses(apo)[0] == pytest.approx(0.5, abs=1e-5)


def test_any_file_is_no_reference(tmp_path: Path, model: Artifact, pairs: Artifact) -> None:
    folder = tmp_path / "file"
    folder.mkdir()
    inputs = {"model": model, "data": pairs, "reference": artifact(File, folder)}
    assert refused(tmp_path, dpo, inputs) == [
        "error[E0909]: `reference` holds no reference log-probabilities",
        "  --> reference",
        "  fix: name a target of the rule `reference_logprobs`",
    ]


@pytest.mark.parametrize(
    ("names", "attribute", "what"),
    [
        (
            ("eval_data", "reference"),
            "reference",
            "with `reference` no reference model is loaded, so `eval_data` needs `eval_reference`",
        ),
        (
            ("reference", "eval_reference"),
            "eval_reference",
            "`eval_reference` belongs to `eval_data`, and to `reference` for `data`",
        ),
    ],
)
def test_half_of_a_reference_is_refused(
    tmp_path: Path,
    model: Artifact,
    pairs: Artifact,
    names: tuple[str, ...],
    attribute: str,
    what: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    more = {name: pairs if name == "eval_data" else artifact(File, empty) for name in names}
    with pytest.raises(AttributeProblem) as caught:
        run_rule(dpo, {"model": model, "data": pairs, **more}, {}, tmp_path)
    assert (caught.value.attribute, caught.value.what) == (attribute, what)
