"""A build that ends too early, by a kill, a signal or beside another one, and the next build."""

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from engine.space import Space, blobs_of, has_ended
from faults.fault_report import report
from store_kit import corrupt_blobs, records_without_bytes

CHAIN = """\
[command.first]
srcs = {{ raw = "raw.txt" }}
run = "echo first >> {folder}/ran; cat $raw > $out/f"

[command.slow]
deps = {{ first = "first" }}
run = '''
echo slow >> {folder}/ran
echo half > $out/f
echo > {folder}/started
while ! test -e {folder}/go; do sleep 0.02; done
cat $first/f > $out/f
'''

[command.last]
deps = {{ slow = "slow" }}
run = "echo last >> {folder}/ran; cat $slow/f $slow/f > $out/f"
"""
SLEEPER = """\
from ftbuild.api import Context, File, Inputs, Params, Source, rule
import subprocess, time

class SleepInputs(Inputs):
    source: Source

class SleepParams(Params):
    started: str

@rule(output=File, version=1)
def sleeps(ctx: Context, inputs: SleepInputs, params: SleepParams) -> None:
    child = subprocess.Popen(["sleep", "60"])
    (ctx.scratch / "checkpoint").write_text("half")
    open(params.started, "w").write(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def chain(space: Space, tmp_path: Path) -> Space:
    """Three commands; the second waits for the file `go`, and says `started`."""
    space.manifest(CHAIN.format(folder=tmp_path))
    space.write("raw.txt", "hello\n")
    return space


def ran(tmp_path: Path) -> list[str]:
    return (tmp_path / "ran").read_text().split()


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    waiter = threading.Event()
    while not path.exists():
        assert process.poll() is None, process.communicate()
        waiter.wait(0.01)


def wait_for_lease(process: "subprocess.Popen[str]") -> str:
    """Read until the build says that another one has what it needs; return what was read."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if '"event": "waiting"' in line:
            return read
    raise AssertionError(read)


def digests(space: Space) -> dict[str, str]:
    links = (space.root / "ftbuild-out").iterdir()
    return {link.name: os.path.basename(os.readlink(link)) for link in links}


def test_killed_build_leaves_no_half_artifact_and_what_is_finished(
    chain: Space, tmp_path: Path
) -> None:
    process = chain.start("make")
    wait_for(tmp_path / "started", process)
    process.kill()
    process.communicate()
    assert not chain.output("slow").exists()
    assert b"half\n" not in [blob.read_bytes() for blob in blobs_of(chain.store)]
    (tmp_path / "go").touch()
    assert chain.make() == ["slow", "last"]
    assert ran(tmp_path) == ["first", "slow", "slow", "last"]
    assert chain.text("last", "f") == "hello\nhello\n"
    assert corrupt_blobs(chain.store) == records_without_bytes(chain.store) == []
    # An undisturbed build elsewhere gives the same trees.
    other = Space(tmp_path / "other", tmp_path / "other-store")
    other.manifest(CHAIN.format(folder=tmp_path))
    other.write("raw.txt", "hello\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTBUILD_CACHE", str(other.store))
        assert other.make() == ["first", "slow", "last"]
    assert digests(other) == digests(chain)


def test_private_folders_of_a_killed_build_are_removed(chain: Space, tmp_path: Path) -> None:
    process = chain.start("make")
    wait_for(tmp_path / "started", process)
    process.kill()
    process.communicate()
    assert len(list((chain.store / "v1/tmp").iterdir())) == 1
    (tmp_path / "go").touch()
    chain.make()
    assert list((chain.store / "v1/tmp").iterdir()) == []
    assert list((chain.store / "v1/pending").iterdir()) == []


def test_scratch_survives_kills_until_the_action_is_done(space: Space) -> None:
    """Each run gets one step further and is then killed, as many times as there are lines."""
    space.manifest('[trouble.t]\nsource = "raw.txt"\nhow = "checkpoint"\n', toys=True)
    space.write("raw.txt", "1\n2\n3\n")
    scratch = space.store / "v1" / "scratch"
    for _ in range(3):
        assert space.build().failed == ("t",)
        assert len(list(scratch.iterdir())) == 1
    assert space.make() == ["t"]
    assert space.text("t", "steps") == "xxx"
    assert list(scratch.iterdir()) == []


def test_scratch_belongs_to_one_key(space: Space) -> None:
    space.manifest('[trouble.t]\nsource = "raw.txt"\nhow = "checkpoint"\n', toys=True)
    space.write("raw.txt", "1\n")
    assert space.build().failed == ("t",)
    space.write("raw.txt", "2\n")
    assert space.build().failed == ("t",)  # another key begins anew
    assert len(list((space.store / "v1/scratch").iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signal_ends_a_build_and_all_its_children(
    chain: Space, tmp_path: Path, number: int, status: int
) -> None:
    process = chain.start("make", "--json")
    wait_for(tmp_path / "started", process)
    children = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
    assert children
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert '"event": "finished", "label": "first", "outcome": "built"' in out
    assert all(has_ended(pid) for pid in children)
    assert "error[E0702]: interrupted; finished targets are kept\n" in err
    assert "Traceback" not in err
    (tmp_path / "go").touch()
    assert chain.make() == ["slow", "last"]
    assert ran(tmp_path) == ["first", "slow", "slow", "last"]
    report("16", f"{signal.Signals(number).name} during a build", fired=1, bad=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_worker_ends_with_its_build_however_that_ends(
    space: Space, tmp_path: Path, number: int
) -> None:
    """The warm parent, the worker and the worker's own child; its checkpoint stays."""
    space.write("rules/sleeps.py", SLEEPER)
    space.write(
        "FTBUILD.toml",
        '[project]\nrules = ["rules/sleeps.py"]\n\n[sleeps.s]\nsource = "raw.txt"\n'
        f'started = "{tmp_path}/started"\n',
    )
    space.write("raw.txt", "")
    process = space.start("make")
    wait_for(tmp_path / "started", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3
    process.send_signal(number)
    process.communicate(timeout=30)
    assert all(has_ended(child.pid) for child in family)
    [checkpoint] = (space.store / "v1/scratch").glob("*/checkpoint")
    assert checkpoint.read_text() == "half"


def test_command_ends_with_a_build_that_is_killed(chain: Space, tmp_path: Path) -> None:
    """The shell of the command, and what it runs: `sleep`, again and again."""
    process = chain.start("make")
    wait_for(tmp_path / "started", process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert len(family) >= 2
    psutil.wait_procs(family, timeout=10)
    assert all(has_ended(child.pid) for child in family)


def test_interrupt_is_at_once_while_waiting_for_another_build(chain: Space, tmp_path: Path) -> None:
    """The second build waits for the lease of the first, and says so."""
    first = chain.start("make")
    wait_for(tmp_path / "started", first)
    second = chain.start("make", "--json")
    wait_for_lease(second)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=3)
    assert second.returncode == 130
    (tmp_path / "go").touch()
    first.communicate(timeout=30)
    assert first.returncode == 0


@pytest.mark.parametrize("is_shared", [True, False], ids=["one workspace", "two workspaces"])
def test_two_builds_at_once_run_each_step_once(
    chain: Space, tmp_path: Path, is_shared: bool
) -> None:
    other = chain
    if not is_shared:
        other = Space(tmp_path / "clone", chain.store)
        other.manifest(CHAIN.format(folder=tmp_path))
        other.write("raw.txt", "hello\n")
    first = chain.start("make", "--json")
    wait_for(tmp_path / "started", first)
    second = other.start("make", "--json")
    before = {first: "", second: wait_for_lease(second)}
    (tmp_path / "go").touch()
    outcomes = []
    for process, read in before.items():
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        outcomes.append(re.findall(r'"outcome": "(\w+)"', read + out))
    assert sorted(ran(tmp_path)) == ["first", "last", "slow"]
    # What one built is fresh for the other.
    assert [sorted(pair) for pair in zip(*outcomes, strict=True)] == [["built", "fresh"]] * 3
    assert chain.text("last", "f") == other.text("last", "f") == "hello\nhello\n"


def test_four_builds_at_once_run_each_step_once(chain: Space, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    processes = [chain.start("make", "-q") for _ in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert ran(tmp_path) == ["first", "slow", "last"]
    assert chain.text("last", "f") == "hello\nhello\n"
    assert corrupt_blobs(chain.store) == records_without_bytes(chain.store) == []


def test_build_that_waited_takes_over_when_the_other_is_killed(
    chain: Space, tmp_path: Path
) -> None:
    first = chain.start("make")
    wait_for(tmp_path / "started", first)
    second = chain.start("make", "--json")
    wait_for_lease(second)
    first.kill()
    first.communicate()
    (tmp_path / "go").touch()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert ran(tmp_path) == ["first", "slow", "slow", "last"]
