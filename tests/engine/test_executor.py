"""What runs, what does not, and what becomes of an action that fails."""

import os
import re
import shutil
from pathlib import Path

import pytest

from engine.space import Space, blobs_of, has_ended, new_space
from faults.fault_report import report
from ftbuild.events import Finished, Progress, Started, Summary, Warned
from store_kit import corrupt_blobs, damage, flip_bit, records_without_bytes

CHAIN = """\
[command.first]
srcs = { raw = "raw.txt" }
run = "cat $raw > $out/f"

[command.second]
deps = { first = "first" }
run = "tr a-z A-Z < $first/f > $out/f"

[command.third]
deps = { second = "second" }
run = "cat $second/f $second/f > $out/f"
"""
LARGE = 100_000
"""Bytes; from 64 KiB on a file is a hard link to its blob, below that it has bytes of its own."""


@pytest.fixture
def chain(space: Space) -> Space:
    """A built chain of three commands with small files."""
    space.manifest(CHAIN)
    space.write("raw.txt", "hello\n")
    space.make()
    return space


def trouble(space: Space, how: str, **settings: object) -> Finished:
    """Build a target that fails in a chosen way, and return how it finished."""
    more = "".join(f"{name} = {value}\n" for name, value in settings.items())
    space.manifest(f'[trouble.bad]\nsource = "raw.txt"\nhow = "{how}"\n{more}', toys=True)
    space.write("raw.txt", "x\n")
    space.build()
    return space.finished("bad")


# -- objects of the store that are not as they should be


@pytest.mark.fault("30", "writing through an output")
def test_tampered_small_output_is_repaired_without_running(chain: Space) -> None:
    damage(chain.output("third") / "f", b"HELL!")
    assert chain.make() == []
    assert chain.text("third", "f") == "HELLO\nHELLO\n"


@pytest.mark.fault("30", "writing through an output")
def test_tampered_intermediate_is_repaired_without_running(chain: Space) -> None:
    damage(chain.output("first") / "f", b"jello")
    assert chain.make() == []
    assert chain.text("first", "f") == "hello\n"


@pytest.mark.fault("30", "writing through an output")
def test_tampered_large_output_is_noticed_and_built_again(space: Space) -> None:
    """It is a hard link to its blob, so the blob has the wrong bytes too."""
    space.manifest(CHAIN)
    space.write("raw.txt", "h" * LARGE)
    space.make()
    damage(space.output("third") / "f", b"J")
    assert space.make() == ["third"]
    assert space.text("third", "f") == "H" * 2 * LARGE
    assert corrupt_blobs(space.store) == []


def test_tampered_large_intermediate_that_is_needed_is_built_again(space: Space) -> None:
    space.manifest(CHAIN)
    space.write("raw.txt", "h" * LARGE)
    space.make()
    damage(space.output("second") / "f", b"J")
    space.edit("FTBUILD.toml", "cat $second/f $second/f", "cat $second/f")
    assert space.make() == ["second", "third"]
    assert space.text("third", "f") == "H" * LARGE


def test_extra_file_in_an_output_is_removed(chain: Space) -> None:
    folder = Path(os.readlink(chain.output("third")))
    (folder / "stranger").write_text("?")
    assert chain.make() == []
    assert sorted(path.name for path in folder.iterdir()) == ["f"]


def test_lost_intermediate_that_is_needed_is_built_again(chain: Space) -> None:
    [blob] = [path for path in blobs_of(chain.store) if path.read_text() == "HELLO\n"]
    blob.unlink()
    shutil.rmtree(os.readlink(chain.output("second")))
    chain.edit("FTBUILD.toml", "cat $second/f $second/f", "cat $second/f")
    assert chain.make() == ["second", "third"]
    assert chain.text("third", "f") == "HELLO\n"


def test_lost_intermediate_that_nobody_needs_is_left_alone(space: Space) -> None:
    """The final is asked for by name, and it is all there."""
    space.manifest(CHAIN)
    space.write("raw.txt", "h" * LARGE)
    space.make()
    damage(space.output("second") / "f", b"J")
    assert space.make("third") == []
    assert space.text("third", "f") == "H" * 2 * LARGE


def test_corrupt_blob_is_noticed_when_it_is_needed(chain: Space) -> None:
    [blob] = [path for path in blobs_of(chain.store) if path.read_text() == "HELLO\nHELLO\n"]
    shutil.rmtree(os.readlink(chain.output("third")))
    flip_bit(blob, 3)
    assert chain.make() == ["third"]
    assert chain.text("third", "f") == "HELLO\nHELLO\n"
    assert corrupt_blobs(chain.store) == []


def test_damaged_record_is_as_if_absent(chain: Space) -> None:
    [record] = [p for p in (chain.store / "v1/actions").glob("*/*") if b"third" in p.read_bytes()]
    flip_bit(record, 800)
    assert chain.make() == ["third"]
    assert records_without_bytes(chain.store) == []


@pytest.mark.parametrize("name", ["history.bin", "graph.bin", "stat.bin", "fast.bin"])
def test_damaged_cache_of_the_workspace_is_as_if_absent(chain: Space, name: str) -> None:
    file = chain.root / ".ftbuild" / name
    good = file.read_bytes() if file.exists() else b"\xf3"
    for bad in (b"", b"\0", good[: len(good) // 2], b"i\1\0\0\0", good[::-1], b"[]", b"(\0\0\0\0"):
        file.write_bytes(bad)
        assert chain.make() == []
        assert set(chain.plan().values()) == {"fresh"}


# -- failures


def test_failing_command(space: Space) -> None:
    space.manifest('[command.bad]\nrun = "echo one; echo two >&2; exit 7"\n')
    result = space.build()
    bad = space.finished("bad")
    assert (result.exit_code, result.failed) == (1, ("bad",))
    assert bad.error == "error[E0701]: `bad` failed with exit status 7"
    assert bad.log_tail == ("one", "two")
    assert not space.output("bad").exists()


def test_command_fails_with_any_of_its_steps(space: Space) -> None:
    space.manifest('[command.bad]\nrun = "false; echo on > $out/f"\n')
    assert space.build().failed == ("bad",)


def test_step_that_fails_after_a_partial_output_builds_later(space: Space) -> None:
    space.manifest(
        '[command.step]\nsrcs = { raw = "raw.txt" }\n'
        'run = "echo half > $out/f; grep -q ready $raw; cat $raw >> $out/f"\n'
    )
    space.write("raw.txt", "not yet\n")
    assert space.build().failed == ("step",)
    assert not space.output("step").exists()
    assert blobs_of(space.store) == []
    space.write("raw.txt", "ready\n")
    assert space.make() == ["step"]
    assert space.text("step", "f") == "half\nready\n"


def test_failure_is_not_remembered(space: Space) -> None:
    """The next build tries again; nothing says that it must fail."""
    space.manifest('[command.bad]\nrun = "exit 1"\n')
    assert space.build().failed == ("bad",)
    assert space.plan() == {"bad": "stale"}
    assert space.build().failed == ("bad",)


def test_readers_of_what_failed_are_skipped(chain: Space) -> None:
    chain.edit("FTBUILD.toml", "cat $raw > $out/f", "exit 1")
    result = chain.build()
    assert (result.failed, result.skipped) == (("first",), ("second", "third"))
    assert chain.finished("second").error == "needs `first`, which failed"
    assert chain.finished("third").error == "needs `second`, which was skipped"
    summary = chain.events[-1]
    assert isinstance(summary, Summary)
    counts = (summary.built, summary.fresh, summary.failed, summary.skipped)
    assert counts == (0, 0, 1, 2)
    assert chain.text("third", "f") == "HELLO\nHELLO\n"  # the last good one stays


TWO = """\
[command.bad]
run = "exit 1"

[command.good]
run = "echo good > $out/f"

[command.better]
deps = { good = "good" }
run = "cat $good/f > $out/f"
"""


def test_after_a_failure_nothing_more_is_started(space: Space) -> None:
    space.manifest(TWO)
    result = space.build(jobs=1)
    assert (result.failed, result.built, result.skipped) == (("bad",), (), ("good", "better"))
    assert space.finished("good").error == "not started, since another target failed"
    assert result.exit_code == 1


def test_keep_going_builds_what_still_can_be(space: Space) -> None:
    space.manifest(TWO)
    result = space.build(jobs=1, keep_going=True)
    assert (result.failed, result.built, result.skipped) == (("bad",), ("good", "better"), ())
    assert result.exit_code == 1


def test_what_runs_beside_a_failure_is_kept(space: Space) -> None:
    """`good` is running when `bad` fails: it ends in peace and is recorded."""
    space.manifest(
        '[command.good]\nrun = "touch $TMPDIR/../../started; while ! test -e $flag; do sleep 0.01; '
        'done; echo good > $out/f"\nenv = ["flag"]\n\n'
        '[command.bad]\nrun = "exit 1"\n'
    )
    flag = space.root / "flag"
    events: list[object] = []

    def hear(event: object) -> None:
        events.append(event)
        if isinstance(event, Finished) and event.label == "bad":
            flag.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("flag", str(flag))
        with space.open() as project:
            result = project.make(on_event=hear)
    assert (result.failed, result.built) == (("bad",), ("good",))


def test_exception_in_a_rule(space: Space) -> None:
    bad = trouble(space, "raise")
    assert bad.error == "error[E0701]: ZeroDivisionError: by nought"
    assert bad.log_tail[:3] == ("line 0", "line 1", "Traceback (most recent call last):")
    assert bad.log_tail[-1] == "ZeroDivisionError: by nought"
    with space.open() as project:
        assert project.log("bad").splitlines()[-1] == "ZeroDivisionError: by nought"


def test_error_of_a_rule_has_its_place(space: Space) -> None:
    bad = trouble(space, "say")
    assert bad.error == (
        "error[E0899]: row 3 has no answer\n  --> rows.jsonl:3 in row 3\n  fix: write one"
    )
    assert bad.where is not None
    assert (bad.where.path, bad.where.line) == ("rows.jsonl", 3)


@pytest.mark.fault("17", "a rule that is killed")
def test_killed_worker_tells_its_peak_memory_and_last_lines(space: Space) -> None:
    bad = trouble(space, "kill", lines=40, memory_mb=100)
    assert bad.log_tail == tuple(f"line {number}" for number in range(25, 40))
    assert bad.error is not None
    found = re.fullmatch(
        r"error\[E0704\]: `bad` was killed by SIGKILL\n"
        r"  why: likely by the system for want of memory; its peak memory was (\d+) MB\n"
        r'  fix: lower its batch_size or max_length, or declare resources = { memory = "…" } so '
        "that less runs beside it",
        bad.error,
    )
    assert found
    assert 100 < int(found[1]) < 400


@pytest.mark.fault("17", "a program of a command that is killed")
def test_program_of_a_command_that_is_killed(space: Space) -> None:
    """The shell lives, and says 137; what matters is what became of the program."""
    space.manifest("""[command.bad]\nrun = "sh -c 'kill -9 $$'; echo never"\n""")
    space.build()
    error = space.finished("bad").error
    assert error is not None
    assert error.startswith("error[E0704]: `bad` was killed by SIGKILL\n  why: likely by")


def test_command_that_is_ended_by_another_signal(space: Space) -> None:
    space.manifest('[command.bad]\nrun = "kill -15 $$"\n')
    space.build()
    error = space.finished("bad").error
    assert error is not None
    assert error.startswith("error[E0704]: `bad` was ended by SIGTERM\n  why: its peak memory was ")


def test_rule_that_ends_the_process_has_failed(space: Space) -> None:
    assert trouble(space, "exit").error == "error[E0701]: `bad` failed with exit status 70"


def test_output_without_the_files_of_its_kind(space: Space) -> None:
    assert trouble(space, "nothing").error == (
        "error[E0707]: `bad` ran, but its output has no *.safetensors\n"
        "  fix: a model has these files; `ftbuild log bad` shows the run"
    )


def test_log_of_a_failure_gives_way_to_that_of_the_next_run(space: Space) -> None:
    trouble(space, "partial")
    with space.open() as project:
        assert project.log("bad") == "line 0\nline 1\n"
    space.edit("FTBUILD.toml", '"partial"', '"none"\nlines = 1')
    space.make()
    with space.open() as project:
        assert project.log("bad") == "line 0\n"


# -- what an action sees


def test_source_that_changes_while_it_is_read_is_noticed(space: Space) -> None:
    space.manifest(
        '[command.bad]\nsrcs = { raw = "raw.txt" }\nrun = "cat $raw > $out/f; echo more >> $raw"\n'
    )
    space.write("raw.txt", "one\n")
    space.build()
    assert space.finished("bad").error == (
        "error[E0703]: `raw.txt` changed while `bad` was reading it\n"
        "  fix: run the build again; nothing was recorded of this one"
    )
    assert list((space.store / "v1/actions").glob("*/*")) == []
    assert list((space.store / "v1/pending").glob("*/*")) == []
    assert space.plan() == {"bad": "stale"}
    report("24", "an edit of a source while it is read", fired=1, bad=0)


@pytest.mark.fault("24", "a source that vanishes while it is read")
def test_source_that_vanishes_while_it_is_read_is_noticed(space: Space) -> None:
    space.manifest(
        '[command.bad]\nsrcs = { raw = "raw.txt" }\nrun = "rm $(readlink $raw); echo > $out/f"\n'
    )
    space.write("raw.txt", "one\n")
    space.build()
    error = space.finished("bad").error
    assert error is not None
    assert error.startswith("error[E0703]: `raw.txt` changed while `bad` was reading it")


def test_undeclared_file_beside_a_source_is_invisible(space: Space) -> None:
    space.manifest('[command.look]\nsrcs = { raw = "data/raw.txt" }\nrun = "ls $raw/.. > $out/f"\n')
    space.manifest(
        '[command.look]\nsrcs = { raw = "data/raw.txt" }\n'
        'run = "ls $(dirname $raw) > $out/f; ls >> $out/f"\n'
    )
    space.write("data/raw.txt", "one\n")
    space.write("data/secret.txt", "two\n")
    space.make()
    assert space.text("look", "f") == "file.txt\n"


@pytest.mark.fault("49", "a command that reads a variable")
def test_undeclared_variable_is_invisible(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    space.manifest('[command.look]\nenv = ["TOY_A"]\nrun = "echo $TOY_A $TOY_B > $out/f"\n')
    monkeypatch.setenv("TOY_A", "a")
    monkeypatch.setenv("TOY_B", "b")
    space.make()
    assert space.text("look", "f") == "a\n"
    monkeypatch.setenv("TOY_B", "c")
    assert space.make() == []
    monkeypatch.setenv("TOY_A", "b")
    assert space.make() == ["look"]
    assert space.text("look", "f") == "b\n"


def test_whole_environment_of_a_command(space: Space) -> None:
    space.manifest('[command.look]\nrun = "env | cut -d= -f1 | sort > $out/f"\n')
    space.make()
    names = space.text("look", "f").split()
    assert names == ["CUDA_VISIBLE_DEVICES", "HOME", "LANG", "PATH", "PWD", "TMPDIR", "out"]


def test_variables_of_a_worker(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    space.manifest(
        '[secret.told]\none = "TOY_ONE"\nmore = ["TOY_TWO", "TOY_THREE"]\n'
        'files = ["a.txt", ["b.txt", "a.txt"]]\n',
        toys=True,
    )
    space.write("a.txt", "A")
    space.write("b.txt", "B")
    monkeypatch.setenv("TOY_ONE", "1")
    monkeypatch.setenv("TOY_TWO", "2")
    monkeypatch.setenv("TOY_UNDECLARED", "3")
    space.make()
    assert space.text("told") == (
        '{"environment":null,"files":[["A"],["B","A"]],'
        '"seen":{"TOY_ONE":"1","TOY_THREE":null,"TOY_TWO":"2"}}'
    )


def test_every_action_begins_in_an_empty_folder(space: Space) -> None:
    """One slot runs both, one after the other, and what the first leaves is gone."""
    space.manifest(
        '[command.first]\nrun = "touch left .hidden; mkdir d; touch d/f; chmod 0 d; '
        'ls -A > $out/f"\n\n'
        '[command.second]\ndeps = { first = "first" }\nrun = "ls -A > $out/f; rmdir $PWD"\n\n'
        '[command.third]\ndeps = { second = "second" }\nrun = "ls -A > $out/f"\n'
    )
    assert space.make(jobs=1) == ["first", "second", "third"]
    assert space.text("second", "f") == ""
    assert space.text("third", "f") == ""


def test_inputs_cannot_be_written(chain: Space) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; what it writes is mended")
    chain.edit("FTBUILD.toml", "cat $second/f $second/f", "echo > $second/f; cat $second/f")
    assert chain.build().failed == ("third",)


def test_what_an_action_leaves_running_is_ended(space: Space) -> None:
    """It could still write to the output that is being hashed."""
    space.manifest('[command.a]\nrun = "sleep 60 & echo $! > $out/pid"\n')
    space.make()
    assert has_ended(int(space.text("a", "pid")))


# -- the order of things, and what is said of them


def test_events_of_a_build(chain: Space) -> None:
    chain.edit("FTBUILD.toml", "tr a-z A-Z", "tr  a-z A-Z")
    chain.make()
    planned, *middle, summary = chain.events
    assert (planned.total, planned.jobs) == (3, 2)  # type: ignore[union-attr]
    assert set(planned.expected) == {"first", "second", "third"}  # type: ignore[union-attr]
    told = [(type(e).__name__, getattr(e, "label", "")) for e in middle]
    assert told == [
        ("Finished", "first"),
        ("Started", "second"),
        ("Finished", "second"),
        ("Finished", "third"),
    ]
    [started] = [e for e in middle if isinstance(e, Started)]
    assert started.reason == (
        '`run`: "tr a-z A-Z < $first/f > $out/f" → "tr  a-z A-Z < $first/f > $out/f"'
    )
    assert isinstance(summary, Summary)
    assert (summary.built, summary.fresh, summary.cut_off) == (1, 2, 1)


def test_saved_time_is_what_the_fresh_targets_cost(chain: Space, tmp_path: Path) -> None:
    chain.make()
    with chain.open() as project:
        costs = [built.seconds for built in project.history.built.values()]
    assert chain.result is not None
    assert chain.result.saved_s == pytest.approx(sum(costs))
    assert min(costs) > 0
    clone = Space(tmp_path / "clone", chain.store)
    clone.manifest(CHAIN)
    clone.write("raw.txt", "hello\n")
    assert clone.make() == []
    assert clone.result is not None
    assert clone.result.saved_s == pytest.approx(sum(costs))


def test_force_runs_a_fresh_target(chain: Space) -> None:
    assert chain.make(force=("second",)) == ["second"]
    [started] = [e for e in chain.events if isinstance(e, Started)]
    assert started.reason == "forced"
    assert chain.finished("third").cut_off


def test_force_of_an_output_that_is_never_the_same(space: Space) -> None:
    """What is forced and gives other bytes is not cut off: its readers run."""
    space.manifest(
        '[command.now]\nrun = "date +%N > $out/f"\n\n'
        '[command.reader]\ndeps = { now = "now" }\nrun = "cat $now/f > $out/f"\n'
    )
    space.make()
    before = space.text("reader", "f")
    assert space.make(force=("now",)) == ["now", "reader"]
    assert space.text("reader", "f") == space.text("now", "f") != before


def test_actions_run_beside_each_other(space: Space) -> None:
    """Each waits for the other's sign of life: one slot could never end this."""
    one, other = space.root / "one", space.root / "other"
    run = "echo > {0}; while ! test -e {1}; do sleep 0.01; done; echo > $out/f"
    space.manifest(
        f'[command.a]\nrun = "{run.format(one, other)}"\n\n'
        f'[command.b]\nrun = "{run.format(other, one)}"\n'
    )
    assert sorted(space.make(jobs=2)) == ["a", "b"]


def test_longest_action_starts_first(space: Space) -> None:
    text = "".join(
        f'[command.{name}]\nsrcs = {{ raw = "raw.txt" }}\nrun = "sleep {s}; cat $raw > $out/f"\n\n'
        for name, s in (("a", 0), ("b", 0.2), ("c", 0.1))
    )
    space.manifest(text)
    space.write("raw.txt", "1")
    assert space.make(jobs=1) == ["a", "b", "c"]
    space.write("raw.txt", "2")
    assert space.make(jobs=1) == ["b", "c", "a"]


def test_progress_and_warnings_are_heard(space: Space) -> None:
    space.manifest('[pieces.cut]\nsource = "raw.txt"\n', toys=True)
    space.write("rules/toys.py", _with_warning(space))
    space.write("raw.txt", "a\nb\n")
    space.make(jobs=1)
    steps = [(e.step, e.steps) for e in space.events if isinstance(e, Progress)]
    assert steps == [(1, 2), (2, 2)]
    assert [e.text for e in space.events if isinstance(e, Warned)] == ["look out"]


def _with_warning(space: Space) -> str:
    text = (space.root / "rules/toys.py").read_text()
    return text.replace("    ctx.facts(rows", '    ctx.warn("look out")\n    ctx.facts(rows')


def test_provenance_of_a_record(chain: Space) -> None:
    with chain.open() as project:
        record = project.store.find(project.history.built["first"].key)
    assert record is not None
    told = record.provenance
    assert told["label"] == "first"
    assert told["is_reproducible"] is True
    assert (told["facts"], told["warnings"], told["log"]) == ({}, [], None)
    assert told["max_rss_bytes"] > 100_000
    [kept] = told["sources"]
    assert (chain.store / "v1/blobs" / kept[:2] / kept).read_text() == "hello\n"


def test_unknown_source_after_the_graph_was_cached(chain: Space) -> None:
    """The graph is not checked again, so the source is missed when it is read."""
    (chain.root / "raw.txt").unlink()
    result = chain.build()
    assert (result.exit_code, result.failed) == (2, ("first",))
    error = chain.finished("first").error
    assert error is not None
    assert error.startswith("error[E0401]: there is no file `raw.txt`")


def test_template_is_usable_for_many_tests(tmp_path: Path) -> None:
    """`new_space` hides the caller's variables and gives them back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTBUILD_CACHE", "/elsewhere")
        with new_space(tmp_path) as space:
            assert os.environ["FTBUILD_CACHE"] == str(space.store)
        assert os.environ["FTBUILD_CACHE"] == "/elsewhere"


def test_chain_longer_than_the_stack_is_skipped_to_its_end(space: Space) -> None:
    links = [
        f'[command.t{n}]\ndeps = {{ below = "t{n - 1}" }}\nrun = "cat $below/f > $out/f"\n'
        for n in range(1, 1500)
    ]
    space.manifest('[command.t0]\nrun = "exit 3"\n' + "\n".join(links))
    space.build("t1499")
    [summary] = [event for event in space.events if isinstance(event, Summary)]
    assert (summary.failed, summary.skipped, summary.built) == (1, 1499, 0)
    assert space.finished("t1").error == "needs `t0`, which failed"
    assert space.finished("t1499").error == "needs `t1498`, which was skipped"
