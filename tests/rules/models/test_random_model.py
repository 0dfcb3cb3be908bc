"""`base_model` with `from_config`: random weights and a tokenizer of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import AttributeProblem, Dataset, Model, RuleError
from ftbuild.testing import run_rule, source
from ftbuild_rules.data.dataset import dataset
from ftbuild_rules.models.base_model import base_model
from tiny_models import warnings_of_libraries

pytestmark = warnings_of_libraries()
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def texts(tmp_path: Path) -> Dataset:
    rows = [{"text": f"The shop sold {n} books, and it's {n % 24} o'clock."} for n in range(200)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"source": source(tmp_path / "texts.jsonl")}
    made = run_rule(dataset, given, {"format": "text"}, tmp_path)
    assert isinstance(made, Dataset)
    return made


def made_from(texts: Dataset, tmp_path: Path, settings: Any, **params: Any) -> Model:
    given = {"from_config": settings, "vocab_size": 320, **params}
    made = run_rule(base_model, {"tokenizer_data": texts}, given, tmp_path)
    assert isinstance(made, Model)
    return made


def test_it_loads_answers_and_is_the_same_again(tmp_path: Path, texts: Dataset) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = made_from(texts, tmp_path, TINY)
    tokenizer = AutoTokenizer.from_pretrained(first.path)
    model = AutoModelForCausalLM.from_pretrained(first.path)
    ids = tokenizer("It's 12 o'clock in the shop.")["input_ids"]
    assert tokenizer.decode(ids) == "It's 12 o'clock in the shop."
    assert len(tokenizer) == 285 == model.config.vocab_size
    assert tokenizer("12")["input_ids"] == tokenizer.convert_tokens_to_ids(["1", "2"])
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    chat = [{"role": "user", "content": "Open?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>user\nOpen?<|im_end|>\n"
    )
    logits = model(input_ids=torch.tensor([ids])).logits
    assert logits.isfinite().all()
    assert made_from(texts, tmp_path, TINY).digest == first.digest
    assert made_from(texts, tmp_path, TINY, seed=7).digest != first.digest


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"hidden_size": 32}, "`from_config` does not say the architecture"),
        ({"model_type": "lama"}, "Transformers knows no `model_type = 'lama'`"),
        ({**TINY, "hidden": 3}, "`from_config.hidden` is no setting of `llama`"),
        ({**TINY, "vocab_size": 100}, "`from_config.vocab_size` is 100; the tokenizer has 285 ids"),
        ({**TINY, "num_attention_heads": 5}, "`llama` cannot have these settings"),
        ({"model_type": "clip"}, "the model cannot be made with these settings"),
    ],
)
def test_settings_that_make_no_model_are_refused(
    tmp_path: Path, texts: Dataset, settings: Any, what: str
) -> None:
    with pytest.raises(RuleError) as caught:
        made_from(texts, tmp_path, settings)
    assert caught.value.problems[0].code == "E0912"
    assert str(caught.value) == what


@pytest.mark.parametrize(
    ("inputs", "params", "what"),
    [
        ([], {}, "a base model is made from `source` or from `from_config`, one of the two"),
        (["source"], {"from_config": TINY}, "a base model is made from `source` or from"),
        ([], {"from_config": TINY}, "`from_config` needs rows to train a tokenizer on"),
        (["source"], {"vocab_size": 400}, "`vocab_size` belongs to `from_config`"),
        (["source", "tokenizer_data"], {}, "`tokenizer_data` belongs to `from_config`"),
    ],
)
def test_attributes_that_exclude_each_other_are_refused(
    tmp_path: Path, texts: Dataset, inputs: list[str], params: Any, what: str
) -> None:
    given = {"source": source(tmp_path), "tokenizer_data": texts}
    with pytest.raises(AttributeProblem, match=what):
        run_rule(base_model, {name: given[name] for name in inputs}, params, tmp_path)
