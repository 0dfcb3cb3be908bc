"""`export` and `gguf_quantize`: read back by our own reader, by Transformers and by llama.cpp."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Artifact, AttributeProblem, Dataset, File, Model, Report, RuleError
from ftbuild.testing import artifact, run_rule
from ftbuild_rules.models._gguf import convert_gguf
from ftbuild_rules.models._modelfile import modelfile
from ftbuild_rules.models.export import ExportParams, check, export
from ftbuild_rules.models.gguf_quantize import gguf_quantize
from tiny_models import TEMPLATE, make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()
TEXTS = [
    "We sold 1234 books in 2024!",
    "<|im_start|>user\nI don't know.<|im_end|>\n",
    "naïve 😀  x",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(Model, make_model(tmp_path_factory.mktemp("model"), dtype="bfloat16"))


def exported(tmp_path: Path, model: Artifact, **params: Any) -> Artifact:
    return run_rule(export, {"model": model}, params, tmp_path)


def state(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_gguf_is_read_back_as_the_same_model(tmp_path: Path, kind: str, is_tied: bool) -> None:
    import torch

    settings = {"head_dim": 8} if kind == "qwen3" else {}
    if kind == "mistral":
        settings = {"sliding_window": None}
    folder = make_model(
        tmp_path / "m", kind=kind, dtype="bfloat16", tie_word_embeddings=is_tied, **settings
    )
    made = exported(tmp_path, artifact(Model, folder), format="gguf", type="BF16")
    back = tmp_path / "back"
    back.mkdir()
    template = convert_gguf(made.path / "model.gguf", back, dtype="bfloat16")
    assert template == TEMPLATE
    before, after = state(folder), state(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    from transformers import AutoTokenizer

    one, two = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(back)
    assert [one(t)["input_ids"] for t in TEXTS] == [two(t)["input_ids"] for t in TEXTS]


@pytest.mark.parametrize("file_type", ["F16", "F32", "Q8_0"])
def test_llama_cpp_gives_the_ids_and_answers_of_transformers(
    tmp_path: Path, model: Artifact, file_type: str
) -> None:
    llama_cpp = pytest.importorskip("ik_llama_cpp")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = exported(tmp_path, model, format="gguf", type=file_type)
    llama = llama_cpp.IkLlama(str(made.path / "model.gguf"), n_ctx=64, n_threads=1, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert llama.tokenize(text, add_bos=False, special=True) == ids
    network = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()
    prompt = tokenizer(TEXTS[0])["input_ids"]
    ids = list(prompt)
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    assert llama.generate(prompt, max_tokens=4, temperature=0.0) == ids[len(prompt) :]
    llama.close()


def test_q4_k_m_is_made_by_the_tool_of_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    from gguf import GGUFReader

    folder = make_model(tmp_path / "m", hidden_size=256, intermediate_size=256, head_dim=64)
    whole = exported(tmp_path, artifact(Model, folder), format="gguf")
    made = run_rule(gguf_quantize, {"gguf": whole}, {"type": "Q4_K_M"}, tmp_path)
    reader = GGUFReader(str(made.path / "model.gguf"))
    types = {t.tensor_type.name for t in reader.tensors if t.name.endswith("attn_q.weight")}
    assert types == {"Q4_K"}
    assert reader.fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert (made.path / "Modelfile").read_bytes() == (whole.path / "Modelfile").read_bytes()
    again = run_rule(gguf_quantize, {"gguf": whole}, {"type": "Q4_K_M"}, tmp_path)
    assert again.digest == made.digest


def test_directory_is_cut_into_shards_that_transformers_loads(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "m", hidden_size=256, intermediate_size=512)
    made = exported(tmp_path, artifact(Model, folder), max_shard_mb=1)
    sizes = [p.stat().st_size for p in made.path.glob("model-*.safetensors")]
    assert len(sizes) > 3
    assert max(sizes) < 1_010_000
    before = state(folder)
    after = AutoModelForCausalLM.from_pretrained(made.path).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_modelfile_frames_a_turn_as_the_template_does(model: Artifact) -> None:
    assert modelfile(model.path, "model.gguf") == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}'
        "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
        '{{ .Response }}"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )


def test_card_tells_what_the_model_was_made_of(tmp_path: Path, model: Artifact) -> None:
    chats = tmp_path / "chats"
    chats.mkdir()
    (chats / "dataset.json").write_text('{"form": "messages", "rows": 60}')
    quality = tmp_path / "quality"
    quality.mkdir()
    (quality / "report.json").write_text('{"figures": {"perplexity": 11.25}}')
    data, report = artifact(Dataset, chats), artifact(Report, quality)
    made = run_rule(
        export,
        {"model": model, "data": {"chats": data}, "reports": {"quality": report}},
        {"card": {"license": "apache-2.0", "tags": ["bookshop"]}},
        tmp_path,
    )
    assert (made.path / "README.md").read_text() == (
        '---\nlicense: "apache-2.0"\ntags: ["bookshop"]\n---\n\n'
        "# Model card\n\nWritten by ftbuild from what this artifact was made of.\n\n"
        "- method: `export as transformers`\n"
        "- model:\n"
        f"  - digest: `{model.digest}`\n"
        "- data chats:\n"
        f"  - digest: `{data.digest}`\n"
        "  - form: `messages`\n"
        "  - rows: 60\n"
        "- reports quality:\n"
        f"  - digest: `{report.digest}`\n"
        "  - figures: perplexity 11.25\n"
    )


def refused(tmp_path: Path, folder: Path, **params: Any) -> str:
    with pytest.raises(RuleError) as caught:
        exported(tmp_path, artifact(Model, folder), **{"format": "gguf", **params})
    return caught.value.render()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "gpt_neox"}, "models of the architecture `gpt_neox` cannot be written as GGUF"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "a model with its `rope_type` cannot be written as GGUF",
        ),
        ({"attention_bias": True}, "a model with its `attention_bias` cannot be written as GGUF"),
        (
            {"kind": "mistral", "sliding_window": 8},
            "a model with its `sliding_window` cannot be written as GGUF",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    assert refused(tmp_path, make_model(tmp_path / "m", **settings)) == (
        f"error[E0948]: {said}\n"
        "  why: known are the plain forms of llama, mistral, qwen2, qwen3\n"
        "  fix: export it as `transformers`, or convert that with llama.cpp's own script"
    )


def test_pre_tokenizer_without_a_name_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    path = folder / "tokenizer.json"
    path.write_text(
        path.read_text().replace('"individual_digits": true', '"individual_digits": false')
    )
    assert refused(tmp_path, folder).startswith(
        "error[E0949]: the tokenizer's pre-tokenizer has no name in llama.cpp\n"
        "  why: another one would give other ids; known are codeshell, command-r, "
    )


def test_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 1}))
    found = refused(tmp_path, folder)
    assert re.match(
        r"error\[E0934\]: the tokenizer has the id \d+; the model's vocabulary ends", found
    )


def test_value_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = make_model(tmp_path / "m")
    tensors = state(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = 1e30
    save_file(tensors, folder / "model.safetensors")
    assert refused(tmp_path, folder) == (
        f"error[E0933]: `{name}` holds values that F16 cannot hold\n"
        '  fix: export with `type = "BF16"`'
    )


def test_type_is_for_gguf() -> None:
    with pytest.raises(AttributeProblem, match="is for `gguf`"):
        check({"model": ("model",)}, ExportParams(type="Q8_0"))


def test_file_without_a_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x.txt").write_text("x")
    with pytest.raises(RuleError, match=r"holds no `model\.gguf`"):
        run_rule(gguf_quantize, {"gguf": artifact(File, tmp_path / "f")}, {}, tmp_path)
