"""Tokens added to a base model: their ids, their rows, and what is made with them downstream."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import make_dataset, read_tokens
from ftbuild.api import Artifact, Model, RuleError
from ftbuild.testing import context, run_rule, source
from ftbuild_rules.models.base_model import base_model
from ftbuild_rules.models.merge import merge
from ftbuild_rules.tokens.tokens import tokens
from ftbuild_rules.training.sft import sft
from tiny_models import make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"kind": "llama", "tie_word_embeddings": True},
    "qwen2": {},
    "phi": {},
    "gemma": {"head_dim": 8},
    "gptj": GPTJ,
    "gpt2": GPT2,
    "gpt_neox": {},
}
ADDED = {"add_tokens": ["<plan>"], "add_special_tokens": ["<|stop|>", "<|pad|>"]}


def bring_in(directory: Path, tmp_path: Path, **params: Any) -> Model:
    made = run_rule(base_model, {"source": source(directory)}, params, tmp_path)
    assert isinstance(made, Model)
    return made


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).eval()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_new_rows_are_the_mean_of_the_others_and_no_logit_moves(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    settings = {"kind": name, **FAMILIES[name]}
    plain = make_model(tmp_path / "model", **settings)
    made = bring_in(plain, tmp_path, **ADDED, pad_token="<|pad|>")
    before, after = load(plain), load(made.path)
    size = before.config.vocab_size
    assert after.config.vocab_size == size + 3
    assert after.config.pad_token_id == size + 2

    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert len(tokenizer) == size + 3
    assert tokenizer.pad_token == "<|pad|>"
    ids = tokenizer.encode("a <plan>b<|stop|>", add_special_tokens=False)
    assert (ids.count(size), ids.count(size + 1)) == (1, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a <plan>b"

    for old, new in (
        (before.get_input_embeddings(), after.get_input_embeddings()),
        (before.get_output_embeddings(), after.get_output_embeddings()),
    ):
        assert new.weight.shape == (size + 3, old.weight.shape[1])
        assert torch.equal(new.weight[:size], old.weight)
        mean = old.weight.double().mean(0).float()
        assert all(torch.equal(row, mean) for row in new.weight[size:])
    given = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(
            after(given).logits[..., :size], before(given).logits, rtol=0, atol=1e-5
        )


def test_spare_rows_are_used_first(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    plain = make_model(tmp_path / "model")
    network = load(plain)
    size = len(AutoTokenizer.from_pretrained(plain))
    network.resize_token_embeddings(size + 2, mean_resizing=False)
    network.save_pretrained(plain)
    made = bring_in(plain, tmp_path / "two", add_tokens=["<a>", "<b>"])
    after = load(made.path)
    assert after.config.vocab_size == size + 2
    old = network.get_input_embeddings().weight
    new = after.get_input_embeddings().weight
    assert torch.equal(new[:size], old[:size])
    assert torch.equal(new[size], old[:size].double().mean(0).float())
    made = bring_in(plain, tmp_path / "three", add_tokens=["<a>", "<b>", "<c>"])
    assert load(made.path).config.vocab_size == size + 3


def test_sharded_weights_keep_a_true_index(tmp_path: Path) -> None:
    plain = make_model(tmp_path / "model", max_shard_size="40KB")
    made = bring_in(plain, tmp_path, **ADDED)
    index = json.loads((made.path / "model.safetensors.index.json").read_bytes())
    network = load(made.path)
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in network.parameters())
    assert json.loads((plain / "model.safetensors.index.json").read_bytes()) != index
    # The source's own files are as they were.
    assert load(plain).config.vocab_size == network.config.vocab_size - 3


def test_same_additions_give_the_same_bytes(tmp_path: Path) -> None:
    plain = make_model(tmp_path / "model", dtype="bfloat16")
    one, other = (bring_in(plain, tmp_path / name, **ADDED) for name in "ab")
    assert one.digest == other.digest
    assert bring_in(plain, tmp_path / "c", add_tokens=["<other>"]).digest != one.digest


def test_pad_token_alone_changes_no_weight(tmp_path: Path) -> None:
    plain = make_model(tmp_path / "model")
    made = bring_in(plain, tmp_path, pad_token="<|im_end|>")
    weights = (made.path / "model.safetensors").read_bytes()
    assert weights == (plain / "model.safetensors").read_bytes()
    assert json.loads((made.path / "config.json").read_bytes())["pad_token_id"] == 2
    assert json.loads((made.path / "generation_config.json").read_bytes())["pad_token_id"] == 2
    settings = json.loads((made.path / "tokenizer_config.json").read_bytes())
    assert settings["pad_token"] == "<|im_end|>"


def test_added_tokens_reach_the_merged_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|stop|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    plain = make_model(tmp_path / "model")
    model = bring_in(plain, tmp_path / "base", **ADDED, chat_template=template)
    size = load(plain).config.vocab_size
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "<plan>Go"},
            ]
        }
    ] * 4
    data = run_rule(
        tokens,
        {"dataset": make_dataset(tmp_path / "rows", rows), "model": model},
        {"max_length": 64},
        tmp_path / "tokens",
    )
    labels = [label for label in read_tokens(data)[0]["labels"] if label != -100]
    assert (labels[0], labels[-1]) == (size, size + 1)  # <plan> is said, <|stop|> ends the turn

    lora = {"r": 2, "alpha": 4, "modules_to_save": ["embed_tokens", "lm_head"]}
    params = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "lora": lora}
    inputs: dict[str, Artifact] = {"model": model, "data": data}
    adapter = run_rule(sft, inputs, params, tmp_path / "sft", ctx=context(tmp_path / "sft"))
    merged = run_rule(merge, {"model": model, "adapter": adapter}, {}, tmp_path / "merge")
    network = load(merged.path)
    assert len(AutoTokenizer.from_pretrained(merged.path)) == network.config.vocab_size == size + 3
    first = load(model.path).get_output_embeddings().weight[size]
    assert not torch.equal(network.get_output_embeddings().weight[size], first)
    assert (merged.path / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"add_tokens": ["<|im_end|>"]},
            "the tokenizer has the token `<|im_end|>` already\n"
            "  fix: remove it from `add_tokens` or `add_special_tokens`",
        ),
        (
            {"add_tokens": ["<a>"], "add_special_tokens": ["<a>"]},
            "the tokenizer has the token `<a>` already\n"
            "  fix: remove it from `add_tokens` or `add_special_tokens`",
        ),
        (
            {"pad_token": "<|pad|>"},
            "the tokenizer has no token `<|pad|>` to pad with\n"
            '  fix: add it: `add_special_tokens = ["<|pad|>"]`',
        ),
    ],
)
def test_what_cannot_be_added(params: dict[str, Any], expected: str, tmp_path: Path) -> None:
    plain = make_model(tmp_path / "model")
    with pytest.raises(RuleError) as caught:
        bring_in(plain, tmp_path, **params)
    assert caught.value.render() == f"error[E0929]: {expected}"


def test_model_whose_embedding_is_not_known(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    plain = make_model(tmp_path / "model")
    weights = load_file(plain / "model.safetensors")
    weights["model.words.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuleError, match="input embedding is not found"):
        bring_in(plain, tmp_path, add_tokens=["<a>"])


def test_other_rules_say_whose_attribute_it_is(tmp_path: Path) -> None:
    from ftbuild import FtbuildError, Project

    (tmp_path / "FTBUILD.toml").write_text(
        '[project]\nname = "p"\n\n[base_model.smol]\nsource = "model"\n\n'
        '[dataset.rows]\nsource = "rows.jsonl"\nformat = "text"\n\n'
        '[tokens.ids]\ndataset = "rows"\nmodel = "smol"\nadd_tokens = ["<a>"]\n\n'
        '[sft.helper]\nmodel = "smol"\ndata = "ids"\npad_token = "<a>"\n'
    )
    with Project.open(tmp_path) as project, pytest.raises(FtbuildError) as caught:
        project.plan()
    text = caught.value.render()
    assert (
        "error[E0204]: rule `tokens` has no attribute `add_tokens`\n"
        "  --> FTBUILD.toml:14:1 in [tokens.ids]\n"
        '  14 | add_tokens = ["<a>"]\n'
        "     | ^^^^^^^^^^\n"
        "  fix: it is the model's: write `add_tokens` in the table of the `base_model` target\n"
    ) in text
    assert "fix: it is the model's: write `pad_token` in the table of the `base_model`" in text
