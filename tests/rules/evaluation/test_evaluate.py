"""`evaluate`: figures beside plain PyTorch, and gates that fail."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import (
    Adapter,
    Artifact,
    AttributeProblem,
    Dataset,
    Function,
    Model,
    RewardModel,
    RuleError,
    Tokens,
)
from ftbuild.testing import artifact, run_rule, source
from ftbuild_rules.data.dataset import dataset
from ftbuild_rules.evaluation.evaluate import EvaluateParams, check, evaluate
from ftbuild_rules.training.reward_model import reward_model
from ftbuild_rules.training.sft import sft
from tiny_models import (
    make_model,
    make_tokens,
    packed_rows,
    preference_rows,
    sft_rows,
    warnings_of_libraries,
)

pytestmark = warnings_of_libraries()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model")))


def report(tmp_path: Path, inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
    made = run_rule(evaluate, inputs, {"max_new_tokens": 4, **params}, tmp_path)
    found: dict[str, Any] = json.loads((made.path / "report.json").read_text())
    return found


def tokens(folder: Path, rows: Any) -> Artifact:
    return artifact(Tokens, make_tokens(folder, rows))


def questions(tmp_path: Path, *answers: str) -> Artifact:
    path = tmp_path / "quiz.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": a}]}
        for n, a in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_rule(dataset, {"source": source(path)}, {"format": "openai"}, tmp_path)


def test_loss_is_the_mean_over_all_trained_tokens(tmp_path: Path, model: Artifact) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.path).eval()
    losses = []
    for row in sft_rows():
        with torch.no_grad():
            logits = network(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses += each[labels != -100].tolist()
    expected = sum(losses) / len(losses)
    apart = report(tmp_path, {"model": model, "data": tokens(tmp_path / "a", sft_rows())})
    assert apart["figures"]["loss"] == pytest.approx(expected, abs=1e-6)
    assert apart["figures"]["perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)
    assert apart["figures"]["tokens"] == len(losses)


def test_packed_documents_are_measured_apart(tmp_path: Path, model: Artifact) -> None:
    documents = [{**row, "labels": [-100, *row["labels"][1:]]} for row in sft_rows()]
    apart = report(tmp_path, {"model": model, "data": tokens(tmp_path / "a", documents)})
    packed = report(
        tmp_path, {"model": model, "data": tokens(tmp_path / "p", packed_rows(documents))}
    )
    assert packed["figures"] == apart["figures"]


def test_adapter_is_measured_with_its_base_and_no_other(tmp_path: Path, model: Artifact) -> None:
    data = tokens(tmp_path / "a", sft_rows())
    params = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "lora": {"r": 4, "alpha": 8}}
    adapter = run_rule(sft, {"model": model, "data": data}, params, tmp_path)
    assert isinstance(adapter, Adapter)
    before = report(tmp_path, {"model": model, "data": data})["figures"]["loss"]
    after = report(tmp_path, {"model": model, "data": data, "adapter": adapter})["figures"]["loss"]
    assert after < before
    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    with pytest.raises(RuleError, match="was not trained on") as caught:
        report(tmp_path, {"model": other, "data": data, "adapter": adapter})
    assert caught.value.problems[0].code == "E0906"


def test_preferences_are_compared_by_whole_completions(tmp_path: Path, model: Artifact) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.path).eval()

    def logp(prompt: list[int], completion: list[int]) -> float:
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            found = network(ids).logits.log_softmax(-1)[0]
        return sum(float(found[len(prompt) + n - 1, t]) for n, t in enumerate(completion))

    margins = [
        logp(r["prompt_ids"], r["chosen_ids"]) - logp(r["prompt_ids"], r["rejected_ids"])
        for r in preference_rows()
    ]
    pairs = tokens(tmp_path / "p", preference_rows())
    found = report(tmp_path, {"model": model, "data": pairs})["figures"]
    assert found["preference_accuracy"] == sum(m > 0 for m in margins) / 8
    assert found["preference_margin"] == pytest.approx(sum(margins) / 8, abs=1e-4)


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_rewards_of_pairs_and_of_answers(
    tmp_path: Path, model: Artifact, lora: dict[str, Any] | None
) -> None:
    pairs = tokens(tmp_path / "p", preference_rows())
    params = {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2, "lora": lora}
    judge = run_rule(reward_model, {"model": model, "data": pairs}, params, tmp_path)
    assert isinstance(judge, RewardModel)
    inputs = {"model": model, "data": pairs, "reward_model": judge}
    found = report(tmp_path, {**inputs, "questions": questions(tmp_path, "yes")})
    figures = found["figures"]
    assert figures["reward_accuracy"] == 1.0
    assert figures["reward_margin"] == pytest.approx(
        figures["reward_chosen"] - figures["reward_rejected"]
    )
    assert figures["reward"] == found["answers"][0]["figures"]["reward"]


def test_exact_match_is_the_share_of_right_answers(tmp_path: Path, model: Artifact) -> None:
    quiz = questions(tmp_path, "no", "no", "no")
    said = [a["answer"] for a in report(tmp_path, {"model": model, "questions": quiz})["answers"]]
    quiz = questions(tmp_path, f" {said[0]}\n" if said[0].strip() else "x", "no", said[2] or "y")
    found = report(tmp_path, {"model": model, "questions": quiz})
    assert found["figures"]["exact_match"] == pytest.approx(2 / 3)
    assert found["figures"]["answers"] == 3


def scorer(tmp_path: Path, code: str) -> Function:
    path = tmp_path / "score.py"
    path.write_text(code)
    return Function(path, "score", "score.py:score")


def test_function_of_the_user_scores_answers(tmp_path: Path, model: Artifact) -> None:
    code = "def score(answer, row):\n    return {'ok': row['messages'][0]['content'] == 'Q1'}\n"
    inputs = {
        "model": model,
        "questions": questions(tmp_path, "a", "b"),
        "scorer": scorer(tmp_path, code),
    }
    assert report(tmp_path, inputs)["figures"]["ok"] == 0.5
    inputs["scorer"] = scorer(tmp_path, "def score(answer, row):\n    return 'good'\n")
    with pytest.raises(RuleError) as caught:
        report(tmp_path, inputs)
    assert caught.value.render() == (
        "error[E0947]: `score.py:score` returns 'good' for row 0\n"
        "  --> score.py\n"
        "  fix: return a number, a bool, or a dict of them"
    )


def test_gate_fails_with_all_figures(tmp_path: Path, model: Artifact) -> None:
    data = tokens(tmp_path / "a", sft_rows())
    loss = report(tmp_path, {"model": model, "data": data})["figures"]["loss"]
    found = report(tmp_path, {"model": model, "data": data}, gates={"loss": f"< {loss + 1}"})
    assert found["gates"] == {"loss": f"< {loss + 1}"}
    with pytest.raises(RuleError) as caught:
        report(tmp_path, {"model": model, "data": data}, gates={"loss": "< 1", "tokens": ">= 3"})
    figures = found["figures"]
    assert caught.value.render() == (
        f"error[E0943]: the model does not pass: loss is {loss:.6g}, wanted < 1\n"
        f"  why: measured: loss {loss:.6g}, perplexity {figures['perplexity']:.6g}, "
        f"tokens {figures['tokens']}\n"
        "  fix: train another model, or change `gates`; `ftbuild log` has all figures"
    )


@pytest.fixture(scope="module")
def measured(
    model: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], float]]:
    """Return, for a figure of each sort, what it is measured by and what it is."""
    folder = tmp_path_factory.mktemp("measured")
    pairs = tokens(folder / "p", preference_rows(4))
    params = {"batch_size": 4, "lora": {"r": 4, "alpha": 8}}
    judge = run_rule(reward_model, {"model": model, "data": pairs}, params, folder)
    rows, quiz = tokens(folder / "a", sft_rows(4)), questions(folder, "a", "b")
    code = "def score(answer, row):\n    return {'polite': 0.25}\n"
    sets: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"data": rows}, ("loss", "perplexity")),
        (
            {"data": pairs, "reward_model": judge},
            ("preference_accuracy", "reward_accuracy", "reward_margin"),
        ),
        ({"questions": quiz, "reward_model": judge}, ("reward", "exact_match")),
        ({"questions": quiz, "scorer": scorer(folder, code)}, ("polite",)),
    ]
    found = {}
    for inputs, names in sets:
        figures = report(folder, {"model": model, **inputs})["figures"]
        found |= {name: (inputs, figures[name]) for name in names}
    return found


@pytest.mark.parametrize(
    "figure",
    [
        "loss",
        "perplexity",
        "preference_accuracy",
        "reward_accuracy",
        "reward_margin",
        "reward",
        "exact_match",
        "polite",
    ],
)
def test_a_gate_on_each_figure_lets_pass_what_is_as_it_says_and_nothing_else(
    tmp_path: Path,
    model: Artifact,
    measured: dict[str, tuple[dict[str, Any], float]],
    figure: str,
) -> None:
    inputs, value = measured[figure]
    given = {"model": model, **inputs}
    gates = {figure: f">= {value!r}"}
    assert report(tmp_path, given, gates=gates)["figures"][figure] == value
    with pytest.raises(RuleError) as caught:
        report(tmp_path, given, gates={figure: f"> {value!r}"})
    problem = caught.value.problems[0]
    assert problem.code == "E0943"
    assert problem.what == f"the model does not pass: {figure} is {value:.6g}, wanted > {value!r}"


def test_a_metric_that_is_mistyped_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(AttributeProblem) as caught:
        check({"data": ("tokens",)}, EvaluateParams(gates={"perplexitiy": "< 12"}))
    assert caught.value.attribute == "gates"
    assert caught.value.what == "`perplexitiy` is not measured by this target"
    assert caught.value.fix.startswith("measured are `loss`, `perplexity`, ")


@pytest.mark.parametrize(
    ("inputs", "gates", "said"),
    [
        ({}, {}, "there is nothing to measure"),
        ({"data": 1}, {"loss": "about 3"}, "`loss` has the gate 'about 3'"),
        ({"data": 1}, {"exact_match": "> 0"}, "`exact_match` is not measured by this target"),
        ({"data": 1, "scorer": 0}, {}, "has nothing to score"),
    ],
)
def test_gates_are_checked_before_anything_runs(
    inputs: dict[str, int], gates: dict[str, str], said: str
) -> None:
    with pytest.raises(AttributeProblem) as caught:
        check({name: ("x",) * n for name, n in inputs.items()}, EvaluateParams(gates=gates))
    assert caught.value.what == said
    assert caught.value.fix


def test_gate_on_what_a_function_does_not_give_is_refused(tmp_path: Path, model: Artifact) -> None:
    code = "def score(answer, row):\n    return 1\n"
    inputs = {
        "model": model,
        "questions": questions(tmp_path, "a"),
        "scorer": scorer(tmp_path, code),
    }
    with pytest.raises(RuleError) as caught:
        report(tmp_path, inputs, gates={"politeness": "> 0"})
    assert caught.value.render() == (
        "error[E0944]: `gates` names `politeness`, which was not measured\n"
        "  fix: measured are `answers`, `score`"
    )


def test_question_without_an_answer_is_refused(tmp_path: Path, model: Artifact) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "How much is 2 + 2?", "answer": "4"}\n{"prompt": "And 3?"}\n')
    made = run_rule(dataset, {"source": source(path)}, {"format": "prompts"}, tmp_path)
    assert isinstance(made, Dataset)
    with pytest.raises(RuleError, match="row 1 of `questions` has no right answer") as caught:
        report(tmp_path, {"model": model, "questions": made})
    assert caught.value.problems[0].code == "E0942"
