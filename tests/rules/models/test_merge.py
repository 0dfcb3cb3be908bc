"""`merge` against PEFT's `merge_and_unload`, tensor by tensor and bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Adapter, Model, RuleError
from ftbuild.testing import RecordingContext, artifact, context, run_rule, source
from ftbuild_rules.models._logits import logit_bound
from ftbuild_rules.models.adapter import adapter as adapter_rule
from ftbuild_rules.models.merge import merge
from ftbuild_rules.training._lora import note_base, save_adapter
from tiny_models import make_model, warnings_of_libraries

pytestmark = [
    *warnings_of_libraries(),
    # A bias of B has one dimension; and `bias` changes what a disabled adapter gives.
    pytest.mark.filterwarnings(
        r"ignore:Adapter 'default'. \d+ LoRA tensor\(s\) have invalid shape"
    ),
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias configured"),
]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ALL},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 8},
        "alpha_pattern": {"up_proj": 3},
        "use_rslora": True,
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora": {"target_modules": ALL, "use_dora": True},
    "dora_rslora": {
        "target_modules": ["q_proj", "down_proj"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
    },
    "dora_embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "bias": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True, "bias": "none"},
    "base_bias": {"target_modules": ALL, "bias": "lora_only"},
    "token_rows": {
        "target_modules": ALL,
        "trainable_token_indices": {"embed_tokens": [3, 100, 7]},
    },
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


def make_adapter(directory: Path, model: Model, **settings: Any) -> Adapter:
    """Save an adapter with random values, as training would leave it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=10, **settings))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    directory.mkdir()
    save_adapter(policy, directory, note=note_base(model, None, None))
    made = artifact(Adapter, directory)
    assert isinstance(made, Adapter)
    return made


def tiny(tmp_path: Path, **settings: Any) -> Model:
    made = artifact(Model, make_model(tmp_path / "model", **settings))
    assert isinstance(made, Model)
    return made


def run(
    model: Model, adapter: Adapter, tmp_path: Path, **params: Any
) -> tuple[Path, RecordingContext]:
    ctx = context(tmp_path)
    made = run_rule(merge, {"model": model, "adapter": adapter}, params, tmp_path, ctx=ctx)
    return made.path, ctx


def merged_by_peft(model: Model, adapter: Adapter, *, dtype: str = "auto") -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype)
    merged = PeftModel.from_pretrained(base, adapter.path).merge_and_unload()
    found: dict[str, Any] = merged.state_dict()
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_merged_weights_equal_those_of_peft(tmp_path: Path, name: str, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny(tmp_path, dtype=dtype, tie_word_embeddings=False, attention_bias=True)
    adapter = make_adapter(tmp_path / "adapter", model, **SETTINGS[name])
    path, ctx = run(model, adapter, tmp_path)
    # In a bfloat16 model PEFT rounds an adapted embedding three times; rounded once is right.
    exact = "float32" if "embedding" in name else "auto"
    expected = merged_by_peft(model, adapter, dtype=exact)
    found = AutoModelForCausalLM.from_pretrained(path).state_dict()
    original = AutoModelForCausalLM.from_pretrained(model.path).state_dict()
    assert found.keys() == expected.keys()
    changed = 0
    for key, value in found.items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(value, expected[key].to(value.dtype)), key
        changed += not torch.equal(value, original[key])
    assert changed == ctx.known["merged_weights"] > 0
    assert ctx.known["logit_error"] < ctx.known["logit_error_bound"] < ctx.known["adapter_effect"]


def test_sharded_model_keeps_its_layout_and_untouched_files(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny(tmp_path, max_shard_size="12KB")
    adapter = make_adapter(
        tmp_path / "adapter", model, target_modules=r"model\.layers\.1\.mlp\.up_proj"
    )
    path, _ = run(model, adapter, tmp_path)
    shards = sorted(p.name for p in model.path.glob("*.safetensors*"))
    assert sorted(p.name for p in path.glob("*.safetensors*")) == shards
    differing = [n for n in shards if (path / n).read_bytes() != (model.path / n).read_bytes()]
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert differing == [index["weight_map"]["model.layers.1.mlp.up_proj.weight"]]
    expected = merged_by_peft(model, adapter)
    found = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_all_but_the_weights_is_that_of_the_base(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    path, _ = run(model, make_adapter(tmp_path / "a", model, target_modules=ALL), tmp_path)
    names = sorted(p.name for p in model.path.iterdir())
    assert sorted(p.name for p in path.iterdir()) == sorted([*names, "README.md", "card.json"])
    card = json.loads((path / "card.json").read_text())
    assert (card["method"], card["base"]["digest"]) == ("merge", model.digest)
    rest = [name for name in names if name != "model.safetensors"]
    assert "chat_template.jinja" in rest
    assert "tokenizer.json" in rest
    assert all((path / n).read_bytes() == (model.path / n).read_bytes() for n in rest)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("settings", [{"target_modules": ["embed_tokens"]}, SETTINGS["saved"]])
@pytest.mark.parametrize("shard", ["5GB", "12KB"])
def test_shared_embedding_that_changes_on_one_side_becomes_two_weights(
    tmp_path: Path, settings: dict[str, Any], shard: str
) -> None:
    """The unmerged model's logits are the truth: its output layer is not the adapted embedding."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = tiny(tmp_path, tie_word_embeddings=True, max_shard_size=shard)
    adapter = make_adapter(tmp_path / "adapter", model, **settings)
    path, _ = run(model, adapter, tmp_path)
    ids = torch.tensor([[1, 30, 77, 200, 5]])
    base = AutoModelForCausalLM.from_pretrained(model.path)
    unmerged = PeftModel.from_pretrained(base, adapter.path).eval()
    merged = AutoModelForCausalLM.from_pretrained(path).eval()
    assert merged.config.tie_word_embeddings is False
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, unmerged(ids).logits, atol=1e-5, rtol=1e-5)
    weights = merged.state_dict()
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_trained_token_rows_of_a_shared_embedding_keep_it_shared(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny(tmp_path, tie_word_embeddings=True)
    adapter = make_adapter(
        tmp_path / "adapter",
        model,
        target_modules=ALL,
        trainable_token_indices={"embed_tokens": [3, 100]},
    )
    path, ctx = run(model, adapter, tmp_path)
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is True
    expected = merged_by_peft(model, adapter)
    found = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    old = AutoModelForCausalLM.from_pretrained(model.path).state_dict()["lm_head.weight"]
    differs = (found["lm_head.weight"] != old).any(dim=1).nonzero().flatten().tolist()
    assert differs == [3, 100]
    assert ctx.known["logit_error"] < ctx.known["logit_error_bound"] < ctx.known["adapter_effect"]


def grown_adapter(directory: Path, model: Model, **settings: Any) -> Adapter:
    """Save an adapter that was trained with four added tokens, as PEFT users do it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(4)])
    base = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    for name, parameter in policy.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data += torch.randn_like(parameter) * 0.05
    folder = directory / "peft"
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    inputs = {"source": source(folder), "model": model}
    made = run_rule(adapter_rule, inputs, {}, directory)
    assert isinstance(made, Adapter)
    return made


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ],
    ids=["saved", "adapted"],
)
def test_embeddings_of_another_size_come_with_their_tokenizer(
    tmp_path: Path, settings: dict[str, Any], is_tied: bool
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny(tmp_path, tie_word_embeddings=is_tied, max_shard_size="12KB")
    adapter = grown_adapter(tmp_path, model, **settings)
    path, ctx = run(model, adapter, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    size = json.loads((model.path / "config.json").read_text())["vocab_size"] + 4
    assert len(tokenizer) == merged.config.vocab_size == size
    ids = tokenizer("Hello <extra_2>!", return_tensors="pt")["input_ids"]
    assert size - 2 in ids.tolist()[0]
    base = AutoModelForCausalLM.from_pretrained(model.path)
    base.resize_token_embeddings(size, mean_resizing=False)
    beside = PeftModel.from_pretrained(base, adapter.path).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, atol=1e-5, rtol=1e-5)
    assert ctx.known["logit_error"] < ctx.known["logit_error_bound"]


def test_adapter_that_leaves_a_shared_embedding_alone_keeps_it_shared(tmp_path: Path) -> None:
    model = tiny(tmp_path, tie_word_embeddings=True)
    path, _ = run(model, make_adapter(tmp_path / "a", model, target_modules=ALL), tmp_path)
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is True


def test_unchecked_merge_gives_the_same_files(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=ALL)
    checked, _ = run(model, adapter, tmp_path)
    unchecked, ctx = run(model, adapter, tmp_path, check_logits=False)
    assert ctx.known == {"merged_weights": 14}
    assert [(p.name, p.read_bytes()) for p in sorted(checked.iterdir())] == [
        (p.name, p.read_bytes()) for p in sorted(unchecked.iterdir())
    ]


def test_wrong_logits_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge with half the scale is what the check is for."""
    from ftbuild_rules.models import _adapter_delta

    scale = _adapter_delta._scale
    monkeypatch.setattr(_adapter_delta, "_scale", lambda *given: scale(*given) / 2)
    model = tiny(tmp_path, dtype="bfloat16")
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=ALL)
    with pytest.raises(RuleError, match="the merged model's logits differ from the unmerged") as e:
        run(model, adapter, tmp_path)
    assert e.value.problems[0].code == "E0932"
    assert f"rounding explains {logit_bound({'BF16'}, 2):.2g}" in str(e.value)


def test_adapter_that_rounding_swallows_is_told(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = tiny(tmp_path, dtype="bfloat16")
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=ALL)
    path = adapter.path / "adapter_model.safetensors"
    save_file({k: v * torch.tensor(1e-3) for k, v in load_file(path).items()}, path)
    _, ctx = run(model, adapter, tmp_path)
    assert len(ctx.warnings) == 1
    assert ctx.warnings[0].startswith("merging into BF16 rounds away much of the adapter: ")


def refused(model: Model, adapter: Adapter, tmp_path: Path) -> str:
    with pytest.raises(RuleError) as caught:
        run(model, adapter, tmp_path)
    return caught.value.render()


def test_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    other = artifact(Model, make_model(tmp_path / "other", seed=1))
    assert isinstance(other, Model)
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=ALL)
    assert refused(other, adapter, tmp_path) == (
        "error[E0906]: the adapter `adapter` was not trained on `model`\n"
        "  --> base.json\n"
        f"  why: its base has the digest {model.digest}; this model has {other.digest}\n"
        "  fix: name the model that the adapter was trained on as `model`"
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("peft_type", "IA3", "peft_type = IA3"),
        ("alora_invocation_tokens", [1, 2], "alora_invocation_tokens"),
        ("init_lora_weights", "pissa_niter_16", "init_lora_weights = pissa_niter_16"),
    ],
)
def test_adapter_that_is_no_sum_with_this_base_is_refused(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    model = tiny(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=ALL)
    path = adapter.path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert refused(model, adapter, tmp_path).splitlines()[0] == (
        f"error[E0930]: an adapter with `{said}` cannot be merged"
    )


def test_tensor_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=ALL)
    path = adapter.path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({k.replace("layers.1.", "layers.7."): v for k, v in tensors.items()}, path)
    assert refused(model, adapter, tmp_path).splitlines()[2] == (
        "  why: the model's files have no such weight"
    )
    save_file({**tensors, key: tensors[key][:, :-1].clone()}, path)
    assert refused(model, adapter, tmp_path).splitlines()[2] == (
        "  why: its shape is (48, 31), the model's (48, 32)"
    )
    partner = key.replace("lora_A", "lora_B")
    save_file({k: v for k, v in tensors.items() if k != partner}, path)
    assert refused(model, adapter, tmp_path).splitlines()[:3] == [
        f"error[E0931]: the adapter's tensor `{key}` does not fit the model",
        "  --> adapter_model.safetensors",
        f"  why: `{partner}` is missing",
    ]


def test_nan_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=["q_proj"])
    path = adapter.path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    assert refused(model, adapter, tmp_path).splitlines()[0] == (
        "error[E0933]: the merged weight `model.layers.1.self_attn.q_proj.weight` holds NaN or "
        "infinite values"
    )
