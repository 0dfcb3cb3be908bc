"""Servers for remote stores, started on loopback: nginx, S3, Azure, a strict cache server.

Google Cloud Storage is played by `gcs`, as its XML API is documented: no package brings an emulator
that speaks it.

The strict one takes what bazel-remote takes and refuses what that refuses: a blob that has not
the digest of its name, a PUT without a length, a record that Google's own protobuf does not parse
as an `ActionResult`, one that names blobs in a wrong way; and it gives out no record whose blobs
it has not.
"""

import base64
import email.utils
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

_NGINX = """\
daemon off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log;
{user}
events {{ worker_connections 64; }}
http {{
  client_max_body_size {max_body};
  client_body_temp_path {root}/body; proxy_temp_path {root}/t1; fastcgi_temp_path {root}/t2;
  uwsgi_temp_path {root}/t3; scgi_temp_path {root}/t4;
  log_format plain '$request_method $uri $status $body_bytes_sent $request_length';
  access_log {root}/access.log plain;
  sendfile on; keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      root {root}/data; create_full_put_path on; {dav}
      dav_access user:rw group:r all:r;
    }}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the server does not listen")


@dataclass
class Nginx:
    """A running nginx with WebDAV, and what it wrote down."""

    url: str
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def requests(self) -> list[tuple[str, str, int, int]]:
        """Return method, path, status and body bytes of each answer so far."""
        found = []
        for line in (self.root / "access.log").read_text().splitlines():
            method, path, status, size, _ = line.split()
            found.append((method, path, int(status), int(size)))
        return found


@contextmanager
def nginx(root: Path, *, can_write: bool = True, max_body: str = "0") -> Iterator[Nginx]:
    assert NGINX is not None
    root.mkdir(parents=True, exist_ok=True)
    (root / "data").mkdir(exist_ok=True)
    port = free_port()
    config = root / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    dav = "dav_methods PUT DELETE;" if can_write else ""
    config.write_text(_NGINX.format(root=root, port=port, user=user, dav=dav, max_body=max_body))
    process = subprocess.Popen([NGINX, "-c", str(config), "-e", str(root / "error.log")])
    try:
        _wait_for(port, process)
        yield Nginx(f"http://127.0.0.1:{port}", root)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def s3(bucket: str = "team", *, open_calls: int | None = None) -> Iterator[dict[str, str]]:
    """Run moto's S3 and give the environment in which `s3://team/…` is reached.

    With `open_calls` it asks who calls after so many calls, of which making the bucket is one.
    """
    port = free_port()
    log = subprocess.DEVNULL
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    limits = {} if open_calls is None else {"INITIAL_NO_AUTH_ACTION_COUNT": str(open_calls)}
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **limits})
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "a-canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        _wait_for(port, process)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
        request.add_header(
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=0",
        )
        urllib.request.urlopen(request).close()
        yield environment
    finally:
        process.terminate()
        process.wait()


AZURITE = shutil.which("azurite-blob") or shutil.which(
    "azurite-blob", path=f"{sys.prefix}/azurite/node_modules/.bin"
)
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite, and no secret."""


@contextmanager
def azure(container: str = "team") -> Iterator[dict[str, str]]:
    """Run Azurite and give the environment in which `az://team/…` is reached."""
    assert AZURITE is not None
    port = free_port()
    command = [AZURITE, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
    command += ["--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    log = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port, process)
        _make_container(port, container)
        yield {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        }
    finally:
        process.terminate()
        process.wait()


def _make_container(port: int, name: str) -> None:
    date = email.utils.formatdate(usegmt=True)
    version = "2021-08-06"
    signed = "PUT" + 12 * "\n" + f"x-ms-date:{date}\nx-ms-version:{version}\n"
    signed += f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(_KEY), signed.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{_ACCOUNT}/{name}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}",
        },
    )
    urllib.request.urlopen(request).close()


@contextmanager
def gcs(folder: Path) -> Iterator[dict[str, str]]:
    """Play Google Cloud Storage's XML API; give the environment in which `gs://team/…` is reached.

    Source: cloud.google.com/storage/docs/xml-api/put-object and /reference-headers.
    """
    objects: dict[str, bytes] = {}
    lock = threading.Lock()

    class GcsHandler(Handler):
        def do_GET(self) -> None:
            with lock:
                data = objects.get(self.path)
            if data is None:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                self.answer(200, data, self.about(data))

        do_HEAD = do_GET

        def about(self, data: bytes) -> dict[str, str]:
            tag = hashlib.md5(data).hexdigest()
            modified = "Tue, 24 Nov 2026 12:00:00 GMT"
            return {"ETag": f'"{tag}"', "Last-Modified": modified, "x-goog-generation": "1"}

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                is_taken = self.path in objects
                if is_taken and self.headers["x-goog-if-generation-match"] == "0":
                    status = 412
                else:
                    objects[self.path], status = data, 200
            self.answer(status, b"", self.about(data))

    folder.mkdir(parents=True, exist_ok=True)
    account = folder / "account.json"
    with serve(GcsHandler) as url:
        nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
        account.write_text(json.dumps({"gcs_base_url": url, "disable_oauth": True, **nobody}))
        yield {"GOOGLE_SERVICE_ACCOUNT": str(account)}


def action_result_types() -> Any:
    """Return the classes ActionResult and Tree of REAPI 2, as protobuf itself makes them."""
    file = descriptor_pb2.FileDescriptorProto(name="re.proto", package="re", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, str, bool]) -> None:
        found = file.message_type.add(name=name)
        for field_name, number, kind, is_repeated in fields:
            one = found.field.add(name=field_name, number=number, label=3 if is_repeated else 1)
            plain = {"string": 9, "bytes": 12, "int64": 3, "int32": 5, "bool": 8}
            if kind in plain:
                one.type = plain[kind]
            else:
                one.type, one.type_name = 11, f".re.{kind}"

    message("Digest", ("hash", 1, "string", False), ("size_bytes", 2, "int64", False))
    message(
        "OutputFile",
        ("path", 1, "string", False),
        ("digest", 2, "Digest", False),
        ("is_executable", 4, "bool", False),
        ("contents", 5, "bytes", False),
    )
    message("OutputDirectory", ("path", 1, "string", False), ("tree_digest", 3, "Digest", False))
    message(
        "ActionResult",
        ("output_files", 2, "OutputFile", True),
        ("output_directories", 3, "OutputDirectory", True),
        ("exit_code", 4, "int32", False),
        ("stdout_raw", 5, "bytes", False),
        ("stdout_digest", 6, "Digest", False),
    )
    message(
        "FileNode",
        ("name", 1, "string", False),
        ("digest", 2, "Digest", False),
        ("is_executable", 4, "bool", False),
    )
    message("DirectoryNode", ("name", 1, "string", False), ("digest", 2, "Digest", False))
    message("Directory", ("files", 1, "FileNode", True), ("directories", 2, "DirectoryNode", True))
    message("Tree", ("root", 1, "Directory", False), ("children", 2, "Directory", True))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    make = message_factory.GetMessageClass
    return {n: make(pool.FindMessageTypeByName(f"re.{n}")) for n in ("ActionResult", "Tree")}


TYPES = action_result_types()


@dataclass
class Strict:
    """A cache server as strict as bazel-remote, its objects in memory."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    put_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def problem_with(self, path: str, data: bytes) -> str | None:
        """Return why a PUT is refused."""
        match = re.fullmatch(r"/(ac|cas)/([0-9a-f]{64})", path)
        if match is None:
            return "no such path"
        if match[1] == "cas":
            is_right = hashlib.sha256(data).hexdigest() == match[2]
            return None if is_right else "a blob that has not this digest"
        result = TYPES["ActionResult"]()
        try:
            result.ParseFromString(data)
        except Exception as error:
            return f"no ActionResult: {error}"
        if result.SerializeToString() != data and len(result.SerializeToString()) != len(data):
            return "fields that ActionResult has not"
        for file in result.output_files:
            if not file.path or file.path.startswith("/") or not _is_digest(file.digest):
                return f"a wrong output file {file.path!r}"
        for directory in result.output_directories:
            if directory.path.startswith("/") or not _is_digest(directory.tree_digest):
                return f"a wrong output directory {directory.path!r}"
        return None

    def is_whole(self, data: bytes) -> bool:
        """Say whether all blobs that a record names are here, by digest and size."""
        result = TYPES["ActionResult"]()
        result.ParseFromString(data)
        digests = [file.digest for file in result.output_files]
        for directory in result.output_directories:
            digests.append(directory.tree_digest)
            tree = TYPES["Tree"]()
            tree.ParseFromString(self.objects.get(f"/cas/{directory.tree_digest.hash}", b""))
            digests += [file.digest for file in tree.root.files]
        return all(
            digest.size_bytes == 0
            or len(self.objects.get(f"/cas/{digest.hash}", b"")) == digest.size_bytes
            for digest in digests
        )


def _is_digest(digest: Any) -> bool:
    return re.fullmatch("[0-9a-f]{64}", digest.hash) is not None and digest.size_bytes >= 0


class Handler(BaseHTTPRequestHandler):
    """What all servers of these tests share: keep-alive, silence, one answer a call."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, data: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve(handler: type[Handler]) -> Iterator[str]:
    """Run a server of this handler; give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def strict() -> Iterator[Strict]:
    state = Strict()

    class StrictHandler(Handler):
        def do_GET(self) -> None:
            with state.lock:
                state.counts[self.command] += 1
                data = state.objects.get(self.path)
            if data is None or (self.path.startswith("/ac/") and not state.is_whole(data)):
                self.answer(404)
            else:
                self.answer(200, data)

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            text = self.headers.get("Content-Length")
            if text is None:
                self.answer(400)
                return
            data = self.rfile.read(int(text))
            problem = state.problem_with(self.path, data)
            with state.lock:
                state.counts["PUT"] += 1
                state.put_bytes += len(data)
                if problem is None:
                    state.objects[self.path] = data
                else:
                    state.refusals.append(f"{self.path}: {problem}")
            self.answer(200 if problem is None else 400)

    with serve(StrictHandler) as url:
        state.url = url
        yield state
