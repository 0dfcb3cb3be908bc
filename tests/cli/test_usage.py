"""Wrong command lines, help, bugs, broken pipes, signals: what a user sees, and the code."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from cli.toy import REPOSITORY, Toy
from ftbuild.cli.failure import report
from ftbuild.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["mak"],
            "error[E0001]: there is no command `mak`\n  fix: did you mean `ftbuild make`?\n",
        ),
        (
            ["xyzzy"],
            "error[E0001]: there is no command `xyzzy`\n"
            "  fix: `ftbuild --help` lists the commands\n",
        ),
        (
            ["sync"],
            "error[E0001]: there is no command `sync`\n"
            "  fix: `ftbuild --help` lists the commands\n",
        ),
        (
            ["plan", "--bogus"],
            "error[E0020]: `ftbuild plan` does not take `--bogus`\n"
            "  fix: `ftbuild plan --help` lists what it takes\n",
        ),
        (
            ["plan", "--exit"],  # no abbreviations: a new flag must not change old scripts
            "error[E0020]: `ftbuild plan` does not take `--exit`\n"
            "  fix: `ftbuild plan --help` lists what it takes\n",
        ),
        (
            ["make", "-j", "0"],
            "error[E0020]: argument -j/--jobs: `0` is not a number of jobs\n"
            "  fix: `ftbuild make --help` lists what the command takes\n",
        ),
        (
            ["make", "-j"],
            "error[E0020]: argument -j/--jobs: expected one argument\n"
            "  fix: `ftbuild make --help` lists what the command takes\n",
        ),
        (
            ["inspect", "shout", "--row", "-1"],
            "error[E0020]: argument --row: `-1` is not a row number\n"
            "  fix: `ftbuild inspect --help` lists what the command takes\n",
        ),
        (
            ["gc", "--max-size", "much"],
            "error[E0020]: argument --max-size: `much` is not a size such as `200 GB`\n"
            "  fix: `ftbuild gc --help` lists what the command takes\n",
        ),
        (
            ["why"],
            "error[E0020]: the following arguments are required: TARGET\n"
            "  fix: `ftbuild why --help` lists what the command takes\n",
        ),
    ],
)
def test_wrong_command_lines(toy: Toy, args: list[str], message: str) -> None:
    done = toy.run(*args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FTBUILD_JOBS", "many", "a whole number from 1"),
        ("FTBUILD_COLOR", "blue", "one of auto, always, never"),
        ("FTBUILD_PROGRESS", "bar", "one of auto, plain, tty, none"),
    ],
)
def test_wrong_variables(toy: Toy, name: str, value: str, expected: str) -> None:
    done = toy.run("plan", env={name: value})
    assert (done.returncode, done.stderr) == (
        2,
        f"error[E0021]: the environment variable {name} is `{value}`\n"
        f"  fix: unset it, or make it {expected}\n",
    )


def test_a_flag_beats_its_variable(toy: Toy) -> None:
    done = toy.run("plan", "--color", "never", env={"FTBUILD_COLOR": "always"})
    assert "\x1b" not in done.stdout
    assert "\x1b[33mstale\x1b[0m" in toy.run("plan", env={"FTBUILD_COLOR": "always"}).stdout


def test_the_help_lists_the_commands_that_exist_and_no_others(toy: Toy) -> None:
    done = toy.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.search(r"commands:\n((?:  .*\n)+)", done.stdout)
    assert listed is not None
    names = [line.split()[0] for line in listed.group(1).splitlines()]
    assert names == list(COMMANDS)
    files = (REPOSITORY / "ftbuild" / "cli").glob("*.py")
    stems = {p.stem.rstrip("_") for p in files if "def arguments(" in p.read_text()}
    assert stems == set(COMMANDS)


def test_without_a_command_the_help_goes_to_stderr_and_the_code_is_2(toy: Toy) -> None:
    done = toy.run()
    assert (done.returncode, done.stdout, done.stderr) == (2, "", toy.run("--help").stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_ends_with_its_exit_status(toy: Toy, name: str) -> None:
    done = toy.run(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: ftbuild {name} ")
    assert re.search(r"\n\nexit status:\n(  .+\n)+$", done.stdout)
    assert toy.run("help", name).stdout == done.stdout


def test_outside_of_a_project_the_error_names_init(toy: Toy) -> None:
    (toy.root / "FTBUILD.toml").unlink()
    done = toy.run("plan")
    assert done.returncode == 2
    assert done.stderr.startswith("error[E0101]: ")
    assert "ftbuild init" in done.stderr
    assert "Traceback" not in done.stderr


BUG = """\
import sys
from ftbuild import project
from ftbuild.cli.main import app
def plan(self, names=()):
    raise ZeroDivisionError("secret sauce")
project.Project.plan = plan
sys.exit(app())
"""


def run_with_bug(toy: Toy, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BUG, *args],
        cwd=toy.root,
        env=toy.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_bug_of_ours_is_exit_70_with_a_report_and_no_traceback(toy: Toy) -> None:
    done = run_with_bug(toy, "plan", "--set", "shout.mark=hunter2", "--set=calm.mark=hunter2")
    assert (done.returncode, done.stdout) == (70, "")
    found = re.fullmatch(
        r"error: a bug in ftbuild: ZeroDivisionError: secret sauce\n"
        r"  --> (\S+/\.ftbuild/crash-\d{8}T\d{6}-\d+\.txt)\n"
        r"  fix: please report it and attach that file; read it first, it is short\n",
        done.stderr,
    )
    assert found is not None
    with open(found.group(1)) as file:
        report = file.read()
    assert "command: plan --set shout.mark=… calm.mark=…\n" in report
    assert report.endswith("ZeroDivisionError: secret sauce\n")
    assert "hunter2" not in report


def test_debug_shows_the_traceback(toy: Toy) -> None:
    done = run_with_bug(toy, "plan", "--debug")
    assert done.returncode == 70
    assert done.stderr.startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("args", [["rules"], ["plan", "--help"], ["make", "--json"]])
def test_a_broken_pipe_is_quiet(toy: Toy, args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        toy.command(*args),
        cwd=toy.root,
        env=toy.environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_exit_5(toy: Toy) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            toy.command("rules"),
            cwd=toy.root,
            env=toy.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        5,
        "error[E0660]: the disk is full\n"
        "  fix: free some space (`ftbuild gc` shrinks the store), then run the command again\n",
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "data/a\udcff.txt"),
            "error[E0661]: permission denied\n"
            "  --> data/a\\xff.txt\n"
            "  fix: look at who owns it, and at what may be written\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", 7),
            "error[E0661]: read-only file system\n"
            "  fix: look at who owns it, and at what may be written\n",
        ),
    ],
)
def test_what_the_machine_refuses_is_exit_5_and_no_bug(
    error: OSError, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, []) == 5
    assert capsys.readouterr().err == message


def test_closed_streams_are_no_bug(toy: Toy) -> None:
    for redirect, command, code in [("2>&-", "make", 0), (">&-", "plan", 0), ("2>&-", "mak", 2)]:
        line = f'exec "$@" {redirect}'
        done = subprocess.run(
            ["sh", "-c", line, "sh", *toy.command(command)],
            cwd=toy.root,
            env=toy.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, "", ""), line
    assert not list(toy.root.glob(".ftbuild/crash-*"))


def test_output_fits_any_encoding(toy: Toy) -> None:
    done = toy.run("graph", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (
        0,
        "shout loud\n\\u2514\\u2500 calm loud\n   \\u2514\\u2500 lines keep\n",
    )


@pytest.mark.fault("16", "a signal to a command that runs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_build_with_128_plus_its_number(toy: Toy, number: int) -> None:
    toy.write("FTBUILD.toml", '[project]\nname = "x"\n[command.wait]\nrun = "echo up; sleep 60"\n')
    process = subprocess.Popen(
        toy.command("make", "--json", "wait"),
        cwd=toy.root,
        env=toy.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if '"started"' in line:
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors == "error[E0702]: interrupted; finished targets are kept\n"
