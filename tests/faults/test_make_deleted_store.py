"""The store is deleted while a build runs: at worst an error in words; the next build is right."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faults.fault_report import report
from remote.checkout import checkout
from store_kit import contents, corrupt_blobs, records_without_bytes


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_store_deleted_after_an_event(tmp_path: Path, after: int) -> None:
    right = checkout(tmp_path / "right", "")
    right.make("final", "big")
    a = checkout(tmp_path / "a", "")
    environment = {**os.environ, **a.environment, "FTBUILD_CACHE": str(a.store)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "ftbuild", "make", "--json", "final", "big"]
    with subprocess.Popen(
        command, cwd=a.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(after):
            assert process.stdout.readline()
        shutil.rmtree(a.store, ignore_errors=True)
        process.stdout.read()
        said = process.stderr.read().decode()
        code = process.wait(60)
    a.make("final", "big")
    is_right = all(contents(a.output(t)) == contents(right.output(t)) for t in ("final", "big"))
    harm = corrupt_blobs(a.store) + records_without_bytes(a.store)
    bad = not is_right or bool(harm) or "Traceback" in said or code not in (0, 1, 5)
    report("13", "the store is deleted after an event of a build", fired=1, bad=bad)
    assert not bad, (code, said, harm)
