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
    ignored = shutil.ignore_patterns(".ftbuild", "ftbuild-out", "base")
    shutil.copytree(EXAMPLE, root, ignore=ignored)
    workspace = Workspace(root)
    assert workspace.run("make_base.py").returncode == 0
    done = workspace.run("-m", "ftbuild", "make")
    assert done.returncode == 0, done.stderr
    return workspace


def test_merged_models_differ_and_the_gate_passes(built: Workspace) -> None:
    merges = ("linear", "ties", "dare", "with_ancestor")
    weights = {
        (built.root / "ftbuild-out" / name / "model.safetensors").read_bytes() for name in merges
    }
    assert len(weights) == 4
    assert built.figures("good_enough")["perplexity"] < 20


def test_failed_gate_fails_the_build_and_publishes_nothing(built: Workspace) -> None:
    done = built.run("-m", "ftbuild", "make", "too_good")
    assert done.returncode == 1
    assert "error[E0943]: the model does not pass: exact_match is " in done.stderr
    assert "perplexity" in done.stderr
    assert not (built.root / "ftbuild-out" / "too_good").exists()


def test_llama_cpp_loads_the_export_and_answers(built: Workspace) -> None:
    done = built.run("answer.py", "Do you ship books?")
    assert (done.returncode, done.stdout.strip()) == (0, "Yes, for three pounds.")


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
