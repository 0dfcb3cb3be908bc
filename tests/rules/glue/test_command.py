"""`command`: what is run, what it sees, and what it refuses."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ftbuild.api import Command, Source, SourceFile, Variable
from ftbuild.digest import hash_file
from ftbuild.errors import RuleError
from ftbuild.kinds import File
from ftbuild.testing import artifact, context
from ftbuild_rules.glue.command import CommandInputs, CommandParams, command


def laid_out(folder: Path, files: dict[str, str]) -> Source:
    """Return a source as the engine lays it out: files below a folder of their own."""
    found = []
    for relative, text in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        found.append(SourceFile(path, relative, hash_file(path), f"data/{relative}"))
    return Source(tuple(found), "data")


def command_of(tmp_path: Path, run: str, **inputs: Any) -> Command:
    return command(context(tmp_path), CommandInputs(**inputs), CommandParams(run=run))


def output_of(command: Command) -> str:
    done = subprocess.run(
        ("/bin/sh", "-e", "-c", command.script),
        env=dict(command.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_file_is_given_by_its_path(tmp_path: Path) -> None:
    source = laid_out(tmp_path / "0", {"file.jsonl.gz": "hello"})
    made = command_of(tmp_path, 'cat "$text"', srcs={"text": source})
    assert made.environment == {"text": str(tmp_path / "0" / "file.jsonl.gz")}
    assert output_of(made) == "hello"


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": "1", "deep/b.txt": "2"},
        {"deep/b.txt": "2"},
        {"readme.txt": "1"},
        {"00000.txt": "1", "00001.txt": "2"},
    ],
)
def test_a_folder_and_a_list_are_given_by_their_folder(
    tmp_path: Path, files: dict[str, str]
) -> None:
    made = command_of(tmp_path, "true", srcs={"rows": laid_out(tmp_path / "0", files)})
    assert made.environment == {"rows": str(tmp_path / "0")}


def test_an_artifact_is_given_by_its_directory(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "f").write_text("x")
    deps = {"before": artifact(File, tmp_path / "made")}
    assert output_of(command_of(tmp_path, 'cat "$before/f"', deps=deps)) == "x"


def test_a_variable_that_is_not_set_stays_unset(tmp_path: Path) -> None:
    env = (Variable("TOKEN", "t"), Variable("EMPTY", ""), Variable("GONE", None))
    made = command_of(tmp_path, 'echo "$TOKEN${EMPTY+set}${GONE-unset}"', env=env)
    assert made.environment == {"TOKEN": "t", "EMPTY": ""}
    assert output_of(made) == "tsetunset\n"


def test_a_command_that_fails_in_the_middle_fails(tmp_path: Path) -> None:
    made = command_of(tmp_path, "false; echo too far")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        output_of(made)
    assert (caught.value.returncode, caught.value.stdout) == (1, "")


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    source = laid_out(tmp_path / "0", {"file.txt": ""})
    with pytest.raises(RuleError) as caught:
        command_of(tmp_path, "true", srcs={"x": source}, env=(Variable("x", None),))
    assert caught.value.render() == (
        "error[E0206]: `x` names a variable that another of `srcs`, `deps` and `env` sets\n"
        "  fix: give it another name; every variable of a command has one meaning"
    )


@pytest.mark.parametrize("name", ["out", "PATH", "HOME"])
def test_a_name_that_the_engine_sets_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuleError) as caught:
        command_of(tmp_path, "true", env=(Variable(name, "x"),))
    assert caught.value.render() == (
        f"error[E0206]: `{name}` names a variable that the engine sets\n"
        "  fix: give it another name; every variable of a command has one meaning"
    )


@pytest.mark.parametrize("name", ["a-b", "2x", "a=b", ""])
def test_a_name_that_no_shell_could_read_is_refused(tmp_path: Path, name: str) -> None:
    source = laid_out(tmp_path / "0", {"file.txt": ""})
    with pytest.raises(RuleError) as caught:
        command_of(tmp_path, "true", srcs={name: source})
    assert caught.value.render() == (
        f"error[E0206]: `{name}` cannot be the name of a variable\n"
        "  fix: a name has A-Z a-z 0-9 _ and does not begin with a digit"
    )
