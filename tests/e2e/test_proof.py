"""The quickstart follows from its sources, bit for bit: built once, then run again elsewhere.

Elsewhere is another folder, another user, another locale and another time zone, in a sandbox and
with nothing of what was cached. All eight targets are run again; the two trainings are short, and
differ in nothing else. The merge of the whole ones is run again too.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHORT = ["--set", "helper.epochs=0.05", "--set", "polite.epochs=0.05"]
TARGETS = ["smol", "chats", "chat_tokens", "preferences", "preference_tokens"]
TRAINED = ["helper", "polite", "merged_model"]
TRAINING = ("pretrain", "sft", "dpo", "ipo", "kto", "orpo", "reward_model", "prm", "grpo")
METHODS = Path(__file__).parent / "methods"
ROWS = {
    "zephyr": ("chats.jsonl", "preferences.jsonl", "text.txt"),
    "kto": ("votes.jsonl",),
    "prm": ("steps.jsonl",),
    "grpo": ("problems.jsonl",),
}
"""Which example has which rows for each of the methods."""

pytestmark = pytest.mark.slow


def workspace(place: Path) -> Path:
    ours = shutil.ignore_patterns(".ftbuild", "ftbuild-out")
    shutil.copytree(REPOSITORY / "examples/quickstart", place, ignore=ours)
    return place


def run(
    root: Path, *args: str, before: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-m", "ftbuild", *args],
        cwd=root,
        env={**os.environ, "FTBUILD_CACHE": str(REPOSITORY / "cache"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def another_user() -> tuple[str, ...]:
    """Return what runs a command under another uid; with no rights but those of this user."""
    wrapper = ("unshare", "--user", "--map-user=4711", "--map-group=4711")
    try:
        done = subprocess.run([*wrapper, "id", "-u"], capture_output=True, text=True, check=False)
    except OSError:
        pytest.skip("`unshare` is not installed")
    if done.stdout != "4711\n":
        pytest.skip(f"the kernel forbids another uid: {done.stderr.strip()}")
    return wrapper


def outcomes(done: "subprocess.CompletedProcess[str]") -> dict[str, tuple[str, str | None]]:
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return {e["label"]: (e["outcome"], e.get("why")) for e in events if e["event"] == "verified"}


def elsewhere(home: Path) -> dict[str, str]:
    return {
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "de_DE.UTF-8",
        "TZ": "Asia/Kathmandu",
        "USER": "somebody",
        "HOME": str(home),
    }


def prove(tmp_path: Path, make: list[str], *targets: str) -> None:
    """Build in one place, and run the actions of `targets` again in another."""
    settings = [word for word in make if word in SHORT]
    done = run(workspace(tmp_path / "here"), "make", *make)
    assert done.returncode == 0, done.stderr
    there = workspace(tmp_path / "another place with spaces" / "x")
    user = another_user()
    verify = ["verify", "--json", "--only", *settings, *targets]
    done = run(there, *verify, before=user, **elsewhere(tmp_path))
    assert outcomes(done) == dict.fromkeys(targets, ("identical", None))


def test_all_of_it_with_short_trainings_is_identical_elsewhere(tmp_path: Path) -> None:
    prove(tmp_path, [*SHORT, "merged_model"], *TARGETS, *TRAINED)


def test_merged_model_is_identical_elsewhere(tmp_path: Path) -> None:
    prove(tmp_path, ["merged_model"], "merged_model")


def every_method(place: Path) -> Path:
    """Make a workspace with a target of each method that trains."""
    examples = REPOSITORY / "examples"
    shutil.copytree(METHODS, place)
    shutil.copy(examples / "grpo/reward.py", place)
    (place / "data").mkdir()
    for example, names in ROWS.items():
        for name in names:
            shutil.copy(examples / example / "data" / name, place / "data")
    return place


def test_each_method_is_identical_elsewhere(tmp_path: Path) -> None:
    """All are built and run again from nothing, also with another umask and hash seed."""
    store = {"FTBUILD_CACHE": str(tmp_path / "store")}
    done = run(every_method(tmp_path / "here"), "make", **store)
    assert done.returncode == 0, done.stderr
    there = every_method(tmp_path / "another place with spaces" / "x")
    shutil.copy(tmp_path / "here/FTBUILD.lock", there)
    before = (*another_user(), "sh", "-c", 'umask 077; exec "$@"', "sh")
    others = {**store, **elsewhere(tmp_path), "PYTHONHASHSEED": "7"}
    found = outcomes(run(there, "verify", "--json", before=before, **others))
    manifest = tomllib.loads((METHODS / "FTBUILD.toml").read_text())
    trained = {
        name for rule in (*TRAINING, "reference_logprobs", "merge") for name in manifest[rule]
    }
    assert {name: found[name] for name in trained} == dict.fromkeys(trained, ("identical", None))
