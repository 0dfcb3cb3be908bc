"""`verify` on toy rules: what is run again, in what surroundings, and how it is told."""

import json
import os
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from engine.space import Space
from ftbuild import sandbox
from ftbuild.errors import UsageError
from ftbuild.verification import Limits, Verified

REASON = sandbox.problem()
needs_bwrap = pytest.mark.skipif(REASON is not None, reason=str(REASON))
MANIFEST = """\
[keep.lines]
source = "raw.txt"

[pieces.parts]
source = "raw.txt"

[loud.shout]
texts = ["lines"]

[command.last]
deps = { a = "shout" }
run = "cat $a/text.txt > $out/f"
"""


def verify(space: Space, *labels: str, **limits: Any) -> dict[str, Verified]:
    with space.open() as project:
        found = project.verify(labels, Limits(**limits))
    return {one.label: one for one in found}


@pytest.fixture
def built(space: Space) -> Space:
    space.manifest(MANIFEST, toys=True)
    space.write("raw.txt", "a\nb\n")
    space.make("lines", "parts", "shout", "last")
    return space


def test_every_action_runs_again_and_nothing_of_it_stays(built: Space) -> None:
    before = sorted(str(path) for path in built.store.rglob("*") if "/tmp/" not in str(path))
    found = verify(built, "lines", "parts", "shout", "last")
    assert {label: (one.outcome, one.why) for label, one in found.items()} == dict.fromkeys(
        ("lines", "parts", "shout", "last"), ("identical", None)
    )
    after = sorted(str(path) for path in built.store.rglob("*") if "/tmp/" not in str(path))
    assert [path for path in after if path not in before] == []
    assert list((built.root / ".ftbuild/verify").iterdir()) == []


def test_cached_output_and_fragments_are_not_read(built: Space) -> None:
    """With all blobs and trees of the outputs gone nothing but the inputs can be used."""
    with built.open() as project:
        key = project.history.built["parts"].key
        record = project.store.find(key)
        assert record is not None
        digest = record.tree.digest
        found = project.verify(["parts"], Limits())
        assert (found[0].outcome, found[0].rebuilt) == ("identical", digest)
        for path in (built.store / "v1/actions").glob("*/*"):
            if path.stem != key:
                path.unlink()  # the records of the fragments
        assert project.verify(["parts"], Limits())[0].outcome == "identical"


def test_action_that_gives_other_bytes_each_time(space: Space) -> None:
    space.manifest('[command.now]\nrun = "date +%N > $out/f; echo same > $out/g"\n')
    space.make()
    status, out, _ = space.run("verify")
    assert status == 3
    assert out.startswith("now: different ")
    assert "  f differs from byte " in out
    assert "  g" not in out


def test_action_that_fails_now(built: Space, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.write_text("")
    built.manifest(f'[command.x]\nrun = "test -e {flag}; echo y > $out/f"\n')
    built.make("x")
    flag.unlink()
    found = verify(built, "x")["x"]
    assert (found.outcome, found.exit_code) == ("failed", 1)
    assert found.why == (
        "error[E0701]: `x` failed with exit status 1\n"
        "  why: it ran in a sandbox, which shows it its declared inputs alone, and no network"
    )


def test_target_that_is_not_built(built: Space) -> None:
    built.write("raw.txt", "c\n")
    found = verify(built, "lines", "last")
    assert [(one.outcome, one.exit_code) for one in found.values()] == [("unbuilt", 2)] * 2
    assert found["lines"].why == "the store has no result of it as it now is"
    assert found["last"].why == "it needs `shout`, which is not built"
    assert built.run("verify", "last")[0] == 2
    assert built.run("verify", "--all")[0] == 0  # nobody asked for it by its name


def test_named_targets_bring_what_they_need_unless_only_they_are_meant(built: Space) -> None:
    with built.open() as project:
        assert project.choose(["shout"]) == ["lines", "shout"]
        assert project.choose(["shout"], only=True) == ["shout"]
        assert set(project.choose(everything=True)) == {"lines", "parts", "shout", "last"}


def test_sample_follows_from_the_content_alone(built: Space) -> None:
    with built.open() as project:
        first = project.choose(everything=True, sample=2)
        assert len(first) == 2
        assert project.choose(everything=True, sample=2) == first
        assert set(project.choose(everything=True, sample=9)) == {"lines", "parts", "shout", "last"}
    drawn = {tuple(first)}
    for number in range(6):
        built.write("raw.txt", f"{number}\n")
        built.make("lines", "parts", "shout", "last")
        with built.open() as project:
            drawn.add(tuple(project.choose(everything=True, sample=2)))
    assert len(drawn) > 1


def test_sample_of_nothing_that_is_built(space: Space) -> None:
    space.manifest(MANIFEST, toys=True)
    space.write("raw.txt", "a\n")
    with space.open() as project, pytest.raises(UsageError, match="none of these targets is built"):
        project.choose(everything=True, sample=2)


def test_budget_begins_nothing_that_would_not_end_in_it(built: Space) -> None:
    found = verify(built, "lines", budget_s=0.0)["lines"]
    assert (found.outcome, found.exit_code) == ("skipped", 0)


def git(root: Path, *args: str) -> None:
    names = {
        f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    subprocess.run(
        ["git", *args], cwd=root, env={**os.environ, **names}, check=True, capture_output=True
    )


def since(space: Space, revision: str = "HEAD") -> list[str]:
    with space.open() as project:
        return project.choose(everything=True, since=revision)


def test_since_a_commit(built: Space) -> None:
    git(built.root, "init", "-q")
    git(built.root, "add", "-A")
    git(built.root, "commit", "-qm", "one")
    assert since(built) == []
    built.edit("FTBUILD.toml", "[command.last]", '[command.last]\ndescription = "x"')
    assert since(built) == []
    built.edit("FTBUILD.toml", "cat $a/text.txt", "cat  $a/text.txt")
    assert since(built) == ["last"]
    built.write("raw.txt", "c\n")
    assert since(built) == ["lines", "parts", "shout", "last"]
    git(built.root, "add", "-A")
    git(built.root, "commit", "-qm", "two")
    assert since(built) == []
    assert since(built, "HEAD~1") == ["lines", "parts", "shout", "last"]
    built.edit("FTBUILD.lock", "pydantic", "pydantic-core")
    assert since(built) == ["shout", "last"]


def test_since_what_is_no_commit(built: Space) -> None:
    git(built.root, "init", "-q")
    status, _, err = built.run("verify", "--since", "nowhere")
    assert status == 2
    assert err.startswith("error[E0016]: git does not know what changed: ")


def test_events_for_other_tools_and_junit_for_ci(built: Space) -> None:
    built.manifest(
        '[keep.lines]\nsource = "raw.txt"\n[command.now]\nrun = "date +%N > $out/f"\n', toys=True
    )
    built.make("lines", "now")
    status, out, _ = built.run("verify", "lines", "now", "--json", "--junit", "found.xml")
    assert status == 3
    events = [json.loads(line) for line in out.splitlines()]
    assert [(e["event"], e["label"]) for e in events] == [
        ("started", "lines"), ("verified", "lines"),
        ("started", "now"), ("verified", "now"),
        ("summary", None),
    ]  # fmt: skip
    assert (events[1]["outcome"], events[1]["recorded"]) == ("identical", events[1]["rebuilt"])
    assert events[3]["files"][0]["path"] == "f"
    assert (events[4]["identical"], events[4]["different"]) == (1, 1)
    suite = ElementTree.parse(built.root / "found.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    failure = suite.find("testcase[@name='now']/failure")
    assert failure is not None
    assert failure.get("message") == "differs in f"


# -- what an action sees


LOOK = """\
[command.look]
srcs = {{ raw = "raw.txt" }}
tags = [{tags}]
run = '''{run}'''
"""


def look(space: Space, run: str, tags: str = "") -> Verified:
    """Build without a sandbox, then verify in one."""
    space.manifest(LOOK.format(run=run, tags=tags))
    space.write("raw.txt", "a\n")
    space.make()
    return verify(space, "look")["look"]


@pytest.mark.fault("49", "a command that reads what it did not declare")
@needs_bwrap
def test_file_that_is_no_input_is_not_there(space: Space) -> None:
    other = space.write("other.txt", "b\n")
    found = look(space, f"cat $raw {other} > $out/f")
    assert (found.outcome, found.exit_code) == ("failed", 1)
    assert any(str(other) in line for line in found.log_tail), found.log_tail
    assert look(space, "cat $raw > $out/f").outcome == "identical"


@pytest.mark.fault("49", "a command that reads what it did not declare")
@needs_bwrap
def test_home_and_the_workspace_are_not_there(space: Space) -> None:
    space.write("../home/secret", "x")
    run = f"ls {space.root} {space.root.parent}/home 2>/dev/null | sort > $out/f || true"
    found = look(space, run)
    assert found.outcome == "different"
    assert [file.path for file in found.files] == ["f"]


@needs_bwrap
@pytest.mark.parametrize(
    ("tags", "outcome"),
    [
        pytest.param(
            "",
            "different",
            marks=pytest.mark.fault("49", "a command that uses the network"),
        ),
        ('"network"', "identical"),
    ],
)
def test_network_is_there_only_where_it_is_declared(space: Space, tags: str, outcome: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f'import socket; print(socket.socket().connect_ex(("127.0.0.1", {port})) == 0)'
        assert look(space, f"{sys.executable} -c '{code}' > $out/f", tags).outcome == outcome


RULE = """\
import socket
from pathlib import Path
from ftbuild.api import Context, File, Inputs, Params, Source, rule

class PeekInputs(Inputs):
    source: Source

class PeekParams(Params):
    other: str
    port: int = 0

@rule(output=File)
def peek(ctx: Context, inputs: PeekInputs, params: PeekParams) -> None:
    text = inputs.source.files[0].path.read_text()
    try:
        text += Path(params.other).read_text()
    except FileNotFoundError:
        text += "nothing"
    if params.port:
        try:
            socket.create_connection(("127.0.0.1", params.port), 5).close()
            text += " connected"
        except OSError:
            text += " alone"
    (ctx.out / "f").write_text(text)
"""


@pytest.mark.fault("49", "a rule that reads what it did not declare")
@pytest.mark.parametrize("kind", ["bubblewrap", "guard"])
def test_rule_sees_no_other_file_and_no_network(
    space: Space, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "guard":
        monkeypatch.setattr(sandbox, "problem", lambda: "a test says so")
    elif REASON is not None:
        pytest.skip(REASON)
    other = space.write("other.txt", "secret")
    space.write("rules/peek.py", RULE)
    space.write("raw.txt", "a ")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        space.write(
            "FTBUILD.toml",
            '[project]\nname = "p"\nrules = ["rules/peek.py"]\n'
            f'[peek.x]\nsource = "raw.txt"\nother = "{other}"\nport = {port}\n',
        )
        space.make()
        assert space.text("x", "f") == "a secret connected"
        found = verify(space, "x")["x"]
    assert found.outcome == "different", (found.why, found.log_tail)
    assert found.view is not None
    lines = ["".join(span.text for span in line) for line in found.view.lines]
    assert "-a secret connected" in lines
    assert "+a nothing alone" in lines


def test_make_runs_in_the_sandbox_where_the_project_says_so(space: Space) -> None:
    if REASON is not None:
        pytest.skip(REASON)
    other = space.write("other.txt", "b\n")
    space.write("raw.txt", "a\n")
    run = f"cat $raw {other} > $out/f"
    space.manifest(LOOK.format(run=run, tags="") + "\n[run]\nsandbox = true\n")
    assert space.build().exit_code == 1
    space.manifest(LOOK.format(run=run, tags=""))
    assert space.build().exit_code == 0


def test_paths_of_this_python_leave_the_workspace_out(tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    try:
        found = sandbox.python_paths(tmp_path / "space", [])
    finally:
        sys.path.remove(str(tmp_path))
    assert not any(str(tmp_path).startswith(path) for path in found)
    assert any(sys.prefix.startswith(path) for path in found)


def test_store_behind_a_link_in_a_folder_that_is_seen_is_mounted_where_it_leads(
    tmp_path: Path,
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "store/trees").mkdir(parents=True)
    (tmp_path / "code/cache").symlink_to(tmp_path / "store")
    code, real = str(tmp_path / "code"), str(tmp_path / "store/trees")
    view = sandbox.View(
        sandbox.Sandbox((code,), "bwrap"), (f"{code}/cache/trees",), (), str(tmp_path)
    )
    mounts = list(view._mounts())
    assert mounts[-6:] == ["--ro-bind", code, code, "--ro-bind", real, real]
