"""`examples/merging`: merged in four ways, measured, exported, and asked by llama.cpp."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/merging"

pytestmark = pytest.mark.slow


class Workspace:
    """A copy of the example with a store of its own, and the command in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "FTBUILD_CACHE": str(self.root / "store")}
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def figures(self, target: str) -> dict[str, Any]:
        path = self.root / "ftbuild-out" / target / "report.json"
        found: dict[str, Any] = json.loads(path.read_text())["figures"]
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("merging") / "copy"
    ignored = shutil.ignore_patterns(".ftbuild", "ftbuild-out")
    shutil.copytree(EXAMPLE, root, ignore=ignored)
    workspace = Workspace(root)
    done = workspace.run("-m", "ftbuild", "make")
    assert done.returncode == 0, done.stderr
    return workspace


def test_merged_models_differ_and_the_sum_knows_more_than_one_adapter(built: Workspace) -> None:
    merges = ("linear", "ties", "dare", "with_ancestor")
    weights = {
        (built.root / "ftbuild-out" / name / "model.safetensors").read_bytes() for name in merges
    }
    assert len(weights) == 4
    alone, together = (built.figures(f"figures[model={m}]") for m in ("clerk_alone", "linear"))
    assert together == built.figures("good_enough")
    assert alone["exact_match"] == 0.5
    assert together["exact_match"] >= alone["exact_match"]
    assert together["perplexity"] < 5 < 15 < alone["perplexity"]


def test_failed_gate_fails_the_build_and_publishes_nothing(built: Workspace) -> None:
    done = built.run("-m", "ftbuild", "make", "half")
    assert done.returncode == 1
    assert "error[E0943]: the model does not pass: perplexity is " in done.stderr
    assert "exact_match 0.5" in done.stderr
    assert not (built.root / "ftbuild-out" / "half").exists()


def test_llama_cpp_loads_the_export_and_answers(built: Workspace) -> None:
    done = built.run("answer.py", "Who reads the poems?")
    assert (done.returncode, done.stdout.strip()) == (0, "Mira reads the poems.")


def test_card_names_data_adapters_and_figures(built: Workspace) -> None:
    card = (built.root / "ftbuild-out/for_llama_cpp/README.md").read_text()
    assert card.startswith('---\nlanguage: "en"\nlicense: "cc0-1.0"\n---\n\n# Model card\n')
    for line in (
        "- data facts:",
        "  - rows: 6",
        "- reports good_enough:",
        "  - method: `merge`",
        "  - adapters:",
        "    - method: `sft`",
    ):
        assert line in card.splitlines()
