"""Datasets of the hub, which is here a server of its protocol on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chat_kit import read_dataset
from ftbuild.errors import UsageError
from ftbuild.kinds import Dataset
from ftbuild.lockfile import read
from ftbuild.sources import hub, hub_dataset
from ftbuild.testing import artifact

COMMIT = "d" * 40


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


PLAIN = {
    "README.md": b"# no metadata",
    "data/train-00000-of-00002.jsonl": lines(*(f"t{n}" for n in range(6))),
    "data/train-00001-of-00002.jsonl": lines(*(f"t{n}" for n in range(6, 10))),
    "data/test.jsonl": lines("e0"),
}
CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/a-*.jsonl
  - split: held_out
    path: ["main/b.jsonl"]
- config_name: extra
  data_files: "extra/**/*.jsonl"
---
"""
EXTRA = {"configs": [{"config_name": "extra", "data_files": "extra/**/*.jsonl"}]}
DECLARED = {
    "README.md": CARD,
    "main/a-0.jsonl": lines("m"),
    "main/b.jsonl": lines("h"),
    "extra/deep/x.jsonl": lines("x"),
}
REPOSITORIES = {"org/plain": PLAIN, "org/declared": DECLARED}


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        for name, files in REPOSITORIES.items():
            if path == f"/api/datasets/{name}/revision/main":
                self._send(json.dumps(_info(name, files)).encode())
                return
            if path.startswith(f"/datasets/{name}/resolve/{COMMIT}/"):
                data = files[path.partition(f"{COMMIT}/")[2]]
                etag = hashlib.sha256(data).hexdigest()
                self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
                return
        self._send(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    def _send(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _info(name: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = [
        {"rfilename": path, "size": len(data), "blobId": git_id(data)}
        for path, data in files.items()
    ]
    return {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


@pytest.fixture
def hub_url() -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def make(project: Path, url: str, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (project / "FTBUILD.toml").write_text(
        f'[project]\nname = "p"\n\n[dataset.rows]\nsource = "{source}"\nformat = "text"\n'
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
        "FTBUILD_CACHE": str(project / "store"),
    }
    return subprocess.run(
        [sys.executable, "-m", "ftbuild", "make", *flags],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )


def texts(project: Path) -> list[str]:
    made = artifact(Dataset, project / "ftbuild-out/rows")
    return [row["text"] for row in read_dataset(made)]


def test_split_is_pinned_by_commit_and_content(tmp_path: Path, hub_url: str) -> None:
    source = "hf:datasets/org/plain"
    done = make(tmp_path, hub_url, source)
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path) == [f"t{n}" for n in range(10)]
    [(spec, pin)] = read(tmp_path).sources.items()
    assert (spec, pin.revision) == (source, COMMIT)
    names = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert [(file.path, file.sha256) for file in pin.files] == [
        (name, hashlib.sha256(PLAIN[name]).hexdigest()) for name in names
    ]
    assert not any(path.endswith("test.jsonl") for path in Hub.asked)
    Hub.asked.clear()
    assert make(tmp_path, hub_url, source, "--offline").returncode == 0
    assert Hub.asked == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("split=test", ["e0"]),
        ("split=train[:25%]", ["t0", "t1"]),  # 2.5 rows: the even number
        ("split=train[-30%:]", ["t7", "t8", "t9"]),
        ("split=train[4:6]", ["t4", "t5"]),
        ("split=train[-1:]", ["t9"]),
    ],
)
def test_part_of_a_split(tmp_path: Path, hub_url: str, query: str, expected: list[str]) -> None:
    done = make(tmp_path, hub_url, f"hf:datasets/org/plain?{query}")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path) == expected


def test_another_part_of_the_same_files_is_another_dataset(tmp_path: Path, hub_url: str) -> None:
    for part, expected in (("[:2]", ["t0", "t1"]), ("[2:3]", ["t2"]), ("[:2]", ["t0", "t1"])):
        done = make(tmp_path, hub_url, f"hf:datasets/org/plain?split=train{part}")
        assert done.returncode == 0, done.stderr
        assert texts(tmp_path) == expected


def test_config_that_the_card_declares(tmp_path: Path, hub_url: str) -> None:
    done = make(tmp_path, hub_url, "hf:datasets/org/declared?config=main&split=held_out")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path) == ["h"]


def test_dataset_of_two_configs_needs_one_named(tmp_path: Path, hub_url: str) -> None:
    done = make(tmp_path, hub_url, "hf:datasets/org/declared")
    assert done.returncode == 2
    assert done.stderr == (
        "error[E0424]: `hf:datasets/org/declared` has more than one config\n"
        "  why: it has `extra`, `main`\n"
        "  fix: name one: `hf:datasets/org/declared?config=extra`\n"
    )


def test_files_are_those_that_datasets_takes() -> None:
    files = ["a/train.csv", "a/dev.csv", "b/valid-0.jsonl", "b/x/training.jsonl", "LICENSE"]

    def chosen(config: str | None, split: str | None) -> list[str]:
        return hub_dataset.choose("hf:datasets/o/n", files, {}, config=config, split=split)

    assert chosen("a", None) == ["a/train.csv"]
    assert chosen("a", "validation") == ["a/dev.csv"]
    assert chosen("b", "train") == ["b/x/training.jsonl"]
    for config, split in ((None, None), ("a", "test"), ("c", None)):
        with pytest.raises(UsageError) as caught:
            chosen(config, split)
        assert caught.value.problems[0].code == "E0424"
    both = hub_dataset.choose("hf:datasets/o/n", ["y.json", "x.json"], {}, config=None, split=None)
    assert both == ["x.json", "y.json"]
    assert hub_dataset.choose(
        "hf:datasets/o/n", [*DECLARED], EXTRA, config="extra", split=None
    ) == ["extra/deep/x.jsonl"]


@pytest.mark.parametrize(
    "spec",
    [
        "hf:datasets/name",
        "hf:datasets/org/name?splits=train",
        "hf:datasets/org/name?split=train[:1%]&split=test",
        "hf:datasets/org/name?split=train[1%]",
        "hf:datasets/org/name?split=train+test",
    ],
)
def test_form_that_is_no_dataset(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        hub.parse(spec)
    assert caught.value.problems[0].code == "E0420"
