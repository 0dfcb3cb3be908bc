"""The quickstart follows from its sources, bit for bit: built once, then run again elsewhere.

Elsewhere is another folder, another user, another locale and another time zone, in a sandbox and
with nothing of what was cached. The short training stands for the two long ones, of which it
differs in nothing but its length.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHORT = ["--set", "helper.max_steps=2"]
TARGETS = ["smol", "chats", "chat_tokens", "preferences", "preference_tokens"]

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


def test_quickstart_is_identical_elsewhere(tmp_path: Path) -> None:
    here = workspace(tmp_path / "here")
    for args in (["merged_model"], [*SHORT, "helper"]):
        done = run(here, "make", *args)
        assert done.returncode == 0, done.stderr

    there = workspace(tmp_path / "another place with spaces" / "x")
    elsewhere = {
        "before": another_user(),
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "de_DE.UTF-8",
        "TZ": "Asia/Kathmandu",
        "USER": "somebody",
        "HOME": str(tmp_path),
    }
    done = run(there, "verify", "--json", "--only", *TARGETS, "merged_model", **elsewhere)
    assert outcomes(done) == dict.fromkeys([*TARGETS, "merged_model"], ("identical", None))
    done = run(there, "verify", "--json", "--only", *SHORT, "helper", **elsewhere)
    assert outcomes(done) == {"helper": ("identical", None)}
