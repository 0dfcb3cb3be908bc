"""The `lora` table: each variant learns, and its artifact is that for the plain base."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.models.merge import merge
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, preference_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
LORA: dict[str, Any] = {"r": 4, "alpha": 8}
ROWS = sft_rows(8)
QV = ".*[.](q|v)_proj"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("model")
    return artifact(Model, make_model(folder, tie_word_embeddings=request.param))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Tokens, make_tokens(tmp_path_factory.mktemp("tokens") / "t", ROWS))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("pairs") / "p"
    return artifact(Tokens, make_tokens(folder, preference_rows()))


def train(
    tmp_path: Path, rule: Any, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    defaults = {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 3}
    return run_rule(rule, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def loaded(model: Artifact, adapter: Artifact) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model.path)
    return PeftModel.from_pretrained(base, adapter.path).eval()


def loss_of(network: Any) -> float:
    """The mean over all labels, row by row, without padding."""
    import torch

    total, count = 0.0, 0
    for row in ROWS:
        with torch.no_grad():
            log_probs = network(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if place > 0 and label != -100:
                total -= log_probs[place - 1, label].item()
                count += 1
    return total / count


def settings_of(adapter: Artifact) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((adapter.path / "adapter_config.json").read_text())
    return read


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_modules": QV}, {"r": 4, "target_modules": QV}),
        ({"dora": True}, {"use_dora": True}),
        ({"init": "gaussian"}, {"r": 4}),
        ({"init": "orthogonal", "rslora": True}, {"r": 4, "lora_alpha": 8}),
        ({"init": "pissa"}, {"r": 8, "lora_alpha": 16, "init_lora_weights": True}),
        ({"init": "pissa", "pissa_iterations": 4}, {"r": 8, "lora_alpha": 16}),
        ({"init": "pissa", "dora": True}, {"r": 8, "use_dora": True}),
        ({"init": "olora"}, {"r": 8, "lora_alpha": 16, "init_lora_weights": True}),
        ({"init": "corda"}, {"r": 8, "init_lora_weights": True, "corda_config": None}),
        ({"init": "eva"}, {"r": 4, "init_lora_weights": True, "eva_config": None}),
        ({"init": "eva", "dora": True, "rslora": True}, {"r": 4, "lora_alpha": 8}),
        (
            {
                "init": "pissa",
                "rslora": True,
                "rank_pattern": {"q_proj": 2},
                "alpha_pattern": {"v_proj": 3},
            },
            {"r": 8, "lora_alpha": 8 * 2**0.5, "rank_pattern": {"q_proj": 4}},
        ),
    ],
)
def test_artifact_holds_what_was_trained_for_the_plain_base(
    tmp_path: Path,
    model: Artifact,
    tokens: Artifact,
    changes: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    inputs = {"model": model, "data": tokens, "eval_data": tokens}
    adapter, ctx = train(tmp_path, sft, inputs, lora={**LORA, **changes})
    assert {name: settings_of(adapter)[name] for name in expected} == expected
    assert ctx.known["last_loss"] < ctx.known["first_loss"]
    assert loss_of(loaded(model, adapter)) == pytest.approx(ctx.known["eval_loss"], abs=1e-5)
    first, second = (m for _, _, m in ctx.steps if "eval_loss" in m), ctx.known["first_loss"]
    assert next(first)["eval_loss"] < second


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_directions_come_from_the_base_and_merging_gives_the_trained_model(
    tmp_path: Path, model: Artifact, tokens: Artifact, init: str
) -> None:
    """The second half of the rank is the start: s B0 A0 is what was taken out of the base."""
    import torch
    from safetensors.torch import load_file

    lora = {**LORA, "init": init, "target_modules": ["q_proj"]}
    adapter, _ = train(tmp_path, sft, {"model": model, "data": tokens}, lora=lora)
    name = "model.layers.0.self_attn.q_proj"
    weight = load_file(model.path / "model.safetensors")[f"{name}.weight"]
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name}.lora_{each}.weight"] for each in "AB")
    start = -(b[:, 4:] @ a[4:]) * 2
    if init == "pissa":
        u, s, v = torch.linalg.svd(weight)
        largest = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
    else:
        q, r = torch.linalg.qr(weight)
        largest = 2 * q[:, :4] @ r[:4]
    assert torch.allclose(start, largest, atol=1e-4)

    merged = run_rule(merge, {"model": model, "adapter": adapter}, {}, tmp_path)
    by_peft = loaded(model, adapter).merge_and_unload().state_dict()
    for found, value in load_file(merged.path / "model.safetensors").items():
        assert torch.equal(value, by_peft[found])


def test_rows_of_tokens_are_trained_in_both_embeddings_and_no_others(
    tmp_path: Path, any_model: Artifact, tokens: Artifact
) -> None:
    from transformers import AutoModelForCausalLM

    seen = ROWS[0]["input_ids"][0]
    assert seen > 2
    assert all(2 not in row["input_ids"] for row in ROWS)
    lora = {**LORA, "trainable_tokens": ["<|im_end|>", seen], "target_modules": ["q_proj"]}
    inputs = {"model": any_model, "data": tokens, "eval_data": tokens}
    adapter, ctx = train(tmp_path, sft, inputs, lora=lora)
    network = loaded(any_model, adapter)
    assert loss_of(network) == pytest.approx(ctx.known["eval_loss"], abs=1e-5)
    merged = network.merge_and_unload()
    base = AutoModelForCausalLM.from_pretrained(any_model.path)
    is_tied = base.config.tie_word_embeddings
    for part in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(each, part)().weight for each in (base, merged))
        changed = (before != after).any(dim=1).nonzero().flatten().tolist()
        # As an input the id 2, which no row has, gets no gradient; as an output each has one.
        assert changed == ([2, seen] if is_tied or part == "get_output_embeddings" else [seen])
    names = ["lm_head", "model.embed_tokens"]
    expected = {name: [2, seen] for name in names[is_tied:]}
    assert settings_of(adapter)["trainable_token_indices"] == expected


@pytest.mark.parametrize("rule", [dpo, kto])
@pytest.mark.parametrize(
    "changes",
    [
        {"trainable_tokens": list(range(3, 200))},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"dora": True},
    ],
)
def test_reference_of_a_continued_adapter_is_its_whole_start(
    tmp_path: Path,
    model: Artifact,
    tokens: Artifact,
    pairs: Artifact,
    rule: Any,
    changes: dict[str, Any],
) -> None:
    lora = {**LORA, "target_modules": ["q_proj"], **changes}
    adapter, _ = train(tmp_path, sft, {"model": model, "data": tokens}, lora=lora)
    inputs = {"model": model, "adapter": adapter, "data": pairs}
    _, ctx = train(tmp_path, rule, inputs, max_steps=1, batch_size=16)
    rewards = [v for name, v in ctx.steps[0][2].items() if name.startswith("rewards/")]
    assert all(abs(value) < 1e-5 for value in rewards if value != 0.5)
    assert rewards


@pytest.mark.parametrize("changes", [{"init": "pissa"}, {"init": "olora"}, {"bias": "all"}])
def test_base_that_training_moves_is_no_reference(
    tmp_path: Path, model: Artifact, tokens: Artifact, pairs: Artifact, changes: dict[str, str]
) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, dpo, {"model": model, "data": pairs}, lora={**LORA, **changes})
    assert caught.value.what == (
        f'`lora.{name} = "{value}"` changes weights of the base, which is the reference here'
    )
    if name == "bias":
        adapter, _ = train(
            tmp_path, sft, {"model": model, "data": tokens}, lora={**LORA, **changes}
        )
        with pytest.raises(RuleError, match="the reference has the same ones: it would move along"):
            train(tmp_path, dpo, {"model": model, "adapter": adapter, "data": pairs})


@pytest.mark.parametrize(
    ("lora", "what", "fix"),
    [
        (
            {"target_modules": ["q_proj", "k_porj"]},
            "`k_porj` in `lora.target_modules` is no layer of `model`",
            "did you mean `k_proj`?",
        ),
        (
            {"target_modules": "q_proj"},
            "the pattern `q_proj` in `lora.target_modules` matches no layer of `model`",
            "it must match a whole name such as `model.layers.0.self_attn.q_proj`; names alone "
            'are written as a list: ["q_proj"]',
        ),
        (
            {"target_modules": ".*(q_proj|lm_head)"},
            "`lora.target_modules` matches the output layer `lm_head`, which the losses use "
            "directly, so the adapter would never be trained",
            'narrow the pattern; to train it whole: modules_to_save = ["lm_head"]',
        ),
        (
            {"target_modules": ["mlp"]},
            "`model.layers.0.mlp` is a LlamaMLP, which LoRA cannot adapt",
            "name linear layers: `down_proj`, `gate_proj`, `up_proj`",
        ),
        (
            {"target_modules": ["embed_tokens"], "init": "pissa"},
            '`lora.init = "pissa"` is for linear layers, and `model.embed_tokens` is an embedding',
            "take it out of `target_modules`",
        ),
        (
            {"init": "pissa", "r": 32},
            '`init = "pissa"` needs a rank of at most 16 for `model.layers.0.self_attn.k_proj`, '
            "whose shape is (16, 32); it has 32",
            "lower `r`, or set `rank_pattern = { k_proj = 16 }`",
        ),
        (
            {"modules_to_save": ["embed"]},
            "`embed` in `lora.modules_to_save` is no layer of `model`",
            "its layers are `act_fn`, `down_proj`, `embed_tokens`, `gate_proj`, "
            "`input_layernorm`, `k_proj`, `lm_head`, `norm`, `o_proj`, "
            "`post_attention_layernorm`, `q_proj`, `rotary_emb` and 2 more",
        ),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 2}},
            "`v_proj` in `lora.rank_pattern` is the name of no adapted layer",
            "adapted are `q_proj`",
        ),
        (
            {"trainable_tokens": ["<|im_and|>"]},
            "`<|im_and|>` in `lora.trainable_tokens` is no token of `model`",
            "did you mean `<|im_end|>`?",
        ),
        (
            {"trainable_tokens": [9999]},
            "the id 9999 in `lora.trainable_tokens` is beyond the model's vocabulary of 314",
            "name a token that the model's embedding has a row for",
        ),
        (
            {"trainable_tokens": [7], "modules_to_save": ["embed_tokens"]},
            "`embed_tokens` is trained as a whole already, and `lora.trainable_tokens` wants some "
            "of its rows",
            "remove one of the two",
        ),
    ],
)
def test_name_without_a_meaning_is_refused_before_weights_are_read(
    tmp_path: Path, model: Artifact, tokens: Artifact, lora: dict[str, Any], what: str, fix: str
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model.path.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RuleError) as caught:
        train(tmp_path, sft, {"model": artifact(Model, bare), "data": tokens}, lora=lora)
    [problem] = caught.value.problems
    assert (problem.code, problem.what, problem.fix) == ("E0950", what, fix)


@pytest.mark.parametrize(
    ("lora", "what"),
    [
        (
            {"target_modules": "(q_proj"},
            "`lora.target_modules` is no regular expression: missing ), unterminated subpattern "
            "at position 0",
        ),
        ({"pissa_iterations": 4}, "`lora.pissa_iterations` belongs to PiSSA"),
        ({"init": "orthogonal", "r": 3}, '`init = "orthogonal"` needs an even rank; found 3'),
        ({"rank_pattern": {"q_proj": 0}}, "a rank in `lora.rank_pattern` is below 1"),
        ({"init_rows": 8}, "`lora.init_rows` belongs to `corda` and `eva`"),
        (
            {"init": "eva", "rank_pattern": {"q_proj": 2}},
            '`init = "eva"` gives all layers one rank',
        ),
    ],
)
def test_table_that_contradicts_itself_is_refused(
    tmp_path: Path, model: Artifact, tokens: Artifact, lora: dict[str, Any], what: str
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, sft, {"model": model, "data": tokens}, lora=lora)
    assert caught.value.what == what


@pytest.mark.parametrize("init", ["orthogonal", "pissa"])
def test_adapter_that_stays_as_it_began_is_refused(
    tmp_path: Path, model: Artifact, tokens: Artifact, init: str
) -> None:
    with pytest.raises(RuleError, match="the trained adapter is as it began: it learned nothing"):
        train(
            tmp_path,
            sft,
            {"model": model, "data": tokens},
            lora={**LORA, "init": init},
            learning_rate=1e-300,
        )
