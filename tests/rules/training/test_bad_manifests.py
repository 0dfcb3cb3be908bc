"""Trainings that `ftbuild check` refuses, each with all that a user reads.

`bad_manifests.txt` is the table: what is wrong, the target's table, the message. To all of them
`bad_manifests.toml` is what stands before.
"""

from pathlib import Path

import pytest

from ftbuild import graph, manifest
from ftbuild.errors import ManifestError
from ftbuild.registry import Registry

HERE = Path(__file__).parent
HEAD = (HERE / "bad_manifests.toml").read_text()
CASES = [case.split("\n", 1) for case in (HERE / "bad_manifests.txt").read_text().split("\n\n\n")]


def said(root: Path, table: str) -> str:
    """Return what is said about a workspace with this target."""
    (root / "FTBUILD.toml").write_text(HEAD + table)
    for name in ("chats", "pairs", "prompts"):
        (root / f"{name}.jsonl").touch()
    (root / "reward.py").write_text("def score(completions):\n    return [0.0]\n")
    (root / "model").mkdir()
    read = manifest.read(root, profile=None, overrides=[], everything=True)
    with pytest.raises(ManifestError) as caught:
        graph.build(read, Registry(root, read.project.rules))
    return caught.value.render()


@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_training_is_refused_by_check(tmp_path: Path, name: str, case: str) -> None:
    table, _, message = case.partition("\n\n")
    assert said(tmp_path, table + "\n") == message.rstrip("\n")


def test_what_stands_before_is_right(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception):  # no ManifestError
        said(tmp_path, "")


def test_there_is_no_torch_in_a_check() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from ftbuild_rules.training import dpo, grpo, kto, prm, sft; "
        "sys.exit(' '.join({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
