"""`push`, `pull`, and what the other commands say of a remote store: whole texts, exit codes."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from cli.toy import MANIFEST, RULES, Toy
from ftbuild.remote.folder import Folder


def other(toy: Toy, name: str) -> Toy:
    """Return another checkout of the toy project, with a store of its own."""
    place = toy.root.parent / name
    found = Toy(place / "toy", toy.environment | {"FTBUILD_CACHE": str(place / "store")})
    for path, text in {
        "FTBUILD.toml": MANIFEST,
        "rules/text.py": RULES,
        "data/raw.txt": "# a comment\nhello\nworld\n",
    }.items():
        (found.root / path).parent.mkdir(parents=True, exist_ok=True)
        (found.root / path).write_text(text)
    return found


@pytest.fixture
def remote(toy: Toy) -> Path:
    """A folder that the toy project shares; with a canary where a secret may stand."""
    folder = toy.root.parent / "remote"
    toy.environment["FTBUILD_REMOTE"] = str(folder)
    toy.environment["FTBUILD_REMOTE_TOKEN"] = "a-k4n4r1"
    return folder


def untimed(text: str) -> str:
    return re.sub(r"~?[0-9.]+s\b", "T", text)


def test_push_pull_and_plan_say_what_became_of_each_target(toy: Toy, remote: Path) -> None:
    assert toy.run("make", "--quiet", env={"FTBUILD_REMOTE": ""}).returncode == 0
    pushed = toy.run("push")
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert re.sub(r"[0-9.]+ KB in", "N KB in", untimed(pushed.stdout)) == (
        "sent  lines  12 B\nsent  calm   12 B\nsent  shout  14 B\n3 sent; N KB in T\n"
    )
    again = toy.run("push")
    assert untimed(again.stdout) == "3 present; 0 B in T\n"

    there = other(toy, "there")
    assert untimed(there.run("plan").stdout) == (
        "remote  lines    T\nremote  calm     T\nremote  shout    T\n"
    )
    assert there.run("plan", "--exit-code").returncode == 3
    pulled = there.run("pull")
    assert (pulled.returncode, untimed(pulled.stdout)) == (
        0,
        "fetched  shout  14 B\n1 fetched; 14 B in T\n",
    )
    done = there.run("make")
    assert "built" not in done.stderr
    assert there.run("plan", "--exit-code").returncode == 0
    assert (there.root / "ftbuild-out/shout/text.txt").read_text() == "HELLO!\nWORLD!\n"


def test_make_tells_what_was_fetched_and_sent(toy: Toy, remote: Path) -> None:
    made = toy.run("make")
    assert re.search(r"built 3 in .*; sent [0-9.]+ KB\n$", made.stderr)
    there = other(toy, "there")
    made = there.run("make")
    assert untimed(made.stderr).startswith("[ftbuild] shout: fetched T (sha256:")
    assert "\nbuilt 0, fetched 1 (14 B), reused 2 in T" in untimed(made.stderr)
    events = [json.loads(line) for line in there.run("make", "--json", "calm").stdout.splitlines()]
    [calm] = [e for e in events if e["event"] == "finished" and e["label"] == "calm"]
    assert calm["outcome"] == "fetched"
    assert (events[-1]["fetched"], events[-1]["fetched_bytes"]) == (1, 12)


def test_json_of_push_and_pull(toy: Toy, remote: Path) -> None:
    toy.run("make", env={"FTBUILD_REMOTE": ""})
    told = json.loads(toy.run("push", "--json", "calm").stdout)
    assert told["targets"] == [
        {"label": "lines", "outcome": "sent", "bytes": 12},
        {"label": "calm", "outcome": "sent", "bytes": 12},
    ]
    assert told["sent_bytes"] == sum(p.stat().st_size for p in remote.rglob("*") if p.is_file())
    told = json.loads(other(toy, "there").run("pull", "--json", "--all", "calm").stdout)
    assert [(t["label"], t["outcome"]) for t in told["targets"]] == [
        ("lines", "fetched"),
        ("calm", "fetched"),
    ]
    assert told["fetched_bytes"] == 24


@pytest.mark.parametrize(
    ("command", "env", "code", "what"),
    [
        ("push", {"FTBUILD_REMOTE": ""}, 2, "error[E0572]: no remote store is named\n"),
        ("pull", {"FTBUILD_REMOTE": ""}, 2, "error[E0572]: no remote store is named\n"),
        ("push", {"FTBUILD_REMOTE": "x://me:a-k4n4r1@h"}, 2, "error[E0570]: `x://…@h` is no "),
        ("plan", {"FTBUILD_REMOTE": "x://me:a-k4n4r1@h"}, 2, "error[E0570]: `x://…@h` is no "),
        ("push", {"FTBUILD_REMOTE_WRITE": "0"}, 5, "error[E0573]: no remote store may be written"),
        ("push", {"FTBUILD_REMOTE": "http://127.0.0.1:1/x"}, 5, "error[E0574]: the remote `http:"),
        ("pull", {"FTBUILD_REMOTE": "http://127.0.0.1:1/x"}, 5, "error[E0574]: the remote `http:"),
        ("pull", {}, 1, ""),
        ("push", {}, 1, ""),
    ],
)
def test_exit_codes(
    toy: Toy, remote: Path, command: str, env: dict[str, str], code: int, what: str
) -> None:
    if env.get("FTBUILD_REMOTE", "").startswith("http") and command == "push":
        toy.run("make", env={"FTBUILD_REMOTE": ""})
    done = toy.run(command, env=env)
    assert done.returncode == code, done.stderr
    assert what in done.stderr
    assert "k4n4r1" not in done.stdout + done.stderr


def test_setting_names_a_folder_below_the_root(toy: Toy) -> None:
    manifest = toy.root / "FTBUILD.toml"
    manifest.write_text(manifest.read_text() + '\n[cache]\nremote = ["shared", "other"]\n')
    assert toy.run("make").returncode == 0
    assert len(list((toy.root / "shared/ac").iterdir())) == 3
    assert len(list((toy.root / "other/ac").iterdir())) == 3
    manifest.write_text(manifest.read_text().replace('"other"]', '"x"]\nremote_write = false'))
    toy.run("make", "-B", "calm")
    assert not (toy.root / "x").exists()


def test_fork_in_ci_reads_and_does_not_write(toy: Toy, remote: Path) -> None:
    event = toy.root.parent / "event.json"
    fork = {"repository": {"full_name": "a/b"}}
    fork |= {"pull_request": {"head": {"repo": {"full_name": "eve/b"}}}}  # type: ignore[dict-item]
    event.write_text(json.dumps(fork))
    ci = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_EVENT_NAME": "pull_request",
        "GITHUB_EVENT_PATH": str(event),
    }
    assert toy.run("make", env=ci).returncode == 0
    assert not remote.exists()
    toy.run("push")
    there = other(toy, "there")
    assert "fetched 1" in there.run("make", env=ci).stderr


def test_umask_of_who_writes_keeps_nobody_out(toy: Toy, remote: Path) -> None:
    remote.mkdir()
    remote.chmod(0o2770)
    assert run_with(toy, 0o077, "make", "--quiet").returncode == 0
    files = [path for path in remote.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {0o444}
    assert {(remote / name).stat().st_mode & 0o7777 for name in ("ac", "cas")} == {0o2770}
    there = other(toy, "there")
    done = run_with(there, 0o002, "make")
    assert "built 0, fetched 1 (14 B), reused 2" in done.stderr
    assert "warning" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_user_reads_and_writes(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    before = os.umask(0o077)
    try:
        Folder(str(shared), "it").put("cas/a", b"one")
    finally:
        os.umask(before)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        folder = Folder(str(shared), "it")
        is_right = folder.get("cas/a", 9) == b"one" and folder.put("cas/b", b"two")
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert Folder(str(shared), "it").get("cas/b", 9) == b"two"


def run_with(toy: Toy, umask: int, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        toy.command(*args),
        cwd=toy.root,
        env=toy.environment,
        capture_output=True,
        text=True,
        umask=umask,
        timeout=120,
        check=False,
    )
