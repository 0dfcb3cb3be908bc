"""A fetch of a large file that was broken off goes on where it ended, and believes nothing."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.remote.backend import Data, RemoteError, Want
from ftbuild.remote.folder import Folder
from remote.checkout import Checkout, checkout
from store_kit import contents, corrupt_blobs, flip_bit, truncate

SIZE = 48 << 20
MANIFEST = f"""\
[project]
name = "large"
[command.large]
run = "yes large | head -c {SIZE} | openssl enc -aes-128-ctr -K 00 -iv 00 > $out/large"
"""


def project(place: Path, remote: Path) -> Checkout:
    found = checkout(place, str(remote))
    (found.root / "FTBUILD.toml").write_text(MANIFEST)
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, Path]:
    place = tmp_path_factory.mktemp("shared")
    a = project(place / "a", place / "remote")
    assert a.make("large") == {"large": "built"}
    return a, place / "remote"


class Limited:
    """Lets a folder give so many bytes, and then nothing; counts what is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 60
        self.got = 0
        self._lock = threading.Lock()
        real = Folder.get_all

        def get_all(folder: Folder, wants: Sequence[Want]) -> list[Data | None]:
            found = real(folder, wants)
            size = sum(len(data) for data in found if data is not None)
            with self._lock:
                self.left -= size
                if self.left < 0:
                    raise RemoteError("it is gone", is_down=True)
                self.got += size
            return found

        monkeypatch.setattr(Folder, "get_all", get_all)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Limited:
    return Limited(monkeypatch)


def partials(found: Checkout) -> list[Path]:
    return list((found.store / "v1" / "partial").glob("*"))


def broken_off(tmp_path: Path, remote: Path, limited: Limited) -> tuple[Checkout, Path]:
    """Return a checkout with some 30 of the 48 MiB, and the file that has them."""
    b = project(tmp_path / "b", remote)
    limited.left = 40 << 20
    with pytest.raises(Exception, match="cannot be used"):
        b.pull("large")
    limited.left = 1 << 60
    [path] = partials(b)
    assert 8 << 20 < path.stat().st_size < SIZE
    limited.got = 0
    return b, path


def test_pull_goes_on_where_it_broke_off(
    tmp_path: Path, shared: tuple[Checkout, Path], limited: Limited
) -> None:
    a, remote = shared
    b, path = broken_off(tmp_path, remote, limited)
    had = path.stat().st_size
    assert b.pull("large") == {"large": "fetched"}
    assert limited.got < SIZE - had + (1 << 20)
    assert partials(b) == []
    b.make("large")
    assert contents(b.output("large")) == contents(a.output("large"))


@pytest.mark.parametrize("harm", ["first byte", "in the middle", "cut", "longer", "empty"])
def test_damaged_beginning_is_kept_as_far_as_it_is_right(
    tmp_path: Path, shared: tuple[Checkout, Path], limited: Limited, harm: str
) -> None:
    a, remote = shared
    b, path = broken_off(tmp_path, remote, limited)
    had = path.stat().st_size
    if harm == "cut":
        truncate(path, had // 2)
    elif harm == "empty":
        truncate(path, 0)
    elif harm == "longer":
        with path.open("ab") as file:
            file.write(b"x" * 1_000_000)
    else:
        flip_bit(path, 0 if harm == "first byte" else had * 4)
    assert b.pull("large") == {"large": "fetched"}
    is_useful = {"in the middle": True, "cut": True, "longer": True}.get(harm, False)
    assert (limited.got < SIZE - had // 2 + (1 << 20)) is is_useful
    assert corrupt_blobs(b.store) == []
    b.make("large")
    assert contents(b.output("large")) == contents(a.output("large"))
    report("38", "a damaged beginning of a fetch that was broken off", fired=1, bad=0)


def test_without_hashing_a_damaged_beginning_would_pass_for_a_lie_of_the_server(
    tmp_path: Path, shared: tuple[Checkout, Path], limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    import hashlib

    from ftbuild.store import layout, partial

    def believing(
        where: layout.Layout, digest: str, pieces: Sequence[tuple[str, int]], own: str
    ) -> partial.Partial | None:
        path = partial.name(own, digest)  # type: ignore[arg-type]
        os.rename(where.partial(digest), path)  # type: ignore[arg-type]
        data, count, size = Path(path).read_bytes(), 0, 0
        while size < len(data):
            size, count = size + pieces[count][1], count + 1
        return partial.Partial(path, hashlib.sha256(data), count)

    _, remote = shared
    b, path = broken_off(tmp_path, remote, limited)
    flip_bit(path, 0)
    monkeypatch.setattr(partial, "claim", believing)
    is_red = b.pull("large") != {"large": "fetched"}
    report("38", "a damaged beginning of a fetch that was broken off", control_red=is_red)
    assert is_red


def test_killed_pull_goes_on_where_it_was(
    tmp_path: Path, shared: tuple[Checkout, Path], limited: Limited
) -> None:
    a, remote = shared
    b = project(tmp_path / "b", remote)
    environment = {**os.environ, **b.environment, "FTBUILD_CACHE": str(b.store)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "pull", "large"], cwd=b.root, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert b.pull("large") == {"large": "fetched"}
    assert limited.got < SIZE - (10 << 20)
    b.make("large")
    assert contents(b.output("large")) == contents(a.output("large"))


KILLED = """\
import os, sys
from ftbuild.cli.main import app
from ftbuild.store import disk
real, written = disk._write, []

def write(descriptor, batch):
    real(descriptor, batch)
    written.append(sum(map(len, batch)))
    if sum(written) > 12 << 20:
        os.kill(os.getpid(), 9)

disk._write = write
app(sys.argv[1:])
"""


def test_interrupted_make_of_two_files_gives_back_what_it_did_not_use(
    tmp_path: Path, shared: tuple[Checkout, Path], limited: Limited
) -> None:
    _, remote = shared
    b, path = broken_off(tmp_path, remote, limited)
    size = path.stat().st_size
    limited.left = 1  # the record comes by another way; no object does
    with pytest.raises(Exception, match="cannot be used"):
        b.pull("large")
    [again] = partials(b)
    assert again.stat().st_size == size
