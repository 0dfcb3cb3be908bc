"""The examples of quantized bases, built from scratch on a CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ANSWERS = ["Dear reader, the cat Semicolon.", "Dear reader, we open at nine."]

MORE = """
[quantize.the_same]
model = "base"
method = "nf4"
double_quantization = true

[sft.more]
model = "the_same"
data = "chat_tokens"
max_steps = 1
lora = { r = 4 }
"""

pytestmark = pytest.mark.slow


def build(name: str, tmp_path: Path, *targets: str) -> Path:
    root = tmp_path / name
    ignored = shutil.ignore_patterns(".ftbuild", "ftbuild-out")
    shutil.copytree(REPOSITORY / "examples" / name, root, ignore=ignored)
    built(root, tmp_path, *targets)
    return root / "ftbuild-out"


def built(root: Path, tmp_path: Path, *targets: str) -> list[str]:
    """Make targets and return which of them and of their inputs were built."""
    done = subprocess.run(
        [sys.executable, "-m", "ftbuild", "make", "--json", *targets],
        cwd=root,
        env={**os.environ, "FTBUILD_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [each["label"] for each in events if each.get("outcome") == "built"]


def answers(report: Path) -> list[str]:
    return [each["answer"] for each in json.loads((report / "report.json").read_bytes())["answers"]]


def test_qlora_answers_as_taught_before_and_after_both_merges(tmp_path: Path) -> None:
    out = build("qlora", tmp_path, "said", "said_by_full", "said_by_quantized")
    for name in ("said", "said_by_full", "said_by_quantized"):
        assert answers(out / name) == ANSWERS, name
    merged = [
        (out / name / "model.safetensors").read_bytes() for name in ("onto_full", "onto_quantized")
    ]
    assert merged[0] != merged[1]
    again = out.parent / "FTBUILD.toml"
    again.write_text(again.read_text() + MORE)
    assert built(out.parent, tmp_path, "more") == ["more"]  # neither the base nor its 4 bits
    assert "quantization_config" not in (out / "onto_quantized/config.json").read_text()


def test_adapter_on_a_gptq_base_answers_as_taught(tmp_path: Path) -> None:
    out = build("gptq", tmp_path, "said")
    assert answers(out / "said") == ANSWERS
