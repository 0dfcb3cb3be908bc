"""A model that reads its weights as it runs gives the logits of one that is in memory."""

from pathlib import Path
from typing import Any

import pytest

from ftbuild_rules.models._logits import _load, _logits
from ftbuild_rules.models._streamed import streamed_model
from tiny_models import make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()
PROMPTS = [[5, 6, 7, 8], [9, 10]]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"dtype": "bfloat16"},
    "mistral": {"tie_word_embeddings": True, "max_shard_size": "20KB"},
    "gpt_neox": {},
    "phi": {},
    "qwen2": {},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4},
}


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_logits_are_those_of_the_model_in_memory(tmp_path: Path, kind: str) -> None:
    import torch

    folder = make_model(tmp_path / "model", kind=kind, **FAMILIES[kind])
    streamed = streamed_model(folder)
    assert streamed is not None
    with torch.no_grad():
        found, expected = _logits(streamed, PROMPTS), _logits(_load(folder), PROMPTS)
        again = _logits(streamed, PROMPTS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.equal(again)
    held = {p.untyped_storage().nbytes() for p in streamed.parameters() if p.dim() > 1}
    assert held == {4}  # one zero stands for all
