"""Trainings that are refused at the start of the action: exact words, before a model is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.grpo import grpo
from ftbuild_rules.training.kto import kto
from ftbuild_rules.training.orpo import orpo
from ftbuild_rules.training.pretrain import pretrain
from ftbuild_rules.training.prm import prm
from ftbuild_rules.training.reference_logprobs import reference_logprobs
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

pytestmark = warnings_of_libraries()
LONG = [{"input_ids": [5] * 65, "labels": [5] * 65}]
UNTRAINED = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}]
STRANGE = [{"input_ids": [5, 6, 320], "labels": [5, 6, 320]}]
LIKED = [{"prompt_ids": [5], "completion_ids": [6], "label": True}] * 2
Given = Mapping[str, Artifact]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Return artifacts by name: what any of the cases reads."""
    folder = tmp_path_factory.mktemp("given")
    short = {"batch_size": 2, "max_steps": 1, "learning_rate": 1e-2}
    made: dict[str, Any] = {
        "model": artifact(Model, make_model(folder / "model")),
        "other": artifact(Model, make_model(folder / "other", seed=1)),
    }
    rows: dict[str, list[dict[str, Any]]] = {
        "chats": sft_rows(4),
        "pairs": preference_rows(4),
        "long": LONG,
        "untrained": UNTRAINED,
        "strange": STRANGE,
        "packed": packed_rows(sft_rows(6)),
        "torn": [{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "seq_lengths": [2]}],
    }
    for name, some in rows.items():
        made[name] = artifact(Tokens, make_tokens(folder / name, some))
    three = [{"input_ids": [5, 8], "labels": [-100, 3]}]
    made["three"] = artifact(Tokens, make_tokens(folder / "three", three, form="stepwise"))
    made["steps"] = artifact(Tokens, make_tokens(folder / "steps", step_rows(4), form="stepwise"))
    made["liked"] = artifact(Tokens, make_tokens(folder / "liked", LIKED, form="unpaired"))
    made["prompts"] = artifact(Tokens, make_prompts(folder / "prompts", some_prompts(4)))
    foreign = make_tokens(folder / "foreign", sft_rows(4))
    (foreign / "chat_template.jinja").write_text("{{ messages }}")
    made["foreign"] = artifact(Tokens, foreign)
    made["even"] = (function(folder / "code", EVEN, "even"),)
    lora = {**short, "lora": {"r": 2}}
    model, pairs = made["model"], made["pairs"]
    for name, base in (("adapter", model), ("others_adapter", made["other"])):
        made[name] = run_rule(sft, {"model": base, "data": made["chats"]}, lora, folder)
    made["whole_judge"] = run_rule(reward_model, {"model": model, "data": pairs}, short, folder)
    steps = {"model": model, "data": made["steps"]}
    made["step_judge"] = run_rule(prm, steps, lora, folder)
    for name, base in (("reference", model), ("others_reference", made["other"])):
        made[name] = run_rule(reference_logprobs, {"model": base, "data": pairs}, {}, folder)
    return made


def case(
    rule: Callable[..., Any], inputs: str, message: str, **params: Any
) -> tuple[Callable[..., Any], dict[str, str], dict[str, Any], str]:
    """Return a case whose inputs are written as `field=name field=name`; `model` is `model`."""
    fields = dict(pair.split("=") for pair in inputs.split())
    return rule, {"model": "model", **fields}, params, message


CASES = {
    "adapter of another base": case(
        sft,
        "data=chats adapter=others_adapter",
        "error[E0906]: the adapter `others_adapter` was not trained on `model`",
    ),
    "adapter of another base for dpo": case(
        dpo,
        "data=pairs adapter=others_adapter",
        "error[E0906]: the adapter `others_adapter` was not trained on `model`",
    ),
    "pairs for sft": case(
        sft,
        "data=pairs",
        "error[E0901]: `sft` needs tokens of the form `sft`; `pairs` has the form `preference`",
    ),
    "conversations for dpo": case(
        dpo,
        "data=chats",
        "error[E0901]: `dpo` needs tokens of the form `preference`; `chats` has the form `sft`",
    ),
    "conversations for grpo": case(
        grpo,
        "data=chats rewards=even",
        "error[E0901]: `grpo` needs tokens of the form `prompts`; `chats` has the form `sft`",
    ),
    "conversations for prm": case(
        prm,
        "data=chats",
        "error[E0901]: `prm` needs tokens of the form `stepwise`; `chats` has the form `sft`",
    ),
    "steps for orpo": case(
        orpo,
        "data=steps",
        "error[E0901]: `orpo` needs tokens of the form `preference`; `steps` has the form "
        "`stepwise`",
    ),
    "evaluation on another form": case(
        sft,
        "data=chats eval_data=pairs",
        "error[E0901]: `sft` needs tokens of the form `sft`; `pairs` has the form `preference`",
    ),
    "another chat template": case(
        sft,
        "data=foreign",
        "error[E0902]: `foreign` was rendered by another chat template than the one of `model`",
    ),
    "rows beyond the context": case(
        sft,
        "data=long",
        "error[E0903]: row 0 of `long` has 65 tokens; the model reads at most 64",
    ),
    "rows beyond the context of a smaller one": case(
        pretrain,
        "data=chats",
        "error[E0903]: row 0 of `chats` has 14 tokens; the model reads at most 8",
        config={"max_position_embeddings": 8},
    ),
    "no room for a completion": case(
        grpo,
        "data=prompts rewards=even",
        "error[E0903]: row 0 of `prompts` has 4 tokens, and 62 may follow; the model reads at "
        "most 64",
        max_completion_length=62,
    ),
    "ids of a larger vocabulary": case(
        sft,
        "data=strange",
        "error[E0904]: row 0 of `strange` has the id 320 in `input_ids`; the model's vocabulary "
        "has 314",
    ),
    "documents that do not fill their row": case(
        sft,
        "data=torn",
        "error[E0904]: the `seq_lengths` of row 0 of `torn` add up to 2; the row has 3 tokens",
    ),
    "a step that is neither right nor wrong": case(
        prm,
        "data=three",
        "error[E0904]: row 0 of `three` has the label 3; a step is 1 (right) or 0 (wrong), and "
        "-100 stands everywhere else",
    ),
    "nothing to train on": case(
        sft,
        "data=untrained",
        "error[E0905]: 1 of 1 rows of `untrained` have no label other than -100",
    ),
    "votes of one sort": case(
        kto,
        "data=liked",
        "error[E0905]: all 2 completions of `liked` are wished for",
        batch_size=2,
    ),
    "a whole judge continued": case(
        reward_model,
        "data=pairs adapter=whole_judge",
        "error[E0908]: `whole_judge` is no adapter that `reward_model` made",
    ),
    "a judge of steps continued as one of texts": case(
        reward_model,
        "data=pairs adapter=step_judge",
        "error[E0908]: `step_judge` is no adapter that `reward_model` made",
    ),
    "a reference of another model": case(
        dpo,
        "data=pairs reference=others_reference",
        "error[E0909]: `others_reference` was computed with another model: its numbers have no "
        "meaning here",
    ),
    "a reference without the adapter": case(
        dpo,
        "data=pairs adapter=adapter reference=reference",
        "error[E0909]: `reference` was computed with another adapter: its numbers have no meaning "
        "here",
    ),
    "a reference in another type": case(
        dpo,
        "data=pairs reference=reference",
        "error[E0909]: `reference` was computed in float32, and this trains in bfloat16",
        dtype="bfloat16",
    ),
    "a reference without the pairs of kto": case(
        kto,
        "data=pairs reference=reference",
        "error[E0909]: `reference` lacks the mismatched completions that `kto` compares in this "
        "order",
        batch_size=2,
    ),
    "a setting that the architecture has not": case(
        pretrain,
        "data=chats",
        "error[E0912]: `config`: `llama` has no setting `hidden_sise`",
        config={"hidden_sise": 32},
    ),
    "a judge of steps as a reward": case(
        grpo,
        "data=prompts reward_models=step_judge",
        "error[E0916]: `step_judge` does not score a whole text",
        max_completion_length=8,
    ),
    "weights of rewards that are not there": case(
        grpo,
        "data=prompts rewards=even",
        "error[E0915]: `reward_weights` has 2 numbers for 1 rewards",
        max_completion_length=8,
        reward_weights=[1.0, 2.0],
    ),
    "a library that is not installed": case(
        grpo,
        "data=prompts rewards=even",
        "error[E0917]: `vllm` = 0.14.0 is asked for, and it is not installed",
        max_completion_length=8,
        vllm="0.14.0",
    ),
    "a layer that the model has not": case(
        sft,
        "data=chats",
        "error[E0950]: `q_prj` in `lora.target_modules` is no layer of `model`",
        lora={"target_modules": ["q_prj"]},
    ),
}


def named(inputs: Mapping[str, str], given: Given) -> dict[str, Any]:
    """Return the artifacts of a case, each labelled by its name."""
    found: dict[str, Any] = {}
    for field, name in inputs.items():
        each = given[name]
        if isinstance(each, Artifact):
            each = type(each)(each.path, each.digest, name)
        found[field] = (each,) if field == "reward_models" else each
    return found


@pytest.mark.parametrize("name", CASES)
def test_training_is_refused_before_a_model_is_loaded(
    tmp_path: Path, given: Given, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from transformers import PreTrainedModel

    rule, inputs, params, message = CASES[name]
    loaded: list[str] = []
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda path, **_: loaded.append(path))
    with pytest.raises(RuleError) as caught:
        run_rule(rule, named(inputs, given), params, tmp_path)
    assert caught.value.render().splitlines()[0] == message
    assert caught.value.problems[0].fix
    assert loaded == []
