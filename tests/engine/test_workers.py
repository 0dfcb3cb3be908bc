"""Children of a build: how they are started, heard, waited for and ended."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.space import REPOSITORY, has_ended
from ftbuild.errors import MachineError
from ftbuild.workers import Exit, Workers

RULES = """\
import os, signal, subprocess, sys, time
from pathlib import Path
from ftbuild.api import Context, File, Inputs, Params, rule

class NoInputs(Inputs):
    pass

class DoParams(Params):
    python: str

@rule(output=File)
def do(ctx: Context, inputs: NoInputs, params: DoParams) -> None:
    exec(params.python)
"""
FACTS = {
    "name": "do", "version": 1, "source": None, "pins": [], "parts": {}, "runs": "worker",
    "cpus": "one", "gpus": 0, "preload": [], "module": "_ftbuild_project_x", "file": "do.py",
    "files": [], "is_reproducible": True,
}  # fmt: skip


class Bench:
    """Workers, and a rule that does what it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard: list[dict[str, Any]] = []
        self.started = 0
        (folder / "do.py").write_text(RULES)
        self.workers = Workers(self.environment, folder)

    def environment(self) -> dict[str, str]:
        self.started += 1
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "rules"), *sys.path])
        return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "TOY": "kept"}

    def do(self, python: str, *, preload: tuple[str, ...] = (), name: str = "a") -> Exit:
        """Run a line of Python as an action."""
        place = self.folder / name
        for folder in ("out", "work", "scratch"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        document = {
            "rule": FACTS, "root": str(self.folder), "params": {"python": python}, "inputs": {},
            "document": {"inputs": {}, "sources": {}}, "out": str(place / "out"),
            "work": str(place / "work"), "scratch": str(place / "scratch"), "cpus": 1,
            "environment": {"HOME": str(place / "work")}, "store": str(self.folder / "store"),
            "statcache": str(self.folder / "stat"), "known": {},
        }  # fmt: skip
        action = place / "action.json"
        action.write_text(json.dumps(document))
        with (place / "log").open("wb") as log:
            return self.workers.run_worker(str(action), preload, log.fileno(), self.heard.append)

    def log(self, name: str = "a") -> str:
        return (self.folder / name / "log").read_text()

    def text(self, file: str, name: str = "a") -> str:
        return (self.folder / name / "out" / file).read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.workers.close()
    assert psutil.Process().children(recursive=True) == []


def run(bench: Bench, command: str, **environment: str) -> Exit:
    with (bench.folder / "log").open("wb") as log:
        return bench.workers.run_script(command, environment, str(bench.folder), log.fileno())


def test_command_sees_its_environment_alone_and_runs_in_its_folder(bench: Bench) -> None:
    end = run(bench, 'echo "$A-$HOME" $(pwd); cat', A="1")
    assert end.status == 0
    assert (bench.folder / "log").read_text() == f"1- {bench.folder}\n"
    assert bench.started == 0  # no warm parent for it


def test_exit_of_a_command(bench: Bench) -> None:
    assert run(bench, "exit 3").status == 3
    assert run(bench, "kill -9 $$").status == -signal.SIGKILL
    assert run(bench, "true").max_rss_bytes > 500_000


def test_command_too_long_for_the_system(bench: Bench) -> None:
    with pytest.raises(MachineError) as caught:
        run(bench, "true", A="x" * (1 << 20))
    assert caught.value.render() == (
        "error[E0705]: `/bin/sh` cannot be started: Argument list too long"
    )


def test_command_is_ended_by_a_pipe_that_nobody_reads(bench: Bench) -> None:
    assert run(bench, "yes | head -1").status == 0
    assert (bench.folder / "log").read_text() == "y\n"


def test_worker_says_that_it_is_done(bench: Bench) -> None:
    end = bench.do("ctx.progress(1, 2, loss=0.5); ctx.warn('hm'); ctx.facts(rows=3); print('hi')")
    assert end.status == 0
    assert bench.heard == [
        {"progress": {"step": 1, "steps": 2, "metrics": {"loss": 0.5}}},
        {"warning": "hm"},
        {"done": {"adopted": {}, "facts": {"rows": 3}, "fragments": None}},
    ]
    assert bench.log() == "warning: hm\nhi\n"


def test_exception_is_told_and_its_traceback_is_in_the_log(bench: Bench) -> None:
    assert bench.do("raise KeyError('x')").status == 1
    [failed] = bench.heard
    assert [(p["code"], p["what"]) for p in failed["failed"]] == [("E0701", "KeyError: 'x'")]
    assert bench.log().startswith("Traceback (most recent call last):\n")


def test_what_was_printed_before_a_kill_is_in_the_log(bench: Bench) -> None:
    end = bench.do("print('last words'); os.kill(os.getpid(), signal.SIGKILL)")
    assert (end.status, bench.log()) == (-signal.SIGKILL, "last words\n")


def test_peak_memory_is_that_of_the_worker(bench: Bench) -> None:
    small = bench.do("pass", name="small").max_rss_bytes
    large = bench.do("x = b'1' * (200 << 20)", name="large").max_rss_bytes
    assert 190 << 20 < large - small < 260 << 20


def test_parent_is_started_once_and_warm(bench: Bench) -> None:
    """The second worker finds the module imported, by the parent of both."""
    line = "(ctx.out / 'f').write_text(f'{os.getppid()} {\"wave\" in sys.modules}')"
    bench.do(line, name="one")
    bench.do(line, preload=("wave",), name="two")
    bench.do(line, name="three")
    (parent, before), (same, after), (last, still) = (
        bench.text("f", name).split() for name in ("one", "two", "three")
    )
    assert parent == same == last
    assert (before, after, still) == ("False", "True", "True")
    assert bench.started == 1


def test_broken_preload_is_left_to_the_worker(bench: Bench) -> None:
    assert bench.do("import no_such_module", preload=("no_such_module",)).status == 1
    assert bench.heard[0]["failed"][0]["what"].startswith("ModuleNotFoundError")


def test_worker_leaves_nothing_to_the_next(bench: Bench) -> None:
    bench.do("os.environ['X'] = '1'; import wave; os.chdir('/')", name="one")
    line = "(ctx.out / 'f').write_text(f'{\"X\" in os.environ} {\"wave\" in sys.modules}')"
    bench.do(line + "; (ctx.out / 'cwd').write_text(os.getcwd())", name="two")
    assert bench.text("f", "two") == "False False"
    assert bench.text("cwd", "two") == str(bench.folder / "two" / "work")


def test_worker_reads_nothing_and_has_a_session_of_its_own(bench: Bench) -> None:
    line = "(ctx.out / 'f').write_text(repr((sys.stdin.read(), os.getsid(0) == os.getpid())))"
    bench.do(line)
    assert bench.text("f") == "('', True)"


def test_what_a_worker_leaves_running_is_ended(bench: Bench) -> None:
    bench.do("p = subprocess.Popen(['sleep', '60']); (ctx.out / 'pid').write_text(str(p.pid))")
    assert has_ended(int(bench.text("pid")))


def test_two_workers_at_once_hear_each_their_own(bench: Bench) -> None:
    """Each waits for the file that the other writes."""
    line = (
        "Path({mine!r}).touch()\n"
        "while not Path({other!r}).exists(): time.sleep(0.01)\n"
        "sys.exit({status})"
    )
    one, two = str(bench.folder / "1"), str(bench.folder / "2")
    ends: dict[str, Exit] = {}

    def act(name: str, mine: str, other: str, status: int) -> None:
        python = line.format(mine=mine, other=other, status=status)
        ends[name] = bench.do(f"os._exit({status}) if False else exec({python!r})", name=name)

    threads = [
        threading.Thread(target=act, args=("one", one, two, 0)),
        threading.Thread(target=act, args=("two", two, one, 0)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {name: end.status for name, end in ends.items()} == {"one": 70, "two": 70}


def test_stop_ends_all_that_runs_and_all_that_starts(bench: Bench) -> None:
    ends: list[Exit] = []
    waiting = [
        threading.Thread(target=lambda: ends.append(run(bench, "echo > started; sleep 60"))),
        threading.Thread(
            target=lambda: ends.append(
                bench.do("Path('../../begun').touch(); time.sleep(60)", name="slow")
            )
        ),
    ]
    for thread in waiting:
        thread.start()
    signs = [bench.folder / "started", bench.folder / "begun"]
    waiter = threading.Event()
    while not all(sign.exists() for sign in signs):
        waiter.wait(0.01)
    bench.workers.stop()
    for thread in waiting:
        thread.join(30)
    assert [end.status for end in ends] == [-signal.SIGKILL] * 2
    assert run(bench, "sleep 60").status == -signal.SIGKILL


def test_dead_parent_is_a_clear_error(bench: Bench) -> None:
    with pytest.raises(MachineError) as caught:
        bench.do("os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    assert caught.value.render() == (
        "error[E0706]: the process that forks the workers died\n"
        "  why: the machine ran out of memory, or somebody ended it\n"
        "  fix: run the build again; what was finished is kept"
    )
    with pytest.raises(MachineError):
        bench.do("pass", name="next")


def test_workers_die_with_their_engine(bench: Bench, tmp_path: Path) -> None:
    """A copy of this bench in a process of its own is killed in the middle of an action."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom engine.test_workers import Bench\n"
        "Bench(Path(sys.argv[1])).do("
        '"print(os.getpid(), os.getppid(), flush=True); time.sleep(60)")\n'
    )
    place = tmp_path / "place"
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    engine = psutil.Popen([sys.executable, str(script), str(place)], env=environment)
    log, waiter = place / "a" / "log", threading.Event()
    while not log.exists() or not log.read_text().endswith("\n"):
        waiter.wait(0.01)
    family = [int(pid) for pid in log.read_text().split()]
    engine.kill()
    engine.wait()
    assert all(has_ended(pid) for pid in family)
