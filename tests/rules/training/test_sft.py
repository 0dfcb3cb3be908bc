"""`sft`: losses against TRL and against arithmetic, what is written, what stops it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
LORA = {"r": 4, "alpha": 8}


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return artifact(Model, make_model(tmp_path / "model"))


def tokens_of(tmp_path: Path, rows: list[dict[str, list[int]]]) -> Artifact:
    return artifact(Tokens, make_tokens(tmp_path / "tokens", rows, per_shard=5))


def train(
    tmp_path: Path, inputs: dict[str, Artifact], **params: Any
) -> tuple[Artifact, RecordingContext]:
    ctx = context(tmp_path)
    length = {} if "max_steps" in params else {"epochs": 2}
    defaults = {"batch_size": 4, "learning_rate": 1e-2, **length}
    return run_rule(sft, inputs, {**defaults, **params}, tmp_path, ctx=ctx), ctx


def losses(ctx: RecordingContext) -> list[float]:
    return [metrics["loss"] for _, _, metrics in ctx.steps if "loss" in metrics]


@pytest.mark.parametrize("lora", [None, {**LORA, "dropout": 0.1}])
def test_losses_equal_those_of_a_plain_trl_script(
    tmp_path: Path, model: Artifact, lora: dict[str, Any] | None
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    rows = sft_rows(20)
    params = {"gradient_accumulation": 2, "batch_size": 3, "warmup": 2, "weight_decay": 0.1}
    _, ctx = train(
        tmp_path,
        {"model": model, "data": tokens_of(tmp_path, rows)},
        **params,
        epochs=5,
        schedule="cosine",
        **({} if lora is None else {"lora": lora}),
    )
    set_seed(42)
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        num_train_epochs=5,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
        bf16=False,
        activation_checkpointing=False,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    adapter = None
    if lora is not None:
        adapter = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear"
        )
    trainer = SFTTrainer(
        str(model.path), args=config, train_dataset=Dataset.from_list(rows), peft_config=adapter
    )
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(expected) == 20
    assert losses(ctx) == pytest.approx(expected, abs=1e-5)


def test_loss_and_gradient_come_from_the_labels_alone(tmp_path: Path, model: Artifact) -> None:
    """Computed row by row, without padding: -log softmax(logits)[label], labels shifted by one."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = sft_rows(6)
    _, ctx = train(
        tmp_path, {"model": model, "data": tokens_of(tmp_path, rows)}, batch_size=6, max_steps=1
    )
    network = AutoModelForCausalLM.from_pretrained(model.path)
    terms = []
    for row in rows:
        log_probs = network(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        terms += [
            -log_probs[place - 1, label]
            for place, label in enumerate(row["labels"])
            if place > 0 and label != -100
        ]
    loss = torch.stack(terms).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
    metrics = ctx.steps[0][2]
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_adapter_is_what_peft_loads_and_nothing_else(tmp_path: Path, model: Artifact) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made, ctx = train(
        tmp_path, {"model": model, "data": tokens_of(tmp_path, sft_rows())}, lora=LORA
    )
    assert isinstance(made, Adapter)
    assert sorted(p.name for p in made.path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "card.json",
        "chat_template.jinja",
    ]
    assert (made.path / "base.json").read_text() == f'{{"base":"{model.digest}"}}'
    config = json.loads((made.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert str(tmp_path) not in (made.path / "adapter_config.json").read_text()
    base = AutoModelForCausalLM.from_pretrained(model.path)
    policy = PeftModel.from_pretrained(base, made.path)
    assert any(p.abs().sum() > 0 for n, p in policy.named_parameters() if "lora_B" in n)
    assert ctx.known["steps"] == 6
    assert ctx.known["last_loss"] < ctx.known["first_loss"]


def test_full_training_gives_a_model_in_the_type_of_its_base(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = artifact(Model, make_model(tmp_path / "base", dtype="bfloat16"))
    made, _ = train(tmp_path, {"model": base, "data": tokens_of(tmp_path, sft_rows())})
    assert isinstance(made, Model)
    names = sorted(p.name for p in base.path.iterdir())
    assert sorted(p.name for p in made.path.iterdir()) == sorted([*names, "README.md", "card.json"])
    same = [n for n in names if n != "model.safetensors"]
    assert all((made.path / n).read_bytes() == (base.path / n).read_bytes() for n in same)
    before, after = (AutoModelForCausalLM.from_pretrained(a.path) for a in (base, made))
    assert after.dtype == torch.bfloat16
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_continued_adapter_starts_where_it_ended(tmp_path: Path, model: Artifact) -> None:
    tokens = tokens_of(tmp_path, sft_rows(4))
    first, ctx = train(tmp_path, {"model": model, "data": tokens, "eval_data": tokens}, lora=LORA)
    _, again = train(tmp_path, {"model": model, "data": tokens, "adapter": first}, max_steps=1)
    assert losses(again)[0] == pytest.approx(ctx.known["eval_loss"], abs=1e-6)


def test_evaluation_follows_each_epoch_and_changes_nothing(tmp_path: Path, model: Artifact) -> None:
    tokens = tokens_of(tmp_path, sft_rows())
    plain, _ = train(tmp_path, {"model": model, "data": tokens}, lora={**LORA, "dropout": 0.1})
    evaluated, ctx = train(
        tmp_path,
        {"model": model, "data": tokens, "eval_data": tokens},
        lora={**LORA, "dropout": 0.1},
    )
    assert [step for step, _, metrics in ctx.steps if "eval_loss" in metrics] == [3, 6]
    assert evaluated.digest == plain.digest


def test_bfloat16_keeps_what_is_trained_in_float32(tmp_path: Path, model: Artifact) -> None:
    from safetensors.torch import load_file

    made, ctx = train(
        tmp_path,
        {"model": model, "data": tokens_of(tmp_path, sft_rows())},
        lora=LORA,
        dtype="bfloat16",
    )
    tensors = load_file(made.path / "adapter_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32"}
    assert losses(ctx)[0] == pytest.approx(5.8, abs=0.2)


@pytest.mark.parametrize(
    "params",
    [
        {"activation_checkpointing": True},
        {"attention": "eager"},
        {"optimizer": "adafactor"},
        {"lora": {**LORA, "modules_to_save": ("embed_tokens",), "rslora": True}},
        {"lora": {**LORA, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}}},
    ],
)
def test_each_setting_trains(tmp_path: Path, model: Artifact, params: dict[str, Any]) -> None:
    tokens = tokens_of(tmp_path, sft_rows())
    _, ctx = train(tmp_path, {"model": model, "data": tokens}, **{"lora": LORA, **params})
    assert losses(ctx)[-1] < losses(ctx)[0]


def test_other_template_is_carried_along_where_it_is_allowed(
    tmp_path: Path, model: Artifact
) -> None:
    tokens = tokens_of(tmp_path, sft_rows())
    (tokens.path / "chat_template.jinja").write_text("{{ messages }}")
    inputs = {"model": model, "data": tokens}
    with pytest.raises(RuleError, match="`tokens` was rendered by another chat template") as caught:
        train(tmp_path, inputs, lora=LORA)
    assert caught.value.problems[0].code == "E0902"
    made, _ = train(tmp_path, inputs, lora=LORA, other_template=True)
    assert (made.path / "chat_template.jinja").read_text() == "{{ messages }}"


def test_marks_of_what_to_train_on_make_no_other_template(tmp_path: Path, model: Artifact) -> None:
    tokens = tokens_of(tmp_path, sft_rows())
    own = (model.path / "chat_template.jinja").read_text()
    marked = own.replace(
        "{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"
    )
    assert marked != own
    (tokens.path / "chat_template.jinja").write_text(marked)
    for lora in (LORA, None):  # an adapter and a model, which carry the template as their base does
        made, _ = train(tmp_path, {"model": model, "data": tokens}, lora=lora, max_steps=1)
        assert (made.path / "chat_template.jinja").read_text() == own


def refused(tmp_path: Path, inputs: dict[str, Artifact], **params: Any) -> str:
    ctx = context(tmp_path)
    with pytest.raises(RuleError) as caught:
        run_rule(sft, inputs, {"batch_size": 4, **params}, tmp_path, ctx=ctx)
    assert not list(ctx.out.iterdir())
    return caught.value.render()


def test_loss_that_is_not_finite_stops_at_its_step_and_names_the_rows(
    tmp_path: Path, model: Artifact
) -> None:
    inputs = {"model": model, "data": tokens_of(tmp_path, sft_rows(4))}
    said = refused(tmp_path, inputs, learning_rate=1e38, lora=LORA)
    what, where, *_ = said.splitlines()
    assert what == "error[E0910]: the loss is nan at step 2; training stopped, nothing was kept"
    assert sorted(where.removeprefix("  --> tokens in rows ").split(", ")) == ["0", "1", "2", "3"]


def test_gradient_that_is_not_finite_stops(tmp_path: Path, model: Artifact) -> None:
    """Logits of 1e25 make a finite loss and gradients whose squares are beyond float32."""
    from safetensors.torch import load_file, save_file

    path = model.path / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] *= 1e25
    save_file(weights, path, metadata={"format": "pt"})
    inputs = {
        "model": artifact(Model, model.path),
        "data": tokens_of(tmp_path, sft_rows(4)),
    }
    assert refused(tmp_path, inputs, learning_rate=1e-3).splitlines()[0] == (
        "error[E0910]: the gradient has the norm inf at step 1; training stopped, nothing was kept"
    )


def test_loss_of_exactly_zero_stops(tmp_path: Path, model: Artifact) -> None:
    """Layers that add nothing and one token that wins by a thousand nats: its loss is 0."""
    import torch
    from safetensors.torch import load_file, save_file

    path = model.path / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if "layers" in name and weight.ndim > 1:
            weight.zero_()
    weights["model.embed_tokens.weight"][:] = torch.ones(32)
    weights["lm_head.weight"].zero_()
    weights["lm_head.weight"][7] = 1000.0
    save_file(weights, path, metadata={"format": "pt"})
    inputs = {
        "model": artifact(Model, model.path),
        "data": tokens_of(tmp_path, [{"input_ids": [5, 7, 7], "labels": [-100, 7, 7]}]),
    }
    assert refused(tmp_path, inputs).splitlines()[:2] == [
        "error[E0910]: the loss is 0.0 at step 1; training stopped, nothing was kept",
        "  --> tokens in rows 0",
    ]


def test_adapter_that_learned_nothing_is_refused(tmp_path: Path, model: Artifact) -> None:
    inputs = {"model": model, "data": tokens_of(tmp_path, sft_rows(4))}
    assert refused(tmp_path, inputs, learning_rate=1e-300, lora=LORA, max_steps=1) == (
        "error[E0913]: the trained adapter is all zeros: it learned nothing\n"
        "  why: every B matrix still has its initial value 0\n"
        "  fix: raise `learning_rate`; with `warmup`, train for more steps than it takes"
    )


@pytest.mark.parametrize(
    ("params", "attribute", "what"),
    [
        (
            {"epochs": 1, "max_steps": 2},
            "max_steps",
            "`epochs` and `max_steps` exclude each other",
        ),
        (
            {"lora": {"target_modules": ["q_proj", "lm_head"]}},
            "lora",
            "`lm_head` cannot be adapted: the losses use its weights directly, so the adapter "
            "would never be trained",
        ),
        ({"lora": {"target_modules": []}}, "lora", "`lora.target_modules` is empty"),
        (
            {"lora": {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]}},
            "lora",
            "`q_proj` stands in `target_modules` and in `modules_to_save`",
        ),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(
    tmp_path: Path, model: Artifact, params: dict[str, Any], attribute: str, what: str
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        run_rule(sft, {"model": model, "data": tokens_of(tmp_path, sft_rows(1))}, params, tmp_path)
    assert (caught.value.attribute, caught.value.what) == (attribute, what)


def test_defaults_leave_no_trace_in_the_key() -> None:
    from ftbuild_rules.training.sft import SftParams

    given = SftParams.model_validate_json('{"lora": {"r": 8}, "epochs": 3.0}')
    assert given.model_dump(mode="json", exclude_defaults=True) == {"lora": {"r": 8}}
    assert math.isclose(given.learning_rate, 2e-5)
