"""The command line without a project: what is found before any command's module is loaded."""

import pytest

from ftbuild.cli.flags import module_of
from ftbuild.cli.main import COMMANDS, split, walk


@pytest.mark.parametrize(
    ("args", "command", "rest"),
    [
        (["make", "a", "b"], "make", ["a", "b"]),
        (["-C", "dir", "make", "a"], "make", ["-C", "dir", "a"]),
        (["-Cmake", "plan"], "plan", ["-Cmake"]),
        (["--set", "a.b=1", "--set=c.d=2", "plan"], "plan", ["--set", "a.b=1", "--set=c.d=2"]),
        (["-kj4", "make"], "make", ["-kj4"]),
        (["-kj", "4", "make"], "make", ["-kj", "4"]),
        (["--json", "plan", "--exit-code"], "plan", ["--json", "--exit-code"]),
        (["--", "plan"], "plan", ["--"]),
        (["--help"], None, ["--help"]),
        ([], None, []),
    ],
)
def test_flags_stand_before_and_after_the_command(
    args: list[str], command: str | None, rest: list[str]
) -> None:
    assert split(args) == (command, rest)


def test_words_behind_two_dashes_are_no_flags() -> None:
    assert [(flag, value) for _, flag, value in walk(["-k", "--", "-j", "x"])] == [
        ("-k", ""),
        ("", "-j"),
        ("", "x"),
    ]


def test_every_command_of_the_help_exists() -> None:
    for name in COMMANDS:
        module = module_of(name)
        assert callable(module.run)
        assert callable(module.arguments)
        assert "\n\nExit status:\n  0 " in (module.__doc__ or "")
