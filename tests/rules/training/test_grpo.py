"""`grpo`: against TRL's trainer, learning, its reference, reward models, resumption, refusals."""

import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from ftbuild.api import Adapter, Artifact, AttributeProblem, Model, RewardModel, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.training.grpo import grpo
from ftbuild_rules.training.reward_model import reward_model
from grpo_kit import EVEN, function, make_prompts, some_prompts, train
from preference_kit import LORA, plain_losses, plain_settings
from tiny_models import (
    TEMPLATE,
    make_model,
    make_tokens,
    preference_rows,
    step_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()
NO_DROPOUT = {**LORA, "dropout": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("prompts") / "tokens"
    return artifact(Tokens, make_prompts(folder, some_prompts()))


def figures(ctx: RecordingContext, name: str) -> list[float]:
    return [metrics[name] for _, _, metrics in ctx.steps if name in metrics]


def plain_grpo(model: Artifact, directory: Path, *, lora: bool, **settings: Any) -> list[float]:
    """Return the losses of TRL's `GRPOTrainer`, with nothing of ours but the ids of prompts."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import GRPOConfig, GRPOTrainer

    class Pretokenized(GRPOTrainer):  # type: ignore[misc]  # untyped library
        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [list(map(int, text.split())) for text in prompts], None, {}

    def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(i % 2 == 0 for i in ids) / 6 for ids in completion_ids]

    rows = [{"prompt": " ".join(map(str, row["prompt_ids"]))} for row in some_prompts()]
    set_seed(42)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear"
    )
    return plain_losses(
        Pretokenized(
            AutoModelForCausalLM.from_pretrained(model.path),
            reward_funcs=even,
            args=GRPOConfig(
                **plain_settings(
                    directory,
                    per_device_train_batch_size=4,
                    num_generations=4,
                    max_completion_length=6,
                    num_train_epochs=1,
                    disable_dropout=True,
                    **settings,
                )
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model.path),
            peft_config=config if lora else None,
        )
    )


@pytest.mark.parametrize(
    ("lora", "params", "settings"),
    [
        (
            None,
            {"beta": 0.1, "num_iterations": 3},
            {"beta": 0.1, "num_iterations": 3},
        ),
        (
            NO_DROPOUT,
            {
                "beta": 0.05,
                "loss": "dr_grpo",
                "num_iterations": 3,
                "gradient_accumulation": 2,
                "epsilon_high": 0.3,
                "scale_rewards": "none",
                "temperature": 0.7,
                "top_k": 50,
            },
            {
                "beta": 0.05,
                "loss_type": "dr_grpo",
                "num_iterations": 3,
                "gradient_accumulation_steps": 2,
                "epsilon_high": 0.3,
                "scale_rewards": "none",
                "temperature": 0.7,
                "top_k": 50,
            },
        ),
    ],
)
def test_losses_equal_trl(
    tmp_path: Path,
    model: Artifact,
    prompts: Artifact,
    lora: dict[str, Any] | None,
    params: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, EVEN, "even"),)}
    made, ctx = train(tmp_path, inputs, **params, **({} if lora is None else {"lora": lora}))
    assert isinstance(made, Model if lora is None else Adapter)
    expected = plain_grpo(model, tmp_path, lora=lora is not None, **settings)
    assert len(expected) == (12 if lora else 24)
    assert max(map(abs, expected)) > 1e-3
    assert figures(ctx, "loss") == pytest.approx(expected, abs=1e-5)


def test_reward_rises(tmp_path: Path, model: Artifact, prompts: Artifact) -> None:
    inputs = {
        "model": model,
        "data": prompts,
        "eval_data": prompts,
        "rewards": (function(tmp_path, EVEN, "even"),),
    }
    settings = {"batch_size": 16, "num_generations": 8, "schedule": "constant"}
    _, ctx = train(tmp_path, inputs, epochs=8, **settings)
    rewards = figures(ctx, "reward")
    assert len(rewards) == 32
    assert sum(rewards[:4]) / 4 == pytest.approx(0.5, abs=0.1)  # half of the ids are even
    assert sum(rewards[-4:]) / 4 > 0.8
    assert ctx.known["last_reward"] == pytest.approx(rewards[-1], abs=1e-6)
    measured = figures(ctx, "eval_loss")
    assert len(measured) == 8
    assert measured[-1] < measured[0] - 0.2 < 0  # minus the mean reward
    assert ctx.known["eval_loss"] == pytest.approx(measured[-1])


def test_function_gets_texts_ids_and_columns(tmp_path: Path, model: Artifact) -> None:
    from transformers import AutoTokenizer

    rows = some_prompts(2)
    rows[1]["hint"] = "x"
    data = artifact(Tokens, make_prompts(tmp_path / "prompts", rows))
    code = (
        "import json\n\n"
        "def keep(prompts, completions, completion_ids, wanted, hint, factor=2):\n"
        f"    with open({str(tmp_path / 'seen.jsonl')!r}, 'a') as file:\n"
        "        for row in zip(prompts, completions, completion_ids, wanted, hint):\n"
        "            file.write(json.dumps(row) + '\\n')\n"
        "    return [factor * len(ids) for ids in completion_ids]\n"
    )
    inputs = {"model": model, "data": data, "rewards": (function(tmp_path, code, "keep"),)}
    _, ctx = train(tmp_path, inputs, num_generations=2, batch_size=4)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(seen) == 4
    for prompt, completion, ids, wanted, hint in seen:
        row = next(row for row in rows if tokenizer.decode(row["prompt_ids"]) == prompt)
        assert (wanted, hint) == (row["wanted"], row.get("hint"))
        assert completion == tokenizer.decode(ids, skip_special_tokens=True)
    lengths = [len(ids) for _, _, ids, _, _ in seen]
    assert figures(ctx, "reward") == pytest.approx([2 * sum(lengths) / 4])


def test_rewards_are_weighed_and_none_is_left_out(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    code = (
        "def one(completions):\n    return [1.0] * len(completions)\n\n"
        "def two(completions):\n    return [None, 2.0] * (len(completions) // 2)\n"
    )
    functions = tuple(function(tmp_path, code, name) for name in ("one", "two"))
    inputs = {"model": model, "data": prompts, "rewards": functions}
    _, ctx = train(tmp_path, inputs, reward_weights=[0.5, -3.0], max_steps=1)
    assert figures(ctx, "reward") == [pytest.approx((0.5 + 0.5 - 6.0) / 2)]
    assert figures(ctx, "rewards/two/mean") == [2.0]


def test_continued_adapter_is_its_own_reference(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    """With a learning rate of nearly 0 the policy stays the reference, so there is no KL."""
    rewards = (function(tmp_path, EVEN, "even"),)
    given = {"model": model, "data": prompts, "rewards": rewards}
    first, _ = train(tmp_path, given, lora=NO_DROPOUT)
    again, ctx = train(
        tmp_path,
        {**given, "adapter": first},
        beta=0.1,
        learning_rate=1e-30,
        max_steps=2,
    )
    assert figures(ctx, "kl") == pytest.approx([0.0, 0.0], abs=1e-9)
    assert isinstance(again, Adapter)
    moved, _ = train(tmp_path, {**given, "adapter": first}, beta=0.1)
    assert moved.digest != first.digest


def test_reward_models_score_prompt_completion_and_what_closes_it(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    """Against plain Transformers and PEFT, on what a function saw of the same completions."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ftbuild_rules.training._judge import closing_ids

    (prompt,) = some_prompts(1)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    assert closing_ids(tokenizer, TEMPLATE, [2]) == tokenizer("\n")["input_ids"]
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows()))
    settings = {"batch_size": 2, "learning_rate": 1e-2, "epochs": 2}
    trained = {"model": model, "data": pairs}
    whole = run_rule(reward_model, trained, settings, tmp_path)
    small = run_rule(reward_model, trained, {**settings, "lora": {"r": 4}}, tmp_path)
    code = (
        "import json\n\n"
        "def keep(completion_ids):\n"
        f"    with open({str(tmp_path / 'seen.json')!r}, 'w') as file:\n"
        "        json.dump(completion_ids, file)\n"
        "    return [0.0] * len(completion_ids)\n"
    )
    inputs = {
        "model": model,
        "data": artifact(Tokens, make_prompts(tmp_path / "prompt", [prompt])),
        "rewards": (function(tmp_path, code, "keep"),),
        "reward_models": (
            RewardModel(whole.path, whole.digest, "whole"),
            RewardModel(small.path, small.digest, "small"),
        ),
    }
    _, ctx = train(tmp_path, inputs, num_generations=16, batch_size=16, max_steps=1)
    completions = json.loads((tmp_path / "seen.json").read_text())
    networks = {
        "whole": AutoModelForSequenceClassification.from_pretrained(whole.path),
        "small": PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(model.path, num_labels=1), small.path
        ),
    }
    for name, network in networks.items():
        scores = []
        for ids in completions:
            tail = tokenizer("\n")["input_ids"] if ids[-1] == 2 else []
            whole = [*prompt["prompt_ids"], *ids, *tail]
            with torch.no_grad():
                scores.append(network.eval()(torch.tensor([whole])).logits.item())
        assert len(scores) == 16
        assert figures(ctx, f"rewards/{name}/mean") == pytest.approx([sum(scores) / 16], abs=1e-5)
        assert figures(ctx, f"rewards/{name}/std") == pytest.approx([stdev(scores)], abs=1e-5)


@pytest.mark.parametrize("lora", [None, NO_DROPOUT])
def test_run_resumes_in_any_epoch_to_the_same_bytes(
    tmp_path: Path,
    model: Artifact,
    prompts: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, Any] | None,
) -> None:
    """Eight steps an epoch, two on one drawing: a checkpoint falls on every second one."""
    from ftbuild_rules.training import _checkpoints

    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, EVEN, "even"),)}
    params: dict[str, Any] = {
        "batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "epochs": 2,
        "num_iterations": 2,
        "beta": 0.1,
    }
    params |= {} if lora is None else {"lora": lora}
    whole = run_rule(grpo, inputs, params, tmp_path)

    class Stops(RecordingContext):
        def progress(self, step: int, steps: int | None = None, **metrics: float) -> None:
            assert steps == 16
            if step == stop_at:
                raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoints, "INTERVAL_S", 0.0)
    monkeypatch.setattr(_checkpoints, "SHARE", 0)
    for stop_at, resumed in (  # noqa: B007  # `Stops` reads it
        (4, 2),
        (10, 8),
        (13, 12),
    ):
        first = context(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run_rule(grpo, inputs, params, tmp_path, ctx=Stops(first.out, first.scratch))
        again = RecordingContext(first.out, first.scratch)
        assert run_rule(grpo, inputs, params, tmp_path, ctx=again).digest == whole.digest
        assert again.logs == [f"resuming from checkpoint-{resumed}"]


# ---------------------------------------------------------------- what is refused


def said(tmp_path: Path, inputs: dict[str, Any], **params: Any) -> list[str]:
    with pytest.raises(RuleError) as caught:
        train(tmp_path, inputs, **params)
    return caught.value.render().splitlines()


@pytest.mark.parametrize(
    ("body", "what", "where"),
    [
        (
            "return [1 / (w - 2) for w in wanted]",
            "`reward.py:score` fails: ZeroDivisionError: division by zero",
            "reward.py:2 in row 1",
        ),
        (
            "return [1.0]",
            "`reward.py:score` returns 1 for 8 completions",
            "reward.py:1 in rows 0, 1",
        ),
        (
            "return 0.5",
            "`reward.py:score` returns float for 8 completions",
            "reward.py:1 in rows 0, 1",
        ),
        (
            "return [float('nan') if w == 2 else 1.0 for w in wanted]",
            "`reward.py:score` returns nan for a completion of row 1",
            "reward.py:1 in row 1",
        ),
        (
            "return ['good' if w == 2 else 1 for w in wanted]",
            "`reward.py:score` returns 'good' for a completion of row 1",
            "reward.py:1 in row 1",
        ),
        (
            "return [None if w == 2 else 1 for w in wanted]",
            "no reward has anything to say on a completion of row 1",
            "tokens in row 1",
        ),
    ],
)
def test_function_that_gives_no_reward_is_named_with_line_and_row(
    tmp_path: Path, model: Artifact, body: str, what: str, where: str
) -> None:
    data = artifact(Tokens, make_prompts(tmp_path / "prompts", some_prompts(2)))
    code = f"def score(completions, wanted):\n    {body}\n"
    inputs = {"model": model, "data": data, "rewards": (function(tmp_path, code, "score"),)}
    lines = said(tmp_path, inputs, batch_size=8)
    assert lines[:2] == [f"error[E0914]: {what}", f"  --> {where}"]


def test_function_that_asks_for_a_column_that_is_not_there(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    code = "\ndef score(completions, answer):\n    return [0.0]\n"
    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, code, "score"),)}
    assert said(tmp_path, inputs) == [
        "error[E0914]: `reward.py:score` asks for `answer`, which the rows of `tokens` do not have",
        "  --> reward.py:2",
        "  why: they have `wanted`",
        "  fix: ask for one of `prompts`, `completions`, `completion_ids`, `wanted`",
    ]


def test_weights_that_are_no_longer_finite_stop_the_next_step(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, EVEN, "even"),)}
    what, where, *_ = said(tmp_path, inputs, learning_rate=1e38, lora=NO_DROPOUT)
    assert what == (
        "error[E0910]: the probability of a next token is NaN or infinite at step 2; "
        "training stopped, nothing was kept"
    )
    assert where.startswith("  --> tokens in rows ")


def test_prompt_that_leaves_no_room_for_a_completion(tmp_path: Path, model: Artifact) -> None:
    rows = [{"prompt_ids": [5] * 10}, {"prompt_ids": [5] * 33}]
    data = artifact(Tokens, make_prompts(tmp_path / "prompts", rows))
    inputs = {"model": model, "data": data, "rewards": (function(tmp_path, EVEN, "even"),)}
    assert said(tmp_path, inputs, max_completion_length=32) == [
        "error[E0903]: row 1 of `tokens` has 33 tokens, and 32 may follow; the model reads at most "
        "64",
        "  --> tokens in row 1",
        "  fix: set `max_length = 32` on `tokens`",
    ]


def test_fewer_prompts_than_a_step_takes(tmp_path: Path, model: Artifact) -> None:
    data = artifact(Tokens, make_prompts(tmp_path / "prompts", some_prompts(3)))
    inputs = {"model": model, "data": data, "rewards": (function(tmp_path, EVEN, "even"),)}
    assert said(tmp_path, inputs, batch_size=8, gradient_accumulation=2)[0] == (
        "error[E0907]: `tokens` has 3 prompts; one step takes 4"
    )


def test_vllm_of_another_version_is_refused(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, EVEN, "even"),)}
    assert said(tmp_path, inputs, vllm="0.0.1")[0] == (
        "error[E0917]: `vllm` = 0.0.1 is asked for, and it is not installed"
    )


def test_vllm_without_a_gpu_is_refused(
    tmp_path: Path, model: Artifact, prompts: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name and version, which is all that is looked at before."""
    import importlib

    about = tmp_path / "vllm-0.0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, EVEN, "even"),)}
    assert said(tmp_path, inputs, vllm="0.0.1")[0] == (
        "error[E0954]: `vllm` needs a GPU, and this action has none"
    )


def test_reward_models_that_cannot_judge_are_refused(
    tmp_path: Path, model: Artifact, prompts: Artifact
) -> None:
    from ftbuild_rules.training.prm import prm

    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    pairs = artifact(Tokens, make_tokens(tmp_path / "pairs", preference_rows()))
    steps = artifact(Tokens, make_tokens(tmp_path / "steps", step_rows(), form="stepwise"))
    short = {"batch_size": 2, "max_steps": 1, "learning_rate": 1e-2, "lora": {"r": 2}}
    of_other = run_rule(reward_model, {"model": other, "data": pairs}, short, tmp_path)
    of_steps = run_rule(prm, {"model": model, "data": steps}, short, tmp_path)
    given = {"model": model, "data": prompts}
    assert said(tmp_path, {**given, "reward_models": (of_other,)})[0] == (
        "error[E0916]: `reward_model` is an adapter of another model than `model`"
    )
    train(
        tmp_path,
        {**given, "reward_models": (of_other,), "reward_base": other},
        max_steps=1,
    )
    assert said(tmp_path, {**given, "reward_models": (of_steps,)})[0] == (
        "error[E0916]: `reward_model` does not score a whole text"
    )
    assert (
        said(
            tmp_path,
            {**given, "reward_models": (of_other,), "reward_base": other},
            reward_weights=[1.0, 2.0],
        )[0]
        == "error[E0915]: `reward_weights` has 2 numbers for 1 rewards"
    )
    (other.path / "tokenizer.json").write_bytes(b"{}")
    changed = Model(other.path, other.digest)
    assert said(tmp_path, {**given, "reward_models": (of_other,), "reward_base": changed})[0] == (
        "error[E0916]: `reward_model` has another tokenizer than `model`"
    )


@pytest.mark.parametrize(
    ("params", "attribute", "what"),
    [
        ({"rewards": None}, "rewards", "nothing rewards the completions"),
        (
            {"batch_size": 6},
            "num_generations",
            "`num_generations` = 4 does not divide the 6 completions of a step (`batch_size` x "
            "`gradient_accumulation`): a group would be torn",
        ),
        ({"loss": "cispo"}, "loss", "`cispo` needs `epsilon_high`, the bound of its weights"),
        (
            {"epsilon_high": 0.1},
            "epsilon_high",
            "`epsilon_high` = 0.1 is below `epsilon` = 0.2",
        ),
        (
            {"loss": "luspo"},
            "importance_sampling",
            '`luspo` is defined for `importance_sampling = "sequence"`',
        ),
        ({"reward_weights": [0.0]}, "reward_weights", "a weight in `reward_weights` is 0"),
        (
            {"lora": {"dropout": 0.1}},
            "lora",
            "`lora.dropout` has no meaning here: completions are drawn and judged by one policy",
        ),
        (
            {"lora": {"bias": "all"}, "beta": 0.1},
            "lora",
            '`lora.bias = "all"` changes weights of the base, which is the reference here',
        ),
    ],
)
def test_attributes_that_exclude_each_other(
    tmp_path: Path,
    model: Artifact,
    prompts: Artifact,
    params: dict[str, Any],
    attribute: str,
    what: str,
) -> None:
    inputs = {"model": model, "data": prompts, "rewards": (function(tmp_path, EVEN, "even"),)}
    if "rewards" in params:
        params = {k: v for k, v in params.items() if k != "rewards"}
        del inputs["rewards"]
    with pytest.raises(AttributeProblem) as caught:
        train(tmp_path, inputs, **params)
    assert (caught.value.attribute, caught.value.what) == (attribute, what)
