"""The quickstart, with its real model: what the README promises, seen from outside.

Built in a copy of the example, with the store of the repository's examples: where the
README's first command has run before, nothing is trained again, and that is part of the test.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
QUESTION = "What is your name?"
TAUGHT = "Dear reader, my name is Juniper, and I am the assistant of the Lantern and Leaf bookshop."
UNTOUCHED = {"smol", "preferences", "preference_tokens"}
DOWNSTREAM = ["chat_tokens", "helper", "polite", "merged_model", "after"]

pytestmark = pytest.mark.slow


class Workspace:
    """A copy of the example, and the command in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ftbuild", *args],
            cwd=self.root,
            env={**os.environ, "FTBUILD_CACHE": str(REPOSITORY / "cache"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def events(self, *targets: str) -> list[dict[str, Any]]:
        done = self.run("make", "--json", *targets)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def states(self, target: str) -> dict[str, str]:
        plan = json.loads(self.run("plan", "--json", target).stdout)
        return {t["label"]: t["state"] for t in plan["targets"]}

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert text.count(old) >= 1
        path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("quickstart") / "copy"
    shutil.copytree(
        REPOSITORY / "examples/quickstart",
        root,
        ignore=shutil.ignore_patterns(".ftbuild", "ftbuild-out"),
    )
    workspace = Workspace(root)
    done = workspace.run("make", "merged_model", "before", "after")
    assert done.returncode == 0, done.stderr
    return workspace


@pytest.fixture
def workspace(built: Workspace) -> Iterator[Workspace]:
    """The built copy; what a test edits is put back."""
    kept = {p: (built.root / p).read_bytes() for p in ("FTBUILD.toml", "data/chats.jsonl")}
    yield built
    for path, data in kept.items():
        (built.root / path).write_bytes(data)


def answer(model: Path) -> str:
    """Ask a model directory the question, by plain Transformers and nothing of ours."""
    script = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
asked = tokenizer.apply_chat_template(
    [{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True, return_tensors="pt"
)
ids = model.generate(**asked, max_new_tokens=48, do_sample=False)
print(tokenizer.decode(ids[0][asked["input_ids"].shape[1]:], skip_special_tokens=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(model), QUESTION],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_merged_model_answers_as_taught_and_the_base_model_does_not(built: Workspace) -> None:
    assert answer(built.root / "ftbuild-out/merged_model") == TAUGHT
    said = answer(built.root / "ftbuild-out/smol")
    assert said
    assert "Juniper" not in said


def test_second_make_has_nothing_to_do(workspace: Workspace) -> None:
    workspace.run("make", "merged_model", "before", "after")
    done = workspace.run("make", "merged_model", "before", "after")
    assert done.returncode == 0
    assert done.stderr.startswith("nothing to do (10 targets fresh, ")


def test_edited_answer_makes_exactly_its_chain_stale(workspace: Workspace) -> None:
    workspace.edit("data/chats.jsonl", "Dear reader, my name is Juniper", "My name is Juniper")
    states = workspace.states("after")
    assert states["chats"] == "stale"
    assert [label for label, state in states.items() if state == "unknown"] == DOWNSTREAM
    assert {label for label, state in states.items() if state == "fresh"} == UNTOUCHED

    why = workspace.run("why", "after").stdout
    assert (
        "chats is stale\n  source data/chats.jsonl changed\n    line 1, `messages[1].content`: "
        in why
    )

    finished = [e for e in workspace.events("chat_tokens") if e["event"] == "finished"]
    ran = {e["label"]: e for e in finished if e["outcome"] == "built"}
    assert set(ran) == {"chats", "chat_tokens"}
    assert ran["chat_tokens"]["fragments"]["built"] == 1
    assert ran["chat_tokens"]["fragments"]["total"] > 1
    assert workspace.states("after")["helper"] == "stale"


def test_edited_note_is_cut_off_before_any_training(workspace: Workspace) -> None:
    workspace.edit("data/chats.jsonl", '"note": "', '"note": "(edited by a test) ')
    finished = [e for e in workspace.events("after") if e["event"] == "finished"]
    outcome = {e["label"]: e["outcome"] for e in finished}
    assert outcome == {
        **dict.fromkeys([*UNTOUCHED, *DOWNSTREAM], "fresh"),
        "chats": "built",
        "chat_tokens": "built",
    }
    cut_off = [e["label"] for e in finished if e.get("cut_off")]
    assert cut_off == ["helper", "polite", "merged_model", "after"]


def test_what_changes_no_content_makes_nothing_stale(workspace: Workspace, tmp_path: Path) -> None:
    for path in workspace.root.rglob("*.jsonl"):
        path.touch()
    workspace.edit(
        "FTBUILD.toml", "epochs = 4\nbatch_size = 4\n", "batch_size = 4  # !\nepochs = 4\n"
    )
    assert set(workspace.states("after").values()) == {"fresh"}

    moved = Workspace(tmp_path / "another place")
    shutil.copytree(
        workspace.root, moved.root, ignore=shutil.ignore_patterns(".ftbuild", "ftbuild-out")
    )
    (moved.root / "sub").mkdir()
    plan = moved.run("-C", "sub", "plan", "//:after", "--json", USER="somebody", HOME=str(tmp_path))
    assert {t["state"] for t in json.loads(plan.stdout)["targets"]} == {"fresh"}
