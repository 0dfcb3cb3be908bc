"""Completion, asked as a shell asks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.toy import Toy


def completions(toy: Toy, line: str) -> set[str]:
    """Return what the shell is offered for `line`, as argcomplete's protocol passes it on."""
    answer = toy.root.parent / "answer"
    subprocess.run(
        [sys.executable, "-m", "ftbuild"],
        cwd=toy.root,
        env=toy.environment
        | {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        },
        check=True,
        capture_output=True,
    )
    return {word.strip() for word in answer.read_text().split("\n")}


def test_commands(toy: Toy) -> None:
    assert completions(toy, "ftbuild pl") == {"plan"}
    assert completions(toy, "ftbuild -C . in") == {"inspect", "init"}


def test_flags(toy: Toy) -> None:
    assert completions(toy, "ftbuild plan --ex") == {"--exit-code"}
    assert completions(toy, "ftbuild make --keep") == {"--keep-going"}
    assert completions(toy, "ftbuild graph --format mer") == {"mermaid"}


def test_targets_of_the_project(toy: Toy) -> None:
    assert completions(toy, "ftbuild make ") >= {"lines", "calm", "shout"}
    assert completions(toy, "ftbuild why sh") == {"shout"}
    assert completions(toy, "ftbuild make lines ca") == {"calm"}


def test_targets_of_another_folder(toy: Toy) -> None:
    toy.root.rename(toy.root.parent / "elsewhere")
    toy.root.mkdir()
    assert completions(toy, "ftbuild -C ../elsewhere why sh") == {"shout"}
    assert completions(toy, "ftbuild why -C ../elsewhere sh") == {"shout"}
    assert completions(toy, "ftbuild why sh") == {""}


def test_a_wrong_manifest_offers_nothing_and_says_nothing(toy: Toy) -> None:
    toy.write("FTBUILD.toml", "[project\n")
    assert completions(toy, "ftbuild why sh") == {""}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_hook(toy: Toy, shell: str) -> None:
    done = toy.run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ftbuild" in done.stdout
    unknown = toy.run("completion", "tcsh")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_the_hook_works_in_a_real_bash(toy: Toy) -> None:
    command = Path(sys.executable).with_name("ftbuild")
    bash = shutil.which("bash")
    if bash is None or not command.exists():
        pytest.skip("bash, or the command ftbuild, is not installed")
    script = (
        'eval "$(ftbuild completion bash)"; COMP_LINE="ftbuild why sh"; COMP_POINT=14; '
        "COMP_WORDS=(ftbuild why sh); COMP_CWORD=2; COMP_TYPE=9; "
        '_python_argcomplete ftbuild; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = os.pathsep.join([str(command.parent), toy.environment["PATH"]])
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        cwd=toy.root,
        env=toy.environment | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "shout"
