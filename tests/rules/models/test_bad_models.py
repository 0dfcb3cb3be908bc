"""A corpus of models that are damaged, hostile or unfit: each is refused by its own message."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Model, RuleError
from ftbuild.testing import artifact, context, run_rule, source
from ftbuild_rules.models.base_model import base_model
from ftbuild_rules.quantization.quantize import quantize
from tiny_models import make_model, warnings_of_libraries

pytestmark = warnings_of_libraries()
WEIGHTS = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("sound") / "model")


def setting(name: str, **values: Any) -> Change:
    def change(model: Path) -> None:
        known = json.loads((model / name).read_bytes())
        (model / name).write_text(json.dumps({**known, **values}))

    return change


def written(name: str, data: bytes) -> Change:
    return lambda model: (model / name).write_bytes(data) and None


def without(*names: str) -> Change:
    def change(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return change


def both(*changes: Change) -> Change:
    def change(model: Path) -> None:
        for each in changes:
            each(model)

    return change


def cut(name: str, size: int) -> Change:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size]) and None


def header(edit: Callable[[str], str]) -> Change:
    """Change the text of the header of the weights; its length follows."""

    def change(model: Path) -> None:
        data = (model / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = edit(data[8 : 8 + length].decode().rstrip()).encode()
        (model / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return change


def tensors(edit: Callable[[dict[str, Any]], Any]) -> Change:
    def change(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(model / WEIGHTS)
        edit(weights)
        save_file(weights, model / WEIGHTS, metadata={"format": "pt"})

    return change


def put(name: str, make: Callable[[Any], Any]) -> Change:
    return tensors(lambda weights: weights.update({name: make(weights[name])}))


def in_two_files(model: Path) -> None:
    shutil.copyfile(model / WEIGHTS, model / "model-2.safetensors")
    index = {"weight_map": {Q: WEIGHTS, "model.norm.weight": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def poisoned(value: float) -> Callable[[Any], Any]:
    def change(tensor: Any) -> Any:
        tensor[3, 5] = value
        return tensor

    return change


INDEX = "model.safetensors.index.json"
ONE_INDEX = json.dumps({"weight_map": {Q: "gone.safetensors"}}).encode()
BASE: dict[str, tuple[Change, str]] = {
    "pickled": (both(without(WEIGHTS), written("pytorch_model.bin", b"x")), "E0921"),
    "empty": (without("config.json", WEIGHTS), "E0920"),
    "no config": (without("config.json"), "E0920"),
    "adapter": (
        both(without("config.json"), written("adapter_config.json", b"{}")),
        "E0920",
    ),
    "config cut short": (cut("config.json", 20), "E0923"),
    "config a list": (written("config.json", b"[]"), "E0923"),
    "config nested too deep": (written("config.json", b"[" * 100_000), "E0923"),
    "generation config": (written("generation_config.json", b"1"), "E0923"),
    "code": (setting("config.json", auto_map={"AutoModel": "m.M"}), "E0922"),
    "code further in": (setting("config.json", text_config={"auto_map": {"A": "m.M"}}), "E0922"),
    "code in a list": (setting("config.json", parts=[{"auto_map": {"A": "m.M"}}]), "E0922"),
    "code of the tokenizer": (
        setting("tokenizer_config.json", auto_map={"AutoTokenizer": ["m.T", None]}),
        "E0922",
    ),
    "code of attention": (
        setting("config.json", _attn_implementation_internal="org/kernel"),
        "E0922",
    ),
    "a kernel from the hub": (setting("config.json", attn_implementation="org/kernel"), "E0922"),
    "code by pipeline": (setting("config.json", custom_pipelines={"x": {"impl": "m.P"}}), "E0922"),
    "code of generation": (setting("generation_config.json", trust_remote_code=True), "E0922"),
    "quantized": (setting("config.json", quantization_config={"quant_method": "awq"}), "E0928"),
    "weights cut short": (cut(WEIGHTS, 20_000), "E0924"),
    "weights of 5 bytes": (cut(WEIGHTS, 5), "E0924"),
    "a page of HTML": (written(WEIGHTS, b"<!doctype html><html>404</html>"), "E0924"),
    "an LFS pointer": (written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1"), "E0924"),
    "header past the end": (written(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "E0924"),
    "no JSON in the header": (header(lambda text: text[:-1]), "E0924"),
    "tensor twice": (header(lambda t: t[:-1] + "," + t[t.index('"model.norm') :]), "E0924"),
    "unknown type": (header(lambda text: text.replace('"F32"', '"F31"', 1)), "E0924"),
    "negative size": (header(lambda text: text.replace('"shape":[', '"shape":[-1,', 1)), "E0924"),
    "another shape": (header(lambda text: text.replace("[32,32]", "[32,31]", 1)), "E0924"),
    "missing shard": (both(written(INDEX, ONE_INDEX), without(WEIGHTS)), "E0924"),
    "index without a map": (written(INDEX, b"{}"), "E0924"),
    "GGUF that is none": (
        both(without("config.json", WEIGHTS), written("m.gguf", b"GGUF")),
        "E0920",
    ),
}
QUANTIZE: dict[str, tuple[Change, str, dict[str, Any]]] = {
    "NaN": (put(Q, poisoned(float("nan"))), "E0971", {}),
    "infinite": (put(Q, poisoned(float("inf"))), "E0971", {"method": "fp4"}),
    "NaN in 8 bits": (put(Q, poisoned(float("nan"))), "E0971", {"method": "int8"}),
    "too large for float16": (put(Q, poisoned(1e5)), "E0971", {"method": "int8"}),
    "float64": (put(Q, lambda tensor: tensor.double()), "E0971", {}),
    "a missing layer": (tensors(lambda weights: weights.pop(Q)), "E0970", {}),
    "another layer": (tensors(lambda w: w.update({"m.weight": w.pop(Q)})), "E0970", {}),
    "in two files": (in_two_files, "E0924", {}),
    "nothing to skip": (written("x", b""), "E0970", {"skip_modules": ["nothing"]}),
    "nothing left": (written("x", b""), "E0970", {"skip_modules": ["proj"]}),
}
MESSAGES: dict[str, str] = json.loads((Path(__file__).parent / "bad_models.json").read_text())


def refused(rule: Any, inputs: Any, params: Any, tmp_path: Path) -> str:
    ctx = context(tmp_path)
    with pytest.raises(RuleError) as caught:
        run_rule(rule, inputs, params, tmp_path, ctx=ctx)
    return caught.value.render()


FAULTS = {"E0921": ("46", "pickled weights"), "E0922": ("47", "code that a model brings")}
FAULTS["E0924"] = ("46", "a damaged file of weights")


def marked(name: str) -> Any:
    code = BASE[name][1]
    marks = [pytest.mark.fault(*FAULTS[code])] if code in FAULTS else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in BASE])
def test_base_model_refuses(name: str, sound: Path, tmp_path: Path) -> None:
    change, code = BASE[name]
    shutil.copytree(sound, tmp_path / "model")
    change(tmp_path / "model")
    said = refused(base_model, {"source": source(tmp_path / "model")}, {}, tmp_path)
    assert said.startswith(f"error[{code}]: ")
    assert said == MESSAGES[name]


@pytest.mark.parametrize("name", list(QUANTIZE))
def test_quantize_refuses(name: str, sound: Path, tmp_path: Path) -> None:
    change, code, params = QUANTIZE[name]
    shutil.copytree(sound, tmp_path / "model")
    change(tmp_path / "model")
    model = artifact(Model, tmp_path / "model")
    said = refused(quantize, {"model": model}, params, tmp_path)
    assert said.startswith(f"error[{code}]: ")
    assert said == MESSAGES[name]


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len(BASE) + len(QUANTIZE) == len(MESSAGES) == 40
