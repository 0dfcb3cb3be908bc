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

pytestmark = pytest.mark.slow


def build(name: str, tmp_path: Path, *targets: str) -> Path:
    root = tmp_path / name
    ignored = shutil.ignore_patterns(".ftbuild", "ftbuild-out")
    shutil.copytree(REPOSITORY / "examples" / name, root, ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "ftbuild", "make", *targets],
        cwd=root,
        env={**os.environ, "FTBUILD_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root / "ftbuild-out"


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
    assert "quantization_config" not in (out / "onto_quantized/config.json").read_text()


def test_adapter_on_a_gptq_base_answers_as_taught(tmp_path: Path) -> None:
    out = build("gptq", tmp_path, "said")
    assert answers(out / "said") == ANSWERS
