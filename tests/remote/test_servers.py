"""Real servers: a folder, nginx, S3, Azure; and GCS and one as strict as bazel-remote, played."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.fault_report import report
from ftbuild.remote import address, opening
from remote.checkout import TAIL, Checkout, checkout
from remote_kit import AZURITE, NGINX, azure, gcs, nginx, s3, strict
from store_kit import contents, corrupt_blobs, records_without_bytes

KINDS = ["folder", "nginx", "s3", "azure", "gcs", "strict"]
ALL = ("clean", "big", "final")
DICE = '[project]\nname = "x"\n[command.dice]\nrun = "echo same > $out/a; date +%s%N > $out/b"\n'

Remote = tuple[str, dict[str, str]]
"""The address, and the environment in which it can be used."""


@contextmanager
def running(kind: str, tmp_path: Path) -> Iterator[Remote]:
    if kind == "folder":
        yield str(tmp_path / "remote"), {}
    elif kind == "nginx":
        if NGINX is None:
            pytest.skip("nginx is not installed")
        with nginx(tmp_path / "nginx") as server:
            yield server.url, {}
    elif kind == "s3":
        with s3() as environment:
            yield "s3://team/ft", environment
    elif kind == "azure":
        if AZURITE is None:
            pytest.skip("azurite is not installed")
        with azure() as environment:
            yield "az://team/ft", environment
    elif kind == "gcs":
        with gcs(tmp_path / "gcs") as environment:
            yield "gs://team/ft", environment
    else:
        with strict() as server:
            yield server.url, {}
            assert server.refusals == []


@pytest.fixture(params=KINDS)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    with running(request.param, tmp_path) as found:
        yield found


def team(tmp_path: Path, remote: Remote, names: str) -> list[Checkout]:
    return [checkout(tmp_path / name, *remote) for name in names]


def assert_whole(found: Checkout) -> None:
    """Hold that a store has only whole objects."""
    assert corrupt_blobs(found.store) == []
    assert records_without_bytes(found.store) == []


def test_second_checkout_builds_nothing_and_fetches_what_it_needs(
    tmp_path: Path, remote: Remote
) -> None:
    a, b = team(tmp_path, remote, "ab")
    assert a.make() == dict.fromkeys(ALL, "built")
    assert a.warnings() == []
    assert b.plan() == dict.fromkeys(ALL, "remote")
    assert b.make() == {"clean": "fresh", "big": "fresh", "final": "fetched"}
    assert b.summary().fetched_bytes == TAIL + 2  # `final` alone, and nothing of `big`
    assert b.digests() == a.digests()
    assert contents(b.output("final")) == contents(a.output("final"))
    assert os.access(b.output("final") / "s", os.X_OK)
    assert not b.output("big").exists()
    assert b.plan() == dict.fromkeys(ALL, "fresh")
    assert b.make() == dict.fromkeys(ALL, "fresh")
    assert b.warnings() == []
    assert_whole(b)


def test_an_edit_fetches_the_inputs_of_what_runs(tmp_path: Path, remote: Remote) -> None:
    a, b = team(tmp_path, remote, "ab")
    a.make()
    text = (b.root / "FTBUILD.toml").read_text()
    (b.root / "FTBUILD.toml").write_text(text.replace(str(TAIL), "1000"))
    assert b.make() == {"clean": "fresh", "big": "fresh", "final": "built"}
    assert b.output("final").joinpath("d/tail").stat().st_size == 1000
    assert_whole(b)


def test_push_and_pull(tmp_path: Path, remote: Remote) -> None:
    a, b = team(tmp_path, remote, "ab")
    url = a.environment.pop("FTBUILD_REMOTE")
    a.make()
    a.environment["FTBUILD_REMOTE"] = url
    assert b.plan()["clean"] == "stale"
    assert b.pull() == {"final": "missing"}
    assert a.push() == dict.fromkeys(ALL, "sent")
    assert a.push() == dict.fromkeys(ALL, "present")
    assert b.pull() == {"final": "fetched"}
    assert b.pull(everything=True) == {"final": "here", "clean": "fetched", "big": "fetched"}
    assert b.make("big", "final") == dict.fromkeys(ALL, "fresh")
    assert_whole(b)


def test_first_of_two_results_stays_and_the_second_is_told(tmp_path: Path, remote: Remote) -> None:
    a, b, c = team(tmp_path, remote, "abc")
    for found in (a, b, c):
        (found.root / "FTBUILD.toml").write_text(DICE)
    a.make("dice")
    first = a.digests()["dice"]
    b.make("dice", force=("dice",))
    assert b.digests()["dice"] != first
    [warning] = b.warnings()
    assert warning.startswith("`dice` is not deterministic: ")
    assert warning.endswith("has another result for the same key, which stays; different: `b`")
    assert b.push("dice") == {"dice": "different"}
    assert c.make("dice") == {"dice": "fetched"}
    assert c.digests()["dice"] == first
    report("39", "a second result for one key", fired=1, bad=0)


@pytest.mark.parametrize("kind", ["folder", "s3", "azure", "gcs"])
def test_of_twenty_writers_of_one_name_one_wins(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with running(kind, tmp_path) as (url, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        backend = opening._backend(address.parse(url, Path("/")))
        with ThreadPoolExecutor(20) as pool:
            won = list(pool.map(lambda n: backend.put("ac/x", b"%d" % n, only_new=True), range(20)))
        assert sum(won) == 1
        report("39", f"twenty writers of one record: {kind}", fired=20, bad=0)
        assert backend.get("ac/x", 9) == b"%d" % won.index(True)
        backend.close()
