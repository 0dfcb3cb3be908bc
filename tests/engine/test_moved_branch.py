"""A branch of the hub that moves: nothing changes until the lock is upgraded, and then `plan` says.

Each command is a process of its own: the hub's library reads HF_ENDPOINT once, when imported.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engine.space import Space
from ftbuild.lockfile import read

pytest.importorskip("huggingface_hub")

MANIFEST = """\
[weights.base]
source = "hf:org/toy"

[command.size]
deps = { base = "base" }
run = "wc -c < $base/model.safetensors > $out/f"

[command.words]
run = "echo words > $out/f"
"""
SPEC = "hf:org/toy"


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository, whose `main` can be moved."""

    commits: dict[str, dict[str, bytes]]
    main: str

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/org/toy/revision/main":
            self._send(json.dumps(self._info()).encode(), {"Content-Type": "application/json"})
            return
        _, _, _, _, commit, name = path.split("/", 5)
        data = self.commits[commit][name]
        etag = hashlib.sha256(data).hexdigest()
        self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _info(self) -> dict[str, Any]:
        files = [
            {"rfilename": name, "size": len(data), "blobId": git_id(data)}
            for name, data in self.commits[self.main].items()
        ]
        return {"id": "org/toy", "sha": self.main, "siblings": files, "tags": [], "private": False}

    def _send(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    files = {"config.json": b"{}", "model.safetensors": b"old", "tokenizer.json": b"a b"}
    Hub.commits = {
        "a" * 40: files,
        "b" * 40: {**files, "model.safetensors": b"newer"},
    }
    Hub.main = "a" * 40
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.fault("61", "a branch that moved")
def test_moved_branch_changes_nothing_until_the_lock_is_upgraded(
    space: Space, hub: dict[str, str]
) -> None:
    space.manifest(MANIFEST, toys=True)
    status, _, err = space.run("make", env=hub)
    assert status == 0, err
    Hub.main = "b" * 40

    for command in (["make"], ["make", "--locked"], ["lock"], ["lock", "--check"]):
        assert space.run(*command, env=hub)[0] == 0, command
    assert read(space.root).sources[SPEC].revision == "a" * 40
    assert set(space.plan().values()) == {"fresh"}
    assert space.text("size", "f") == "3\n"

    change = f"source {SPEC}: {'a' * 40} → {'b' * 40}\n"
    # Asking whether it moved: of the source's address, or of the target that brings it in.
    for name in (SPEC, "base"):
        assert space.run("lock", "--check", "--upgrade", name, env=hub)[:2] == (3, change)
    assert read(space.root).sources[SPEC].revision == "a" * 40
    assert space.run("lock", "--upgrade", "base", env=hub)[:2] == (0, change)
    assert read(space.root).sources[SPEC].revision == "b" * 40

    assert space.plan() == {"base": "stale", "size": "unknown", "words": "fresh"}
    status, out, _ = space.run("plan")
    assert status == 0
    assert re.sub(r"\d+\.\d\d", "T", out) == (  # the last column is what it would cost
        "stale    base   source hf:org/toy changed  ~Ts\n"
        "unknown  size   waits for `base`           ~Ts\n"
        "fresh    words\n"
    )
    assert space.run("make", env=hub)[0] == 0
    assert space.text("size", "f") == "5\n"
