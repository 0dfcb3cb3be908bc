import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, AttributeProblem, Dataset, Model, RuleError, Tokens
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.evaluation.generate import generate
from ftbuild_rules.training.sft import sft
from tiny_models import TEMPLATE, make_model, make_tokens, sft_rows, warnings_of_libraries

pytestmark = warnings_of_libraries()


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return artifact(Model, make_model(tmp_path / "model"))


def answers(tmp_path: Path, inputs: dict[str, Artifact], **params: Any) -> list[dict[str, str]]:
    report = run_rule(generate, inputs, {"max_new_tokens": 6, **params}, tmp_path)
    found: list[dict[str, str]] = json.loads((report.path / "report.json").read_text())["answers"]
    return found


def likeliest(network: Any, tokenizer: Any, text: str, steps: int) -> str:
    """Take the likeliest token each time, over the whole sequence, without a cache."""
    import torch

    ids = tokenizer(text)["input_ids"]
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            token = int(network(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_greedy_answers_are_the_likeliest_tokens_after_the_rendered_prompt(
    tmp_path: Path, model: Artifact
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    found = answers(tmp_path, {"model": model}, prompts=["Hi 42", "shop"], system="Be kind.")
    for entry, prompt in zip(found, ["Hi 42", "shop"], strict=True):
        text = (
            "<|im_start|>system\nBe kind.<|im_end|>\n"
            f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
        expected = likeliest(network, tokenizer, text, 6)
        assert entry == {"prompt": prompt, "answer": expected}


def test_model_that_was_saved_with_sampling_still_answers_greedily(
    tmp_path: Path, model: Artifact
) -> None:
    plain = answers(tmp_path, {"model": model}, prompts=["Hi"])
    path = model.path / "generation_config.json"
    settings = json.loads(path.read_text())
    sampled = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0}
    path.write_text(json.dumps({**settings, **sampled}))
    assert answers(tmp_path, {"model": model}, prompts=["Hi"]) == plain


def test_drawn_answers_follow_the_seed_and_not_the_other_prompts(
    tmp_path: Path, model: Artifact
) -> None:
    def draw(*prompts: str, seed: int = 1) -> list[str]:
        found = answers(tmp_path, {"model": model}, prompts=prompts, seed=seed, temperature=1.0)
        return [entry["answer"] for entry in found]

    assert draw("Hi") == draw("Hi")
    assert draw("Hi") != draw("Hi", seed=2)
    assert draw("other", "Hi")[1] == draw("Hi")[0]


def test_adapter_answers_otherwise_than_its_base(tmp_path: Path, model: Artifact) -> None:
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", sft_rows()))
    params = {"learning_rate": 5e-2, "lora": {"r": 4}, "batch_size": 4}
    adapter = run_rule(sft, {"model": model, "data": tokens}, params, tmp_path)
    alone = answers(tmp_path, {"model": model}, prompts=["Hi"])
    assert answers(tmp_path, {"model": model, "adapter": adapter}, prompts=["Hi"]) != alone
    other = artifact(Model, make_model(tmp_path / "other", seed=3))
    with pytest.raises(RuleError, match="was not trained on `model`"):
        answers(tmp_path, {"model": other, "adapter": adapter}, prompts=["Hi"])


def write_dataset(directory: Path, form: str, rows: list[dict[str, Any]]) -> Artifact:
    import pyarrow as pa

    (directory / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    path = directory / "data" / "train-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (directory / "dataset.json").write_text(json.dumps({"form": form, "rows": len(rows)}))
    return artifact(Dataset, directory)


def test_rows_are_asked_without_their_last_answer(tmp_path: Path, model: Artifact) -> None:
    def message(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    turns = [message("user", "Hi"), message("assistant", "Yes?"), message("user", "Open?")]
    chats = write_dataset(
        tmp_path / "chats", "messages", [{"messages": [*turns, message("assistant", "No.")]}]
    )
    pairs = write_dataset(
        tmp_path / "pairs",
        "preference",
        [{"prompt": turns, "chosen": [turns[1]], "rejected": [turns[1]]}],
    )
    from_chats = answers(tmp_path, {"model": model, "data": chats}, prompts=["Open?"])
    from_pairs = answers(tmp_path, {"model": model, "data": pairs})
    assert [entry["prompt"] for entry in from_chats] == ["Open?", "Open?"]
    assert from_chats[1:] == from_pairs
    assert from_chats[0] != from_chats[1]  # it did not see the turns before


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "has nothing to ask"),
        ({"messages": [{"role": "user", "content": "Hi"}], "tools": '[{"a": 1}]'}, "uses tools"),
        (
            {"messages": [{"role": "user", "content": "Hi", "tool_calls": "[1]"}]},
            "uses tools",
        ),
    ],
)
def test_row_that_cannot_be_asked_is_refused(
    tmp_path: Path, model: Artifact, row: dict[str, Any], said: str
) -> None:
    data = write_dataset(tmp_path / "rows", "messages", [row])
    with pytest.raises(RuleError, match=f"row 0 of `dataset` {said}") as caught:
        answers(tmp_path, {"model": model, "data": data})
    assert caught.value.problems[0].code == "E0942"


def test_report_is_also_a_text(tmp_path: Path, model: Artifact) -> None:
    report = run_rule(
        generate, {"model": model}, {"prompts": ["Hi"], "max_new_tokens": 4}, tmp_path
    )
    answer = json.loads((report.path / "report.json").read_text())["answers"][0]["answer"]
    quoted = "\n".join(f"> {line}".rstrip() for line in answer.split("\n"))
    assert (report.path / "report.md").read_text() == f"# Answers\n\n**Hi**\n\n{quoted}\n"


def test_template_of_the_adapter_is_used(tmp_path: Path, model: Artifact) -> None:
    tokens = artifact(Tokens, make_tokens(tmp_path / "tokens", sft_rows()))
    params = {"learning_rate": 1e-3, "lora": {"r": 4}, "max_steps": 1}
    adapter = run_rule(sft, {"model": model, "data": tokens}, params, tmp_path)
    inputs = {"model": model, "adapter": adapter}
    own = answers(tmp_path, inputs, prompts=["Hi"])
    (adapter.path / "chat_template.jinja").write_text(TEMPLATE.replace("user", "x") + " ?")
    assert answers(tmp_path, inputs, prompts=["Hi"]) != own


def test_what_cannot_be_asked_is_refused(tmp_path: Path, model: Artifact) -> None:
    with pytest.raises(AttributeProblem, match="there is nothing to ask"):
        answers(tmp_path, {"model": model})
    with pytest.raises(RuleError) as caught:
        answers(tmp_path, {"model": model}, prompts=["\x01" * 60])
    assert caught.value.problems[0].code == "E0941"
    assert str(caught.value).endswith("the model reads at most 64")
