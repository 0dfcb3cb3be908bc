"""`harness`: a task of lm-evaluation-harness with local data, beside the likelihoods themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, Model, RuleError
from ftbuild.testing import artifact, run_rule, source
from ftbuild_rules.evaluation.harness import harness
from tiny_models import make_model, warnings_of_libraries

pytest.importorskip("lm_eval")
pytestmark = [*warnings_of_libraries(), pytest.mark.filterwarnings("ignore")]
ROWS = [("We sold 1234", " books", " cats"), ("I don't", " know", " ask"), ("Open at", " 9", " 18")]
TASK = """
task: shop
dataset_path: json
dataset_kwargs: {data_files: {test: shop.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "shop.yaml").write_text(TASK)
    rows = [{"text": t, "choices": [a, b], "right": 0} for t, a, b in ROWS]
    (folder / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def logp(network: Any, tokenizer: Any, text: str, continuation: str) -> float:
    import torch

    prompt = tokenizer(text)["input_ids"]
    whole = tokenizer(text + continuation)["input_ids"]
    with torch.no_grad():
        found = network(torch.tensor([whole])).logits.log_softmax(-1)[0]
    return sum(float(found[n - 1, whole[n]]) for n in range(len(prompt), len(whole)))


def test_accuracy_is_the_share_of_likelier_right_choices(tmp_path: Path, tasks: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Artifact = artifact(Model, make_model(tmp_path / "model"))
    network = AutoModelForCausalLM.from_pretrained(model.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    right = [logp(network, tokenizer, t, a) > logp(network, tokenizer, t, b) for t, a, b in ROWS]
    inputs = {"model": model, "source": source(tasks)}
    made = run_rule(harness, inputs, {"tasks": ["shop"]}, tmp_path)
    report = json.loads((made.path / "report.json").read_text())
    assert report["figures"] == {"shop/acc": pytest.approx(sum(right) / 3)}
    again = run_rule(harness, inputs, {"tasks": ["shop"]}, tmp_path)
    assert again.digest == made.digest
    with pytest.raises(RuleError, match=r"shop/acc is .* wanted > 1") as caught:
        run_rule(harness, inputs, {"tasks": ["shop"], "gates": {"shop/acc": "> 1"}}, tmp_path)
    assert caught.value.problems[0].code == "E0943"
    with pytest.raises(RuleError, match="there is no task `exam`"):
        run_rule(harness, inputs, {"tasks": ["exam"]}, tmp_path)
