"""The short way says "nothing to do" if and only if the long way would."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.space import Space, new_space
from ftbuild import build, fastpath

MANIFEST = """\
[project]
name = "fast"
default = ["all"]
rules = ["rules/toys.py"]

[keep.lines]
source = "data/*/x.txt"

[command.all]
srcs = { folder = "folder", one = "one.txt", deep = "deep/**/x.txt" }
deps = { lines = "lines" }
run = "cat $lines/text.txt > $out/f"
env = ["TOY"]
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Space:
    with new_space(tmp_path_factory.mktemp("built")) as space:
        space.manifest("", toys=True)
        space.write("FTBUILD.toml", MANIFEST)
        space.write("data/a/x.txt", "a\n")
        space.write("folder/f", "f")
        space.write("one.txt", "1")
        space.write("deep/er/x.txt", "d")
        (space.root / "data" / "b").mkdir()
        (space.root / "deep" / "empty").mkdir()
        space.make()
        return space


@pytest.fixture
def fast(built: Space, space: Space, monkeypatch: pytest.MonkeyPatch) -> Space:
    """A workspace whose answer is known; files count as settled however young they are."""
    monkeypatch.setattr(build, "RACY_NS", -(10**12))
    space.copy_of(built)
    assert asked(space) == 2
    return space


def asked(space: Space, *names: str, directory: str = ".", **settings: object) -> int | None:
    """Return how many targets the short way says are fresh; None if it does not know."""
    found = fastpath.try_fast(str(space.root / directory), names, **settings)  # type: ignore[arg-type]
    return None if found is None else found[0]


def test_answer_holds_while_nothing_changes(fast: Space) -> None:
    assert asked(fast) == 2
    assert fast.make() == []


EDITS: dict[str, Callable[[Path], object]] = {
    "source": lambda root: (root / "one.txt").write_text("2"),
    "source of the same size": lambda root: (root / "data/a/x.txt").write_text("b\n"),
    "touched source": lambda root: os.utime(root / "one.txt"),
    "file in a folder": lambda root: (root / "folder/f").write_text("g"),
    "new file in a folder": lambda root: (root / "folder/g").write_text("g"),
    "new file where a pattern matched before": lambda root: (root / "data/a/y").write_text(""),
    "first match in a folder that had none": lambda root: (root / "data/b/x.txt").write_text("b"),
    "new folder of a pattern": lambda root: (root / "data/c").mkdir(),
    "deep match in a folder that had none": lambda root: (root / "deep/empty/x.txt").write_text(""),
    "gone source": lambda root: (root / "one.txt").unlink(),
    "replaced source": lambda root: os.replace(root / "folder/f", root / "one.txt"),
    "manifest": lambda root: (root / "FTBUILD.toml").write_text(MANIFEST + "\n"),
    "rule": lambda root: (root / "rules/toys.py").write_text("#"),
    "helper of a rule": lambda root: (root / "rules/toy_helper.py").write_text("ending = '!'\n"),
    "lock": lambda root: (root / "FTBUILD.lock").write_text("version = 1\n"),
    "output": lambda root: _overwrite(root / "ftbuild-out/all/f"),
    "intermediate": lambda root: _overwrite(root / "ftbuild-out/lines/text.txt"),
    "file in an output": lambda root: (root / "ftbuild-out/all/g").write_text(""),
    "removed output": lambda root: shutil.rmtree(os.readlink(root / "ftbuild-out/all")),
}  # fmt: skip


def _overwrite(path: Path) -> None:
    os.chmod(path, 0o644)
    path.write_bytes(b"b" * path.stat().st_size)


@pytest.mark.parametrize("edit", EDITS)
def test_edit_sends_the_long_way(fast: Space, edit: str) -> None:
    EDITS[edit](fast.root)
    assert asked(fast) is None


def test_removed_link_is_made_again_on_the_short_way(fast: Space) -> None:
    shutil.rmtree(fast.root / "ftbuild-out")
    assert asked(fast) == 2
    assert fast.text("all", "f") == "a\n"
    assert fast.text("lines") == "a\n"


def test_link_that_leads_elsewhere_is_put_right(fast: Space, tmp_path: Path) -> None:
    right = os.readlink(fast.output("all"))
    fast.output("all").unlink()
    fast.output("all").symlink_to(tmp_path)
    assert asked(fast) == 2
    assert os.readlink(fast.output("all")) == right


def test_variable(fast: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_OTHER", "1")
    assert asked(fast) == 2
    monkeypatch.setenv("TOY", "1")
    assert asked(fast) is None
    monkeypatch.delenv("TOY")
    assert asked(fast) == 2


def test_each_request_has_an_answer_of_its_own(fast: Space) -> None:
    assert asked(fast, "lines") is None
    fast.make("lines")
    assert asked(fast, "lines") == 1
    assert asked(fast) == 2
    assert asked(fast, "lines", "all") is None
    assert asked(fast, profile="smoke") is None
    assert asked(fast, overrides=["all.run=true"]) is None


def test_names_are_seen_from_a_folder(fast: Space) -> None:
    assert asked(fast, directory="data") is None
    fast.make(directory="data")
    assert asked(fast, directory="data") == 2


def test_another_store_is_another_request(fast: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTBUILD_CACHE", str(fast.store.parent / "other"))
    assert asked(fast) is None


def test_failed_build_leaves_no_answer(fast: Space) -> None:
    fast.edit("FTBUILD.toml", "cat $lines", "exit 1; cat $lines")
    assert fast.build().exit_code == 1
    assert asked(fast) is None


def test_young_files_leave_no_answer(fast: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2 s another write could leave the same stat: then the next build looks closely."""
    monkeypatch.setattr(build, "RACY_NS", 2_000_000_000)
    fast.write("one.txt", "2")
    fast.make()
    assert asked(fast) is None


def test_files_settle_by_both_their_times() -> None:
    now = time.time_ns()
    old, young = now - 3_000_000_000, now - 1_000_000_000
    racy_ns = 2_000_000_000
    assert fastpath.are_settled([(old, old, 1, 1, 1)], racy_ns)
    assert not fastpath.are_settled([(old, young, 1, 1, 1)], racy_ns)
    assert not fastpath.are_settled([(young, old, 1, 1, 1)], racy_ns)
    assert not fastpath.are_settled([(now + 10**12, old, 1, 1, 1)], racy_ns)


def test_clean_forgets_all_answers(fast: Space) -> None:
    with fast.open() as project:
        project.clean()
    assert asked(fast) is None


def test_the_oldest_answers_are_dropped(fast: Space) -> None:
    for number in range(8):
        answer = fastpath.Answer(number, {}, {}, {}, (), {})
        request = fastpath.Request((str(number),), None, ())
        fastpath.remember(fast.root, fast.root, request, answer)
    assert asked(fast) is None
    assert [asked(fast, str(number)) for number in range(8)] == list(range(8))


def test_folder_that_is_no_workspace(tmp_path: Path) -> None:
    assert fastpath.try_fast(str(tmp_path), []) is None


def test_short_way_imports_next_to_nothing(fast: Space) -> None:
    """Neither a TOML parser nor a validation library, nor the engine itself."""
    code = (
        "import sys; from ftbuild.fastpath import try_fast; assert try_fast('.', []); "
        "print([m for m in sys.modules if m.startswith('ftbuild')], 'tomllib' in sys.modules)"
    )
    environment = {**fast.environment(), "HOME": os.environ["HOME"]}
    shown = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=fast.root, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "['ftbuild', 'ftbuild.fastpath'] False\n"
