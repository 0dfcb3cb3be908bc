"""Every example, built from nothing in a copy: what its README says, seen from outside."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = sorted(path.parent.parent.name for path in EXAMPLES.glob("*/data/text.txt"))


class Workspace:
    """A copy of an example, with a store that all of them share."""

    def __init__(self, name: str, folder: Path, store: Path) -> None:
        self.root = folder / name
        shutil.copytree(
            EXAMPLES / name,
            self.root,
            ignore=shutil.ignore_patterns(".ftbuild", "ftbuild-out"),
        )
        self.store = store

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ftbuild", *args],
            cwd=self.root,
            env={**os.environ, "FTBUILD_CACHE": str(self.store), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def make(self, *args: str) -> list[dict[str, Any]]:
        done = self.run("make", "--json", *args)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def answers(self, target: str) -> list[str]:
        path = self.run("path", target).stdout.strip()
        report = json.loads((Path(path) / "report.json").read_text())
        return [answer["answer"] for answer in report["answers"]]


def finished(events: list[dict[str, Any]], outcome: str = "built") -> list[str]:
    return [e["label"] for e in events if e["event"] == "finished" and e["outcome"] == outcome]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def test_one_text_trains_the_tokenizers_of_all_examples() -> None:
    assert len(TINY) == 8
    assert len({(EXAMPLES / example / "data/text.txt").read_bytes() for example in TINY}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_example_builds_from_nothing_and_then_has_nothing_to_do(
    tmp_path: Path, store: Path, name: str
) -> None:
    workspace = Workspace(name, tmp_path, store)
    events = workspace.make()
    assert finished(events, "failed") == []
    assert finished(events)
    assert workspace.run("make").stderr.startswith("nothing to do (")
    if name == "preference_sweep":
        check_sweep(workspace, events)


def check_sweep(workspace: Workspace, events: list[dict[str, Any]]) -> None:
    """Two models, three losses, two betas: twelve trainings on one tokens and two references."""
    # Another example has the same pairs and tokenizer: where it was built first, so were these.
    tokens = [label for label in finished(events) + finished(events, "fresh") if "tokens" in label]
    assert tokens.count("preference_tokens") == 1
    built = [label.partition("[")[0] for label in finished(events)]
    wanted = {"small_dpo": 6, "large_dpo": 6, "small_reference": 1, "large_reference": 1}
    assert {label: Counter(built)[label] for label in wanted} == wanted
    manifest = workspace.root / "FTBUILD.toml"
    manifest.write_text(manifest.read_text().replace("beta = [0.1, 0.3]", "beta = [0.1, 0.3, 0.5]"))
    plan = json.loads(workspace.run("plan", "--json").stdout)
    stale = [target["label"] for target in plan["targets"] if target["state"] != "fresh"]
    assert len(stale) == 6
    assert all("beta=0.5" in label for label in stale)


@pytest.mark.slow
def test_loss_that_is_no_number_stops_the_next_step_and_publishes_nothing(
    tmp_path: Path, store: Path
) -> None:
    workspace = Workspace("orpo", tmp_path, store)
    wrong = ("--set", "direct.learning_rate=1e38")
    done = workspace.run("make", *wrong)
    assert done.returncode == 1
    assert "error[E0910]: the loss is nan at step 2; training stopped, nothing was kept" in (
        done.stderr
    )
    assert "--> preference_tokens in rows " in done.stderr
    assert not (workspace.root / "ftbuild-out/direct").exists()
    plan = json.loads(workspace.run("plan", "--json", *wrong).stdout)
    states = {target["label"]: target["state"] for target in plan["targets"]}
    assert (states["preference_tokens"], states["direct"]) == ("fresh", "stale")
