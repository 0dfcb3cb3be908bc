"""Starting must cost nothing: what is not loaded when there is nothing to do."""

import subprocess
import sys
import time

import pytest

from cli.toy import Toy

FORBIDDEN = {
    *("argparse", "dataclasses", "importlib.metadata", "inspect", "json", "multiprocessing"),
    *("pydantic", "pyarrow", "rich", "subprocess", "tomllib", "torch", "transformers"),
    *("tree_sitter", "filelock", "argcomplete", "ftbuild.project", "ftbuild.manifest"),
}

PROBE = """\
import sys
before = set(sys.modules)  # what this Python loads on its own, with its .pth files
from ftbuild.cli.main import app
code = app(sys.argv[1:])
print(*sorted(set(sys.modules) - before))
sys.exit(code)
"""


def loaded(toy: Toy, *args: str) -> tuple[str, set[str]]:
    """Return what the command says and the modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args],
        cwd=toy.root,
        env=toy.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, modules = done.stdout.splitlines()
    return "\n".join([*said, *done.stderr.splitlines()]), set(modules.split())


def test_version_loads_none_of_the_engine(toy: Toy) -> None:
    said, modules = loaded(toy, "--version")
    assert said.startswith("ftbuild 0.")
    assert not modules & FORBIDDEN
    assert {name for name in modules if name.startswith("ftbuild")} == {
        "ftbuild",
        "ftbuild.cli",
        "ftbuild.cli.main",
    }


def build_until_settled(toy: Toy, *args: str) -> None:
    """Build until no file is so young that its stat could stay the same over a change."""
    deadline = time.monotonic() + 60
    while not (toy.root / ".ftbuild/fast.bin").exists():
        assert time.monotonic() < deadline
        assert toy.run(*args).returncode == 0


@pytest.mark.parametrize("args", [["make"], ["-C", ".", "make", "-j2", "shout", "-k"]])
def test_nothing_to_do_loads_no_parser_and_no_library(toy: Toy, args: list[str]) -> None:
    build_until_settled(toy, *args)
    said, modules = loaded(toy, *args)
    assert said.startswith("nothing to do (3 targets fresh, ")
    assert not modules & FORBIDDEN
    assert {name for name in modules if name.startswith("ftbuild")} == {
        "ftbuild",
        "ftbuild.cli",
        "ftbuild.cli.main",
        "ftbuild.fastpath",
    }


def test_a_wrong_flag_is_told_even_if_there_is_nothing_to_do(toy: Toy) -> None:
    build_until_settled(toy, "make")
    for wrong in (["-j", "x"], ["--color", "blue"], ["--profile"], ["--bogus"], ["-kz"]):
        done = toy.run("make", *wrong)
        assert done.returncode == 2, wrong
        assert done.stderr.startswith("error[E0"), wrong


@pytest.mark.parametrize(
    "args", [["plan"], ["why", "shout"], ["graph"], ["targets"], ["path", "shout"]]
)
def test_plain_output_needs_no_rich_and_asking_needs_no_ml(toy: Toy, args: list[str]) -> None:
    assert toy.run("make", "-q").returncode == 0
    _, modules = loaded(toy, *args)
    assert not modules & {"rich", "torch", "transformers", "pyarrow", "datasets", "numpy"}
