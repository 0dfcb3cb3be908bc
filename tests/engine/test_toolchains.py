"""A rule whose libraries clash with the rest runs in an environment of its own, locked and kept."""

import json
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from engine.space import Space
from ftbuild import sandbox
from ftbuild.digest import Digest
from ftbuild.errors import FtbuildError
from ftbuild.lockfile import Toolchain, read

RULE = '''
import importlib.util
import json
from pathlib import Path

from ftbuild.api import Context, File, Inputs, Params, Piece, Source, rule


class VersionsInputs(Inputs):
    text: Source


class VersionsParams(Params):
    note: str = ""


@rule(output=File, toolchain=("packaging==23.2",))
def versions(ctx: Context, inputs: VersionsInputs, params: VersionsParams) -> None:
    """Say which `packaging` there is, what it makes of a text, and what else there is."""
    import packaging
    from packaging.version import Version

    def piece(piece: Piece, out: Path) -> str:
        return str(Version(piece.payload))

    lines = inputs.text.files[0].path.read_text().splitlines()
    found = ctx.fragments(piece, [Piece(line, line) for line in lines], of="text")
    told = {
        "version": packaging.__version__,
        "normal": [fragment.value for fragment in found],
        "pytest": importlib.util.find_spec("pytest") is not None,
    }
    (ctx.out / "told.json").write_text(json.dumps(told))
'''
MANIFEST = """\
[project]
name = "own"
rules = ["rules/own.py"]

[versions.one]
text = "words.txt"

[versions.two]
text = "words.txt"
note = "another action"
"""


def workspace(root: Path, store: Path) -> Space:
    space = Space(root, store)
    space.write("rules/own.py", RULE)
    space.write("words.txt", "1.0-rc.1\n2.0\n")
    space.write("FTBUILD.toml", MANIFEST)
    return space


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """Two targets of one rule, built."""
    place = tmp_path_factory.mktemp("own")
    space = workspace(place / "w", place / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTBUILD_CACHE", str(space.store))
        assert sorted(space.make("one", "two")) == ["one", "two"]
        yield space


def environments(space: Space) -> list[Path]:
    return sorted((space.store / "v1/toolchains").iterdir())


def told(space: Space, label: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(space.text(label, "told.json"))
    return found


def test_rule_has_its_own_versions_and_nothing_of_the_rest(built: Space) -> None:
    assert metadata.version("packaging") != "23.2"
    assert told(built, "one") == {"version": "23.2", "normal": ["1.0rc1", "2.0"], "pytest": False}
    assert len(environments(built)) == 1


def test_lock_holds_what_it_resolved_to_and_nothing_else(built: Space) -> None:
    lock = read(built.root)
    assert lock.toolchains == {"versions": Toolchain(("packaging==23.2",), {"packaging": "23.2"})}
    text = (built.root / "FTBUILD.lock").read_text()
    assert text.endswith(
        "[toolchains.versions]\n"
        "requirements = [\n"
        '    "packaging==23.2",\n'
        "]\n\n"
        "[toolchains.versions.packages]\n"
        'packaging = "23.2"\n'
    )
    with built.open() as project:
        key = Digest(project.history.built["one"].key)
        record = project.store.find(key)
    assert record is not None
    assert record.document["libraries"] == {"packaging": "23.2"}


def test_nothing_is_to_do_and_another_environment_of_ours_changes_nothing(built: Space) -> None:
    assert built.pending("one", "two") == set()
    assert built.make("one", "two") == []


def test_other_version_in_the_lock_is_named_by_plan(built: Space, tmp_path: Path) -> None:
    other = Space(tmp_path / "w", built.store)
    shutil.copytree(built.root, other.root, symlinks=True)
    other.edit("FTBUILD.lock", '[toolchains.versions.packages]\npackaging = "23.2"',
               '[toolchains.versions.packages]\npackaging = "23.1"')  # fmt: skip
    assert other.reasons("one") == [("library", 'packaging "23.2" → "23.1"')]
    with other.open() as project:
        assert project.lock(["versions"]) == ["toolchain versions, library packaging: 23.1 → 23.2"]
    assert other.pending("one", "two") == set()


def test_what_a_kill_has_left_of_an_environment_is_made_anew(built: Space) -> None:
    [folder] = environments(built)
    (folder / "ftbuild-toolchain.json").unlink()
    shutil.rmtree(folder / "bin")
    built.write("words.txt", "1.0-rc.1\n2.0\n99\n")
    assert built.make("one") == ["one"]
    assert environments(built) == [folder]
    assert told(built, "one")["version"] == "23.2"


def test_offline_takes_what_is_there_and_makes_nothing(built: Space, tmp_path: Path) -> None:
    built.write("words.txt", "1.0-rc.1\n2.0\n100\n")
    assert built.make("one", offline=True) == ["one"]
    other = workspace(tmp_path / "w", tmp_path / "store")
    shutil.copy(built.root / "FTBUILD.lock", other.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTBUILD_CACHE", str(other.store))
        other.build("one", offline=True)
    error = other.finished("one").error
    assert error is not None
    assert error.startswith(
        "error[E0513]: the environment of rule `versions` is not in the store, and `--offline` "
        "forbids to make it"
    )


@pytest.mark.skipif(sandbox.problem() is not None, reason="bubblewrap cannot be used here")
def test_rule_runs_in_its_environment_in_a_sandbox_too(built: Space) -> None:
    built.write("words.txt", "1.0-rc.1\n2.0\n101\n")
    built.write("FTBUILD.toml", MANIFEST + "\n[run]\nsandbox = true\n")
    assert built.make("one") == ["one"]
    assert told(built, "one")["version"] == "23.2"


def test_versions_that_there_are_not_are_said_before_anything_runs(tmp_path: Path) -> None:
    space = workspace(tmp_path / "w", tmp_path / "store")
    space.edit("rules/own.py", "packaging==23.2", "packaging==0.0.0.1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTBUILD_CACHE", str(space.store))
        with pytest.raises(FtbuildError) as caught:
            space.build("one")
        frozen = space.open(frozen=True)
        with frozen, pytest.raises(FtbuildError) as without_lock:
            frozen.make(["one"])
    assert caught.value.exit_code == 5
    [problem] = caught.value.problems
    assert problem.code == "E0512"
    assert problem.what == "there are no versions of what rule `versions` needs: packaging==0.0.0.1"
    assert problem.why is not None
    assert "No matching distribution found for packaging==0.0.0.1" in problem.why
    assert without_lock.value.problems[0].code == "E0504"


def test_toolchain_beside_pins_is_refused(tmp_path: Path) -> None:
    space = workspace(tmp_path / "w", tmp_path / "store")
    space.edit("rules/own.py", "output=File, ", 'output=File, pins=("torch",), ')
    assert "a rule with a toolchain has no `pins`, no `preload`" in space.failed("one")


def test_gc_removes_what_is_not_used_any_more(built: Space) -> None:
    [folder] = environments(built)
    with built.open() as project:
        project.gc(max_age_s=1e9)
        assert folder.exists()
        project.gc(max_age_s=1e9, grace_s=0)
    assert environments(built) == []
