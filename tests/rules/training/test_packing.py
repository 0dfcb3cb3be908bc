"""Packed rows: documents stay apart, in every way that once let them see each other."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, packed_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
LORA = {"r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


def packed(directory: Path, **settings: Any) -> Artifact:
    return artifact(Tokens, make_tokens(directory, packed_rows(sft_rows()), **settings))


def plain(directory: Path) -> Artifact:
    return artifact(Tokens, make_tokens(directory, sft_rows(), per_shard=5))


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"learning_rate": 1e-2, "epochs": 3}
    return run_rule(sft, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_packed_rows_train_as_their_documents_do(
    tmp_path: Path, model: Artifact, attention: str, lora: dict[str, Any] | None
) -> None:
    """All twelve documents in each step: as four packed rows, and as twelve padded ones."""
    params: dict[str, Any] = {"attention": attention} | ({} if lora is None else {"lora": lora})
    inputs = {"model": model, "data": packed(tmp_path / "packed", per_shard=3)}
    _, together = train(tmp_path, inputs, batch_size=4, **params)
    apart_inputs = {"model": model, "data": plain(tmp_path / "plain")}
    _, apart = train(tmp_path, apart_inputs, batch_size=12, **params)
    assert len(losses(apart)) == 3
    assert losses(together) == pytest.approx(losses(apart), abs=1e-5)


@pytest.mark.parametrize("trained", ["packed", "plain"])
def test_evaluation_keeps_documents_apart_whichever_is_packed(
    tmp_path: Path, model: Artifact, trained: str
) -> None:
    both = {"packed": packed(tmp_path / "packed"), "plain": plain(tmp_path / "plain")}
    found = []
    for evaluated in both.values():
        inputs = {"model": model, "data": both[trained], "eval_data": evaluated}
        found.append(train(tmp_path, inputs, batch_size=12)[1].known["eval_loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_mask_of_ones_is_found_out_before_the_first_step(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way it was lost without a word: a mask of ones beside positions that begin anew."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def masked(self: Any, input_ids: Any, **named: Any) -> Any:
        import torch

        named["attention_mask"] = torch.ones_like(input_ids)
        return forward(self, input_ids=input_ids, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", masked)
    inputs = {"model": model, "data": packed(tmp_path / "packed")}
    ctx = context(tmp_path)
    with pytest.raises(RuleError) as caught:
        run_rule(sft, inputs, {"batch_size": 4}, tmp_path, ctx=ctx)
    assert not ctx.steps
    assert caught.value.render() == (
        "error[E0911]: documents in the packed rows of `tokens` would see each other in `model`\n"
        "  --> tokens\n"
        "  why: `LlamaForCausalLM` does not keep documents apart by their positions\n"
        "  fix: take `packing` away from the tokens"
    )


def test_trial_of_the_model_changes_no_result(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbuild_rules.training import _packing

    inputs = {"model": model, "data": packed(tmp_path / "packed")}
    lora = {**LORA, "dropout": 0.3}
    tried, _ = train(tmp_path, inputs, batch_size=2, lora=lora)
    monkeypatch.setattr(_packing, "require_isolation", lambda *_: None)
    untried, _ = train(tmp_path, inputs, batch_size=2, lora=lora)
    assert tried.digest == untried.digest


def test_lengths_that_do_not_fill_a_row_are_refused(tmp_path: Path, model: Artifact) -> None:
    rows = packed_rows(sft_rows())
    rows[2]["seq_lengths"][1] -= 1
    length = len(rows[2]["input_ids"])
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", rows, per_shard=2))
    with pytest.raises(RuleError) as caught:
        train(tmp_path, {"model": model, "data": tokens})
    assert caught.value.render().splitlines()[:2] == [
        f"error[E0904]: the `seq_lengths` of row 2 of `tokens` add up to {length - 1}; the row "
        f"has {length} tokens",
        "  --> tokens in row 2",
    ]


def test_packed_rows_are_no_pairs(tmp_path: Path, model: Artifact) -> None:
    inputs = {"model": model, "data": packed(tmp_path / "packed")}
    with pytest.raises(RuleError) as caught:
        run_rule(dpo, inputs, {}, tmp_path)
    assert caught.value.render().splitlines()[2] == (
        "  why: its columns are input_ids, labels, seq_lengths"
    )


def test_noise_on_embeddings_follows_the_seed_alone(tmp_path: Path, model: Artifact) -> None:
    inputs = {"model": model, "data": plain(tmp_path / "plain")}
    digests = [
        train(tmp_path, inputs, batch_size=4, lora=LORA, epochs=1, **params)[0].digest
        for params in ({}, {"neftune_noise_alpha": 5.0}, {"neftune_noise_alpha": 5.0})
    ]
    assert digests[1] == digests[2] != digests[0]
