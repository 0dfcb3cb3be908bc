"""Models and rows from servers, through the whole build: what broke off is gone on with."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import file_server
from engine.space import Space, new_space
from file_server import COMMIT, FileServer, cut, honest, serve_model, whole
from ftbuild.sources import download
from tiny_models import make_model

MANIFEST = """\
[base_model.smol]
source = "hf:org/smol"

[base_model.again]
source = "hf:org/smol"
chat_template = "chatml"

[dataset.rows]
source = "{url}/rows.jsonl"
format = "text"
"""
SHARD = "model-00002-of-00003.safetensors"
PLACE = f"/org/smol/resolve/{COMMIT}/{SHARD}"


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    with new_space(tmp_path) as made:
        yield made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    constants = pytest.importorskip("huggingface_hub.constants")
    with file_server.serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(download, "PAUSES_S", ())
        yield running


def test_model_and_rows_come_whole_from_servers_that_break_off(
    space: Space, hub: FileServer, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) == 3
    serve_model(hub, "org/smol", files, [n for n in files if n.endswith(".safetensors")])
    rows = b"".join(b'{"text": "row %d"}\n' % number for number in range(20_000))
    hub.gives("/rows.jsonl", cut(rows, 100_000, etag='"1"'), honest(rows, etag='"1"'))
    half = len(files[SHARD]) // 2
    hub.gives(PLACE, cut(files[SHARD], half))
    space.manifest(MANIFEST.format(url=hub.url))

    assert space.build("smol", "rows").exit_code == 5
    assert (error := space.finished("smol").error) is not None
    assert error.startswith(
        "error[E0421]: the hub does not give `hf:org/smol`\n"
        f"  why: {SHARD}: {len(files[SHARD]):,} bytes were announced and {half:,} came\n"
    )
    assert not space.output("smol").exists()

    hub.gives(PLACE, honest(files[SHARD]))
    assert set(space.make()) >= {"smol", "again"}
    # The other target took the same file; what had come was not fetched again.
    assert hub.ranges(PLACE) == [None, f"bytes={half}-"]
    assert hub.ranges("/rows.jsonl") == [None, "bytes=100000-"]
    made = space.output("smol")
    for name in files:
        if name.endswith(".safetensors"):
            assert (made / name).read_bytes() == files[name]


def test_shard_that_is_another_one_never_becomes_a_model(
    space: Space, hub: FileServer, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    serve_model(hub, "org/smol", files, [n for n in files if n.endswith(".safetensors")])
    wrong = bytearray(files[SHARD])
    wrong[-1] ^= 1
    hub.gives(PLACE, whole(bytes(wrong)))
    space.manifest(MANIFEST.format(url=hub.url))
    assert space.build("smol").exit_code == 4
    found, wanted = (hashlib.sha256(data).hexdigest() for data in (wrong, files[SHARD]))
    assert space.finished("smol").error == (
        "error[E0602]: `hf:org/smol` is not what the lock says\n"
        f"  why: it has the sha256 {found} and should have {wanted}\n"
        "  fix: if the change upstream is meant: `ftbuild lock --upgrade 'hf:org/smol'`, and "
        "`ftbuild plan` shows what that makes stale"
    )
    assert not space.output("smol").exists()
