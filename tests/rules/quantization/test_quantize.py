"""`quantize` beside bitsandbytes and Transformers: the same tensors, the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import AttributeProblem, Model, RuleError, Tokens
from ftbuild.testing import RecordingContext, artifact, context, run_rule
from ftbuild_rules.evaluation.evaluate import evaluate
from ftbuild_rules.models._safetensors import read_tensors
from ftbuild_rules.quantization._bitsandbytes import (
    NotFinite,
    quantize_4bit,
    quantize_8bit,
    stored_4bit,
)
from ftbuild_rules.quantization.quantize import quantize
from ftbuild_rules.viewers.quantized_model import inspect
from tiny_models import make_model, make_tokens, sft_rows, warnings_of_libraries

pytestmark = [
    *warnings_of_libraries(),
    pytest.mark.filterwarnings("ignore:.*MatMul8bitLt"),
]
METHODS: dict[str, dict[str, Any]] = {
    "nf4": {"method": "nf4"},
    "double": {"method": "nf4", "double_quantization": True, "compute_dtype": "bfloat16"},
    "fp4": {"method": "fp4", "double_quantization": True},
    "int8": {"method": "int8"},
}


# bitsandbytes wants on a CPU with AVX512-BF16: rows a multiple of 32, columns of the block size.
SIZES = {"hidden_size": 64, "intermediate_size": 128}


def tiny(tmp_path: Path, **settings: Any) -> Model:
    made = artifact(Model, make_model(tmp_path / "model", **{**SIZES, **settings}))
    assert isinstance(made, Model)
    return made


def quantized(model: Model, tmp_path: Path, **params: Any) -> tuple[Path, RecordingContext]:
    ctx = context(tmp_path, cpus=2)
    return run_rule(quantize, {"model": model}, params, tmp_path, ctx=ctx).path, ctx


def by_transformers(model: Path, params: dict[str, Any]) -> Any:
    """Return the model as it is when Transformers quantizes it while loading."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.set_num_threads(1)
    settings = BitsAndBytesConfig(
        load_in_8bit=params["method"] == "int8",
        load_in_4bit=params["method"] != "int8",
        bnb_4bit_quant_type=params["method"] if params["method"] != "int8" else "fp4",
        bnb_4bit_use_double_quant=params.get("double_quantization", False),
        bnb_4bit_compute_dtype=params.get("compute_dtype", "float32"),
        llm_int8_skip_modules=params.get("skipped"),
    )
    return AutoModelForCausalLM.from_pretrained(model, quantization_config=settings)


def tensors_in(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        tensor.spec.name: (tensor.spec.dtype, tensor.spec.shape, tensor.read())
        for file in directory.glob("*.safetensors")
        for tensor in read_tensors(file)
    }


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40).unsqueeze(0)).logits


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("name", list(METHODS))
def test_every_tensor_is_the_one_that_transformers_saves(
    tmp_path: Path, name: str, dtype: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny(tmp_path, dtype=dtype, max_shard_size="60KB")  # several files and an index
    path, ctx = quantized(model, tmp_path, **METHODS[name])
    theirs = by_transformers(model.path, METHODS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    assert tensors_in(path) == tensors_in(tmp_path / "theirs")
    assert len([*path.glob("*.safetensors")]) > 2
    config = json.loads((tmp_path / "theirs/config.json").read_bytes())["quantization_config"]
    assert json.loads((path / "config.json").read_bytes())["quantization_config"] == config
    index = json.loads((path / "model.safetensors.index.json").read_bytes())
    assert set(index["weight_map"]) == set(tensors_in(path))
    assert index["metadata"]["total_size"] == sum(len(t[2]) for t in tensors_in(path).values())
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(logits(loaded), logits(theirs))
    assert ctx.known["quantized_weights"] == 14


def test_layers_that_are_skipped_stay_as_they_are_and_the_config_says_so(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny(tmp_path, tie_word_embeddings=False)
    path, ctx = quantized(model, tmp_path, skip_modules=["o_proj", "model.layers.0.mlp"])
    assert ctx.known["quantized_weights"] == 14 - 2 - 3
    skipped = ["lm_head", "o_proj", "model.layers.0.mlp"]
    theirs = by_transformers(model.path, {"method": "nf4", "skipped": skipped})
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), logits(theirs))


def test_the_transposed_layers_of_gpt2_are_quantized_as_transformers_does(tmp_path: Path) -> None:
    model = tiny(tmp_path, kind="gpt2", n_embd=64, n_layer=1, n_head=2, n_positions=64)
    path, _ = quantized(model, tmp_path, method="nf4")
    by_transformers(model.path, {"method": "nf4"}).save_pretrained(tmp_path / "theirs")
    assert tensors_in(path) == tensors_in(tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
def test_four_bits_equal_those_of_bitsandbytes(kind: Any, double: bool, block_size: int) -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit as theirs

    torch.set_num_threads(1)
    torch.manual_seed(3)
    spread = torch.randn(301, 1001) * torch.logspace(-30, 4, 301).unsqueeze(1)
    spread[5:9] = 0.0  # whole blocks of zeros
    spread[20] = torch.linspace(-1, 1, 1001)  # every bound is crossed
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = spread.clamp(-6e4, 6e4).to(dtype)
        numbers, state = quantize_4bit(
            weight, kind, block_size=block_size, double=double, threads=3
        )
        expected, expected_state = theirs(
            weight, blocksize=block_size, compress_statistics=double, quant_type=kind
        )
        ours = stored_4bit("w", numbers, state)
        wanted = stored_4bit("w", expected, expected_state)
        assert ours.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_value_on_a_bound_or_next_to_it_gets_the_number_that_bucketize_gives(kind: Any) -> None:
    import torch
    from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
    from bitsandbytes.functional import quantize_4bit as theirs

    bounds, _ = _get_4bit_quantize_bounds(kind, torch.device("cpu"))
    up, down = torch.tensor(2.0), torch.tensor(-2.0)
    near = [bounds, torch.nextafter(bounds, up), torch.nextafter(bounds, down)]
    row = torch.cat([*near, -torch.cat(near), torch.ones(6)])  # the 1 makes the scale 1
    weight = row[:96].reshape(3, 32).contiguous()
    weight[:, 31] = 1.0
    numbers, _ = quantize_4bit(weight, kind, block_size=32, double=False)
    assert torch.equal(numbers, theirs(weight, blocksize=32, quant_type=kind)[0])


def test_eight_bits_equal_those_of_bitsandbytes() -> None:
    import torch
    from bitsandbytes.nn import Int8Params

    torch.manual_seed(4)
    weight = torch.randn(300, 77) * torch.logspace(-9, 3, 300).unsqueeze(1)
    weight[7] = 0.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values, scales = quantize_8bit(weight.to(dtype), threads=2)
        theirs = Int8Params(weight.to(dtype), requires_grad=False).to("cpu")
        assert torch.equal(values, theirs.data)
        assert torch.equal(scales, theirs.SCB)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    import torch

    weight = torch.ones(4, 100)
    weight[3, 99] = bad  # in the last, shorter block
    for block_size in (32, 4096):
        with pytest.raises(NotFinite):
            quantize_4bit(weight, "nf4", block_size=block_size, double=False)
    with pytest.raises(NotFinite):
        quantize_8bit(weight)
    with pytest.raises(NotFinite):
        quantize_8bit(torch.full((1, 2), 1e5))


def test_two_runs_with_other_numbers_of_threads_give_the_same_bytes(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    digests = set()
    for cpus in (1, 3):
        ctx = context(tmp_path, cpus=cpus)
        digests.add(run_rule(quantize, {"model": model}, {}, tmp_path, ctx=ctx).digest)
    assert len(digests) == 1


def test_the_report_says_how_far_each_layer_is_off(tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.functional import quantize_4bit as theirs
    from safetensors.torch import load_file

    model = tiny(tmp_path)
    path, ctx = quantized(model, tmp_path)
    about = json.loads((path / "quantization.json").read_bytes())
    assert about["source"] == model.digest
    assert about["method"] == "nf4"
    weights = load_file(model.path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    again = dequantize_4bit(*theirs(weights[name], quant_type="nf4"))
    relative = float((again - weights[name]).double().norm() / weights[name].double().norm())
    assert about["layers"][name]["relative_error"] == pytest.approx(relative, rel=1e-5)
    largest = float((again - weights[name]).abs().max())
    assert about["layers"][name]["largest_difference"] == pytest.approx(largest, rel=1e-5)
    assert 0.05 < about["relative_error"] < 0.15  # four bits
    assert about["relative_error"] == ctx.known["relative_error"]
    assert torch.is_tensor(again)


def test_the_card_tells_what_was_quantized_and_what_that_was_made_of(tmp_path: Path) -> None:
    base = {"method": "merge", "adapters": [{"digest": "ab"}]}
    model = tiny(tmp_path)
    (model.path / "card.json").write_text(json.dumps(base))
    (model.path / "README.md").write_text("the base's own")
    path, _ = quantized(model, tmp_path, double_quantization=True)
    assert json.loads((path / "card.json").read_bytes()) == {
        "method": "quantize",
        "parameters": {"double_quantization": True},
        "base": {"digest": model.digest, **base},
        "data": [],
    }
    readme = (path / "README.md").read_text()
    assert readme.startswith("# Model card\n")
    assert "- parameters: double_quantization true\n- base:\n  - method: `merge`\n" in readme


def test_the_perplexity_before_and_after_is_the_one_that_evaluate_finds(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    rows = sft_rows(7)
    data = artifact(Tokens, make_tokens(tmp_path / "all", rows))
    first = artifact(Tokens, make_tokens(tmp_path / "first", rows[:5]))
    ctx = context(tmp_path, cpus=2)
    given = {"model": model, "eval_data": data}
    made = run_rule(quantize, given, {"eval_samples": 5}, tmp_path, ctx=ctx)
    found = []
    for name, each in (("before", model), ("after", made)):
        (tmp_path / name).mkdir()
        report = run_rule(evaluate, {"model": each, "data": first}, {}, tmp_path / name)
        found.append(json.loads((report.path / "report.json").read_bytes())["figures"])
    figures = {
        "perplexity_before": float(f"{found[0]['perplexity']:.4g}"),
        "perplexity_after": float(f"{found[1]['perplexity']:.4g}"),
        "rows": 5,
        "tokens": found[0]["tokens"],
    }
    assert figures["perplexity_before"] != figures["perplexity_after"]
    about = json.loads((made.path / "quantization.json").read_bytes())
    assert {key: about[key] for key in figures} == figures
    assert json.loads((made.path / "card.json").read_bytes())["figures"] == figures
    assert {key: ctx.known[key] for key in figures} == figures
    text = "\n".join("".join(span.text for span in line) for line in inspect(made).lines)
    before, after = figures["perplexity_before"], figures["perplexity_after"]
    said = f"perplexity: {after:.4g}, before {before:.4g}, on {figures['tokens']} tokens"
    assert said in text


def test_rows_of_another_vocabulary_are_refused_before_anything_is_quantized(
    tmp_path: Path,
) -> None:
    rows = [{"input_ids": [3, 99_999], "labels": [-100, 99_999]}]
    given = {
        "model": tiny(tmp_path),
        "eval_data": artifact(Tokens, make_tokens(tmp_path / "rows", rows)),
    }
    ctx = context(tmp_path, cpus=1)
    with pytest.raises(RuleError, match="99999"):
        run_rule(quantize, given, {}, tmp_path, ctx=ctx)
    assert not [*ctx.out.iterdir()]


def test_a_number_of_rows_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AttributeProblem, match="no rows to count"):
        run_rule(quantize, {"model": tiny(tmp_path)}, {"eval_samples": 3}, tmp_path)


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"method": "int8", "block_size": 128}, "`block_size` belongs to `nf4` and `fp4`"),
        ({"method": "int8", "double_quantization": True}, "`double_quantization` belongs to"),
        ({"method": "nf4", "outlier_threshold": 5.0}, "`outlier_threshold` belongs to `int8`"),
    ],
)
def test_an_attribute_of_another_method_is_refused(
    tmp_path: Path, params: dict[str, Any], what: str
) -> None:
    with pytest.raises(AttributeProblem, match=what):
        run_rule(quantize, {"model": tiny(tmp_path)}, params, tmp_path)


def test_a_name_in_skip_modules_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleError) as caught:
        quantized(tiny(tmp_path), tmp_path, skip_modules=["oproj"])
    assert caught.value.problems[0].code == "E0970"
    assert "`skip_modules` names `oproj`" in str(caught.value)
