"""The toy project as a fixture."""

import os
from pathlib import Path

import pytest

from cli.toy import MANIFEST, REPOSITORY, RULES, Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A fresh toy project with a store of its own; nothing of the caller's environment."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "FTBUILD_CACHE": str(tmp_path / "store"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "rules")]),
        "COLUMNS": "100",
        "LANG": "C.UTF-8",
    }
    project = Toy(tmp_path / "toy", environment)
    project.write("FTBUILD.toml", MANIFEST)
    project.write("rules/text.py", RULES)
    project.write("data/raw.txt", "# a comment\nhello\nworld\n")
    return project
