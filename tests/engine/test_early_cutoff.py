"""An edit runs what it touches and stops where the bytes are the same again."""

import os
import shutil
import time
from pathlib import Path

import pytest

from engine.space import PLAIN, Space
from ftbuild import fastpath

CHAIN = """\
[command.clean]
srcs = { raw = "raw.txt" }
run = 'grep -v "^#" "$raw" > "$out/text.txt" || true'

[command.loud]
deps = { clean = "clean" }
run = 'tr a-z A-Z < "$clean/text.txt" > "$out/text.txt"'

[command.twice]
deps = { loud = "loud" }
run = 'cat "$loud/text.txt" "$loud/text.txt" > "$out/text.txt"'
"""
ALL = ["clean", "loud", "twice"]


@pytest.fixture
def chain(space: Space) -> Space:
    """A built chain of three commands."""
    space.manifest(CHAIN)
    space.write("raw.txt", "# v1\nhello\n")
    assert space.make() == ALL
    assert space.text("twice") == "HELLO\nHELLO\n"
    return space


def test_nothing_to_do_runs_nothing(chain: Space) -> None:
    assert chain.make() == []
    assert chain.plan() == {"clean": "fresh", "loud": "fresh", "twice": "fresh"}
    result = chain.result
    assert result is not None
    assert (result.fresh, result.failed, result.skipped) == (tuple(ALL), (), ())


def test_changed_line_runs_the_chain(chain: Space) -> None:
    chain.write("raw.txt", "# v1\nworld\n")
    assert chain.plan() == {"clean": "stale", "loud": "unknown", "twice": "unknown"}
    assert chain.make() == ALL
    assert chain.text("twice") == "WORLD\nWORLD\n"


def test_comment_edit_stops_at_clean(chain: Space) -> None:
    chain.write("raw.txt", "# v2\nhello\n")
    assert chain.make() == ["clean"]
    assert chain.finished("loud").cut_off
    assert chain.finished("twice").cut_off
    summary = chain.events[-1]
    assert (summary.built, summary.fresh, summary.cut_off) == (1, 2, 2)  # type: ignore[union-attr]
    assert chain.make() == []
    assert not chain.finished("loud").cut_off


def test_touch_runs_nothing(chain: Space) -> None:
    os.utime(chain.root / "raw.txt", (2_000_000_000, 2_000_000_000))
    assert chain.make() == []


def test_same_size_edit_with_the_old_mtime_is_noticed(chain: Space) -> None:
    raw = chain.root / "raw.txt"
    os.utime(raw, (1_000_000_000, 1_000_000_000))
    assert chain.make() == []
    raw.write_text("# v1\njello\n")
    os.utime(raw, (1_000_000_000, 1_000_000_000))
    assert chain.make() == ALL
    assert chain.text("loud") == "JELLO\n"


def test_other_size_edit_with_the_old_mtime_is_noticed(chain: Space) -> None:
    raw = chain.root / "raw.txt"
    before = raw.stat()
    raw.write_text("# v1\nhello there\n")
    os.utime(raw, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert chain.make() == ALL


def test_source_replaced_by_an_older_file_is_noticed(chain: Space) -> None:
    older = chain.write("older.txt", "old\n")
    os.utime(older, (900_000_000, 900_000_000))
    os.replace(older, chain.root / "raw.txt")
    assert chain.make() == ALL
    assert chain.text("loud") == "OLD\n"


def test_going_back_comes_from_the_store(chain: Space) -> None:
    chain.write("raw.txt", "other\n")
    assert chain.make() == ALL
    chain.write("raw.txt", "# v1\nhello\n")
    assert chain.plan() == dict.fromkeys(ALL, "fresh")
    assert chain.make() == []
    assert chain.text("twice") == "HELLO\nHELLO\n"


def test_moved_workspace_is_fresh(chain: Space, tmp_path: Path) -> None:
    moved = Space(tmp_path / "elsewhere" / "deep", chain.store)
    shutil.copytree(chain.root, moved.root, symlinks=True)
    shutil.rmtree(chain.root)
    assert moved.make() == []
    assert moved.text("twice") == "HELLO\nHELLO\n"


def test_fresh_clone_takes_all_from_the_store(chain: Space, tmp_path: Path) -> None:
    clone = Space(tmp_path / "clone", chain.store)
    clone.manifest(CHAIN)
    clone.write("raw.txt", "# v1\nhello\n")
    assert clone.plan() == dict.fromkeys(ALL, "fresh")
    assert clone.make() == []
    assert clone.text("twice") == "HELLO\nHELLO\n"


def test_lost_history_changes_nothing(chain: Space) -> None:
    shutil.rmtree(chain.root / ".ftbuild")
    shutil.rmtree(chain.root / "ftbuild-out")
    assert chain.plan() == dict.fromkeys(ALL, "fresh")
    assert chain.make() == []
    assert chain.text("twice") == "HELLO\nHELLO\n"


def test_another_working_directory_changes_nothing(
    chain: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chain.root / "deep").mkdir()
    assert chain.make(directory="deep") == []
    monkeypatch.chdir(tmp_path)
    assert chain.make() == []


def test_form_of_the_manifest_changes_nothing(chain: Space) -> None:
    chain.write(
        "FTBUILD.toml",
        """\
# A comment.
[command.twice]
run   =   "cat \\"$loud/text.txt\\" \\"$loud/text.txt\\" > \\"$out/text.txt\\""
deps.loud = "loud"   # another
description = "twice as loud"
tags = ["text"]
resources = { cpus = 1, memory = "1 GB" }

[command]
clean.run = 'grep -v "^#" "$raw" > "$out/text.txt" || true'
clean.srcs.raw = "raw.txt"
loud = { run = 'tr a-z A-Z < "$clean/text.txt" > "$out/text.txt"', deps = { clean = "clean" } }

[project]
name = "renamed"

[run]
jobs = 1
""",
    )
    assert chain.plan() == {"clean": "fresh", "loud": "fresh", "twice": "fresh"}
    assert chain.make() == []


def test_renamed_target_is_fresh(chain: Space) -> None:
    """A name is for people: what a target is called is in no key."""
    manifest = PLAIN + CHAIN.replace("[command.loud]", "[command.shout]")
    chain.write("FTBUILD.toml", manifest.replace('loud = "loud"', 'loud = "shout"'))
    assert chain.make() == []
    assert chain.text("shout") == "HELLO\n"


def test_changed_command_runs_and_is_cut_off(chain: Space) -> None:
    chain.edit("FTBUILD.toml", 'tr a-z A-Z < "$clean/text.txt"', 'tr a-z A-Z  < "$clean/text.txt"')
    assert chain.make() == ["loud"]
    assert chain.finished("twice").cut_off


def test_deleted_link_comes_back_without_running(chain: Space) -> None:
    shutil.rmtree(chain.root / "ftbuild-out")
    assert chain.make() == []
    assert chain.text("clean") == "hello\n"
    assert chain.text("twice") == "HELLO\nHELLO\n"


def test_deleted_intermediate_leaves_the_final_alone(chain: Space) -> None:
    (chain.root / "ftbuild-out" / "clean").unlink()
    shutil.rmtree(os.readlink(chain.output("loud")))
    assert chain.make() == []
    assert chain.text("twice") == "HELLO\nHELLO\n"


def test_nothing_to_do_is_quick(chain: Space) -> None:
    """No action, no worker: an order of magnitude below what any of them would take."""
    chain.make()
    began = time.process_time()
    chain.make()
    assert time.process_time() - began < 0.2


def test_copied_workspace_reads_its_own_manifest(chain: Space, tmp_path: Path) -> None:
    copy = Space(tmp_path / "copy", chain.store)
    shutil.copytree(chain.root, copy.root, symlinks=True)
    copy.edit("FTBUILD.toml", "tr a-z A-Z", "tr a-z b-za")
    assert copy.make("loud") == ["loud"]
    assert copy.text("loud") == "ifmmp\n"
    assert chain.make("loud") == []


def test_copied_workspace_takes_no_answer_about_the_original(chain: Space, tmp_path: Path) -> None:
    raw = str(chain.root / "raw.txt")
    answer = fastpath.Answer(3, {raw: fastpath.take_stat(raw)}, {}, {}, (), {})
    fastpath.remember(chain.root, chain.root, fastpath.Request((), None, ()), answer)
    shutil.copytree(chain.root, tmp_path / "copy", symlinks=True)
    found = fastpath.try_fast(str(chain.root), [])
    assert found is not None
    assert found[0] == 3
    assert fastpath.try_fast(str(tmp_path / "copy"), []) is None
