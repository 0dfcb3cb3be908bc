"""Where store and workspace lie: on other disks, on ones that may only be read, too deep."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fault_report import report
from faults.test_remote_kills import run
from faults.test_store_full_disk import mount, remount, unmount
from faults.test_store_power_cut import Disk, disk
from remote.checkout import Checkout, checkout
from store_kit import contents, corrupt_blobs, damage

__all__ = ["disk"]  # the fixture: an ext4, then an xfs


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "memory"
    if not mount(directory, "size=64m"):
        pytest.skip("mounting a tmpfs needs root")
    yield directory
    unmount(directory)


def test_store_on_another_file_system_than_the_workspace(memory: Path, tmp_path: Path) -> None:
    right = checkout(tmp_path / "right", "")
    right.make("final", "big")
    here = Checkout(checkout(tmp_path / "here", "").root, memory / "store")
    here.make("final", "big")
    assert os.stat(here.root).st_dev != os.stat(here.store).st_dev
    wrong = corrupt_blobs(here.store) + ["other"] * (here.digests() != right.digests())
    assert all(contents(here.output(t)) == contents(right.output(t)) for t in ("final", "big"))
    report("29", "a store on another file system", fired=1, bad=len(wrong))
    assert wrong == []


def test_store_that_may_only_be_read_is_a_layer_of_another(memory: Path, tmp_path: Path) -> None:
    full = Checkout(checkout(tmp_path / "full", "").root, memory / "store")
    full.make("big")
    remount(memory, "ro")
    here = checkout(tmp_path / "here", str(full.store))
    assert here.make("big", "final") == {"clean": "fresh", "big": "fetched", "final": "built"}
    alone = Checkout(checkout(tmp_path / "alone", "").root, full.store)
    done = run(alone, "make final")
    assert done.returncode == 5
    assert "error[E0652]: the store cannot be written: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    report("12", "a store that may only be read, in a whole build", fired=2, bad=0)
    remount(memory, "rw")


def test_writing_through_an_output_gives_nobody_wrong_bytes(disk: Disk, tmp_path: Path) -> None:
    """A large file is one inode in the store and in the output: what was written is noticed."""
    right = checkout(tmp_path / "right", "")
    right.make("final", "big")
    here = Checkout(checkout(tmp_path / "here", "").root, disk.mounted / "store")
    here.make("final", "big")
    fired, wrong = 0, []
    for target in ("big", "final"):
        for path in sorted(p for p in here.output(target).rglob("*") if p.stat().st_size):
            if path.is_dir():
                continue
            damage(path, b"planted")
            fired += 1
            here.make("final", "big", force=("final",) if target == "big" else ())
            wrong += [str(path)] * (here.digests() != right.digests())
            made, expected = (
                [contents(of.output(name)) for name in ("final", "big")] for of in (here, right)
            )
            wrong += [str(path)] * (made != expected)
            wrong += corrupt_blobs(here.store)
    report("30", f"a write through an output, on {disk.kind}", fired=fired, bad=len(wrong))
    assert fired == 4
    assert wrong == []


DEEP = """\
import os
for _ in range(30):
    os.mkdir('x' * 200)
    os.chdir('x' * 200)
open('f', 'w').write('1')
"""


def test_output_deeper_than_a_path_can_be_is_told_and_removed(tmp_path: Path) -> None:
    here = checkout(tmp_path / "here", "")
    (here.root / "deep.py").write_text(DEEP)
    text = '[project]\nname = "x"\n[command.deep]\nsrcs = { deep = "deep.py" }\n'
    text += f'run = "cd $out; {sys.executable} $deep"\n'
    (here.root / "FTBUILD.toml").write_text(text)
    done = run(here, "make deep")
    assert done.returncode == 1, done.stderr
    assert "error[E0714]: the output holds a path that is longer than 3,072 bytes" in done.stderr
    assert "Traceback" not in done.stderr
    left = subprocess.run(["du", "-a", here.store / "v1" / "tmp"], capture_output=True, text=True)
    assert "xxx" not in left.stdout
    report("28", "an output deeper than a path can be", fired=1, bad=0)


def test_workspace_deeper_than_a_path_can_be_is_told(tmp_path: Path) -> None:
    name = "y" * 200
    python = (
        "import os, subprocess, sys\n"
        f"for _ in range(25):\n    os.mkdir('{name}'); os.chdir('{name}')\n"
        "open('FTBUILD.toml', 'w').write('[project]\\nname = \"x\"\\n')\n"
        "sys.exit(subprocess.run([sys.executable, '-m', 'ftbuild', 'make']).returncode)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", python],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    subprocess.run(["rm", "-rf", name], cwd=tmp_path, check=True)
    assert done.returncode == 5, done.stderr
    assert "error[E0661]: a path of this workspace is longer than the system takes" in done.stderr
    report("28", "a workspace deeper than a path can be", fired=1, bad=0)
