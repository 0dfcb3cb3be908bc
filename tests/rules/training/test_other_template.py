"""Which chat template trained rows may have: that of what is continued, or the target says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError, Tokens
from ftbuild.testing import artifact, context, run_rule
from ftbuild_rules.training.dpo import dpo
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, make_tokens, preference_rows, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()
OTHER = "{{ messages }}"
THIRD = "{{ messages }}!"


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return artifact(Model, make_model(tmp_path / "model"))


def tokens_of(directory: Path, rows: list[Any], template: str | None) -> Artifact:
    """Return tokens that were rendered by a template, by the model's own, or ("") by none."""
    made = make_tokens(directory, rows)
    if template:
        (made / "chat_template.jinja").write_text(template)
    elif template == "":
        (made / "chat_template.jinja").unlink()
    return replace(artifact(Tokens, made), label=directory.name)


def train(rule: Any, here: Path, inputs: dict[str, Artifact], **params: Any) -> Artifact:
    settings = {"batch_size": 4, "max_steps": 1, "learning_rate": 1e-2, **params}
    return run_rule(rule, inputs, settings, here, ctx=context(here))


def test_adapter_with_a_template_is_continued_with_that_one(
    model: Artifact, tmp_path: Path
) -> None:
    lora = {"r": 2, "alpha": 4}
    chats = tokens_of(tmp_path / "chats", sft_rows(), OTHER)
    adapter = train(
        sft, tmp_path / "sft", {"model": model, "data": chats}, lora=lora, other_template=True
    )
    assert (adapter.path / "chat_template.jinja").read_text() == OTHER

    pairs = tokens_of(tmp_path / "pairs", preference_rows(), OTHER)
    inputs = {"model": model, "adapter": adapter, "data": pairs}
    polite = train(dpo, tmp_path / "dpo", inputs)
    assert (polite.path / "chat_template.jinja").read_text() == OTHER

    models = tokens_of(tmp_path / "models", preference_rows(), None)
    with pytest.raises(RuleError) as caught:
        train(dpo, tmp_path / "refused", {**inputs, "data": models})
    problem = caught.value.problems[0]
    assert (problem.code, str(problem.where)) == ("E0902", "models")
    assert problem.what.startswith("`models` was rendered by another chat template than the one of")

    text = tokens_of(tmp_path / "text", sft_rows(), "")
    told = train(sft, tmp_path / "told", {**inputs, "data": text})
    assert (told.path / "chat_template.jinja").read_text() == OTHER


@pytest.mark.parametrize("allowed", [False, True])
def test_rows_for_evaluation_have_the_template_of_those_for_training(
    allowed: bool, model: Artifact, tmp_path: Path
) -> None:
    chats = tokens_of(tmp_path / "chats", sft_rows(), OTHER if allowed else None)
    rows = tokens_of(tmp_path / "held_out", sft_rows(4, seed=9), THIRD)
    inputs = {"model": model, "data": chats, "eval_data": rows}
    with pytest.raises(RuleError) as caught:
        train(sft, tmp_path, inputs, lora={"r": 2, "alpha": 4}, other_template=allowed)
    assert caught.value.problems[0].code == "E0902"
    if allowed:
        assert caught.value.render() == (
            "error[E0902]: `held_out` was rendered by another chat template than `chats`\n"
            "  --> held_out\n"
            "  why: its loss would be that of a form that was not trained\n"
            "  fix: give both `tokens` targets the same `chat_template`"
        )
