"""The CI files of examples/ci: their commands, run as the two jobs would run them."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.toy import MANIFEST, REPOSITORY, RULES
from ftbuild.signing import Signer

EXAMPLES = REPOSITORY / "examples" / "ci"
KEY = Signer(b"c" * 32)


class Job:
    """A job on a machine of its own: its commands, one after another, as its system runs them."""

    def __init__(self, place: Path, commands: list[str], variables: dict[str, Any]) -> None:
        self.place = place
        self.commands = commands
        self.variables = {name: str(value) for name, value in variables.items()}

    def run(self, **environment: str) -> str:
        tools = self.place / "bin"
        tools.mkdir()
        program = f'#!/bin/sh\nexec {sys.executable} -m ftbuild "$@"\n'
        (tools / "ftbuild").write_text(program)
        (tools / "ftbuild").chmod(0o755)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", "\n".join(self.commands)],
            cwd=self.place / "checkout",
            env={
                "PATH": f"{tools}:{os.environ['PATH']}",
                "HOME": str(self.place / "home"),
                "FTBUILD_CACHE": str(self.place / "store"),
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "rules")]),
                **self.variables,
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def github(place: Path, name: str) -> Job:
    workflow = yaml.safe_load((EXAMPLES / "github.yml").read_text())
    job = workflow["jobs"][name]
    steps = [step for step in job["steps"] if "run" in step and step["name"] != "Install"]
    variables = {**job.get("env", {})}
    for step in steps:
        variables |= step.get("env", {})
    return Job(place, [step["run"] for step in steps], variables)


def gitlab(place: Path, name: str) -> Job:
    jobs = yaml.safe_load((EXAMPLES / "gitlab.yml").read_text())
    job = jobs[f"models:{name}"]
    return Job(place, job["script"], job["variables"])


def check_out(place: Path) -> None:
    root = place / "checkout"
    for name, text in (
        ("FTBUILD.toml", f'{MANIFEST}\n[cache]\ntrusted_keys = ["{KEY.public}"]\n'),
        ("rules/text.py", RULES),
        ("data/raw.txt", "# a comment\nhello\nworld\n"),
        ("FTBUILD.lock", "version = 1\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("system", [github, gitlab])
def test_main_writes_and_a_pull_request_proves_what_it_reads(system: Any, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    for name in ("main", "change"):
        check_out(tmp_path / name)
    said = system(tmp_path / "main", "build").run(
        FTBUILD_REMOTE=str(remote), FTBUILD_SIGNING_KEY=KEY.to_text()
    )
    assert "built 3" in said
    assert list(remote.rglob("ac/*"))
    assert KEY.to_text() not in said

    before = sorted(remote.rglob("*"))
    said = system(tmp_path / "change", "check").run(FTBUILD_REMOTE=str(remote))
    assert "3 targets in 1 package: all is well" in said
    assert said.count("remote  ") == 3
    assert "identical 3" in said
    assert sorted(remote.rglob("*")) == before
    suite = ElementTree.parse(tmp_path / "change/checkout/verify.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")


def test_secrets_are_named_in_the_job_of_main_alone() -> None:
    jobs = yaml.safe_load((EXAMPLES / "github.yml").read_text())["jobs"]
    assert "secrets." not in str(jobs["check"])
    assert "secrets." in str(jobs["build"])


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_every_command_is_one_of_ours(name: str) -> None:
    from ftbuild.cli.main import COMMANDS

    text = (EXAMPLES / name).read_text()
    lines = [line.strip().removeprefix("- ").removeprefix("run: ") for line in text.splitlines()]
    commands = [line.split()[1] for line in lines if line.startswith("ftbuild ")]
    assert commands
    assert set(commands) <= set(COMMANDS)
    assert shutil.which("bash")
