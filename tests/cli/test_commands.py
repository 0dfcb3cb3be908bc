"""Full text in, full text out, exit code: the commands on the toy project."""

import json
import os
import re
from pathlib import Path

from cli.toy import Toy
from ftbuild import __version__
from ftbuild.digest import hash_bytes, hash_value

SHOUTED = b"HELLO!\nWORLD!\n"
# The digest of a tree is written down in DESIGN: paths, modes, sizes and blob digests.
SHOUT_TREE = hash_value([["text.txt", "f", len(SHOUTED), hash_bytes(SHOUTED)]])
CALM_TREE = hash_value([["text.txt", "f", 12, hash_bytes(b"HELLO\nWORLD\n")]])
LINES_TREE = hash_value([["text.txt", "f", 12, hash_bytes(b"hello\nworld\n")]])


def untimed(text: str) -> str:
    """Return `text` with every measured time as `T`, and without what a busy machine adds."""
    timed = re.sub(r"\b(\d+m)?\d+(\.\d\d)? ?s\b", "T", text)
    return re.sub(r"; saved T$", "", timed, flags=re.MULTILINE)


def build(toy: Toy) -> None:
    done = toy.run("make", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_version(toy: Toy) -> None:
    for args in (["--version"], ["-V"], ["--json", "--version"]):
        done = toy.run(*args)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"ftbuild {__version__}\n", "")


def test_make_tells_on_stderr_what_it_builds_and_stdout_is_empty(toy: Toy) -> None:
    done = toy.run("make")
    assert (done.returncode, done.stdout) == (0, "")
    assert untimed(done.stderr) == (
        "[ftbuild] lines: started (never built here)\n"
        f"[ftbuild] lines: built T (sha256:{LINES_TREE[:12]}…)\n"
        "[ftbuild] calm: started (never built here)\n"
        f"[ftbuild] calm: built T (sha256:{CALM_TREE[:12]}…)\n"
        "[ftbuild] shout: started (never built here)\n"
        f"[ftbuild] shout: built T (sha256:{SHOUT_TREE[:12]}…)\n"
        "built 3 in T\n"
    )


def test_make_again_says_that_nothing_is_to_do(toy: Toy) -> None:
    build(toy)
    for args in (["make"], ["make", "shout"], ["make", "--json", "-q"], ["make", "-v", "calm"]):
        assert toy.run(*args).returncode == 0
    done = toy.run("make")
    assert (done.returncode, done.stdout) == (0, "")
    assert untimed(done.stderr) == "nothing to do (3 targets fresh, T)\n"
    assert toy.run("make", "-q").stderr == ""


def test_verbose_names_the_fresh_targets(toy: Toy) -> None:
    build(toy)
    assert untimed(toy.run("make", "-v", "calm").stderr) == (
        "[ftbuild] lines: fresh\n[ftbuild] calm: fresh\nnothing to do (2 targets fresh, T)\n"
    )


def test_an_edit_of_a_comment_is_cut_off(toy: Toy) -> None:
    build(toy)
    toy.write("data/raw.txt", "# another comment\nhello\nworld\n")
    done = toy.run("make")
    assert untimed(done.stderr) == (
        "[ftbuild] lines: started (data/raw.txt changed)\n"
        f"[ftbuild] lines: built T (sha256:{LINES_TREE[:12]}…)\n"
        "[ftbuild] calm: fresh (cut off)\n"
        "[ftbuild] shout: fresh (cut off)\n"
        "built 1, cut off 2 in T\n"
    )


def test_make_json_is_one_event_a_line_as_the_contract_says(toy: Toy) -> None:
    done = toy.run("make", "--json", "-j", "1")
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all({"event", "label"} <= event.keys() for event in found)
    told = [(e["event"], e["label"]) for e in found if e["event"] != "progress"]
    assert told == [
        ("planned", None),
        ("started", "lines"),
        ("finished", "lines"),
        ("started", "calm"),
        ("finished", "calm"),
        ("started", "shout"),
        ("finished", "shout"),
        ("summary", None),
    ]
    progress = [e for e in found if e["event"] == "progress" and e["label"] == "shout"]
    assert progress[-1] == {
        "event": "progress",
        "label": "shout",
        "step": 2,
        "steps": 2,
        "metrics": {"loss": 0.5},
    }
    last = [e for e in found if e["event"] == "finished"][-1]
    plan = json.loads(toy.run("plan", "--json").stdout)
    assert last == {
        "event": "finished",
        "label": "shout",
        "outcome": "built",
        "key": plan["targets"][-1]["key"],
        "digest": SHOUT_TREE,
        "seconds": last["seconds"],
    }
    summary = found[-1]
    assert {k: v for k, v in summary.items() if not isinstance(v, float)} == {
        "event": "summary",
        "label": None,
        "built": 3,
        "fresh": 0,
        "fetched": 0,
        "failed": 0,
        "skipped": 0,
        "cut_off": 0,
        "fetched_bytes": 0,
        "sent_bytes": 0,
    }


def test_force_runs_what_is_fresh(toy: Toy) -> None:
    build(toy)
    done = toy.run("make", "-B", "calm")
    assert untimed(done.stderr) == (
        "[ftbuild] calm: started (forced)\n"
        f"[ftbuild] calm: built T (sha256:{CALM_TREE[:12]}…)\n"
        "[ftbuild] shout: fresh (cut off)\n"
        "built 1, reused 1, cut off 1 in T\n"
    )


def test_a_failed_rule_shows_error_log_and_what_was_skipped(toy: Toy) -> None:
    toy.write("data/raw.txt", "BOOM\n")
    done = toy.run("make")
    assert (done.returncode, done.stdout) == (1, "")
    assert untimed(done.stderr) == (
        "[ftbuild] lines: started (never built here)\n"
        "[ftbuild] lines: failed after T\n"
        "error[E0899]: a line says BOOM\n"
        "  fix: take it out\n"
        "  log: ftbuild log lines\n"
        "  the end of the log of lines:\n"
        "  | about to fail^[[2J\n"
        "  | ::error::not mine\n"
        "[ftbuild] calm: skipped (needs `lines`, which failed)\n"
        "[ftbuild] shout: skipped (needs `calm`, which was skipped)\n"
        "failed 1, skipped 2, built 0 in T\n"
    )
    log = toy.run("log", "lines")
    assert (log.returncode, log.stdout) == (0, "about to fail\x1b[2J\n::error::not mine\n")


def test_warnings_of_rules_come_at_the_end(toy: Toy) -> None:
    toy.write("data/raw.txt", "WARN\n")
    done = toy.run("make", "--progress", "none", "lines")
    assert untimed(done.stderr) == "warning: lines: a line says WARN\nbuilt 1 in T\n"


def test_plan_names_the_state_and_the_first_cause(toy: Toy) -> None:
    assert toy.run("plan").stdout == (
        "stale    lines  never built here\n"
        "unknown  calm   waits for `lines`\n"
        "unknown  shout  waits for `calm`\n"
    )
    build(toy)
    assert toy.run("plan").stdout == "fresh  lines\nfresh  calm\nfresh  shout\n"
    done = toy.run("plan", "--set", "shout.mark=?")
    assert untimed(done.stdout).replace("~T", "~T") == (
        'fresh  lines\nfresh  calm\nstale  shout  attribute `mark`: "!" → "?"  ~T\n'
    )
    assert done.stderr == ""


def test_plan_json_has_exactly_the_fields_of_the_contract(toy: Toy) -> None:
    done = toy.run("plan", "--json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    key = plan["targets"][0]["key"]
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert plan == {
        "targets": [
            {
                "label": "lines",
                "rule": "keep",
                "state": "stale",
                "key": key,
                "reasons": [{"kind": "new", "detail": "never built here"}],
            },
            {
                "label": "calm",
                "rule": "loud",
                "state": "unknown",
                "key": None,
                "reasons": [{"kind": "waits", "detail": "waits for `lines`"}],
            },
            {
                "label": "shout",
                "rule": "loud",
                "state": "unknown",
                "key": None,
                "reasons": [{"kind": "waits", "detail": "waits for `calm`"}],
            },
        ]
    }


def test_plan_exit_code_tells_whether_there_is_work(toy: Toy) -> None:
    assert toy.run("plan").returncode == 0
    assert toy.run("plan", "--exit-code").returncode == 3
    build(toy)
    assert toy.run("plan", "--exit-code").returncode == 0


def test_a_dry_run_of_make_is_the_plan_and_builds_nothing(toy: Toy) -> None:
    assert toy.run("make", "-n").stdout == toy.run("plan").stdout
    assert not (toy.root / "ftbuild-out").exists()


def test_why_shows_the_chain_down_to_the_rows(toy: Toy) -> None:
    build(toy)
    toy.write("data/raw.txt", "# a comment\nhello\nthere\n")
    done = toy.run("why", "shout")
    assert done.returncode == 0
    assert done.stdout == (
        "lines is stale\n"
        "  source data/raw.txt changed\n"
        "    line 3: world → there\n"
        "calm is unknown\n"
        "  waits for `lines`\n"
        "shout is unknown\n"
        "  waits for `calm`\n"
    )


def test_why_of_a_fresh_target(toy: Toy) -> None:
    build(toy)
    assert toy.run("why", "calm").stdout == "calm is fresh: nothing changed\n"
    assert toy.run("why", "calm", "--all").stdout == "lines is fresh\ncalm is fresh\n"


def test_graph_in_its_four_formats(toy: Toy) -> None:
    assert toy.run("graph").stdout == "shout loud\n└─ calm loud\n   └─ lines keep\n"
    assert toy.run("graph", "calm", "--format", "mermaid").stdout == (
        'flowchart LR\n  t0["lines<br/>keep"]\n  t1["calm<br/>loud"]\n  t0 --> t1\n'
    )
    assert toy.run("graph", "calm", "--format", "dot").stdout == (
        "digraph ftbuild {\n"
        "  rankdir=LR;\n"
        "  node [shape=box];\n"
        '  "lines" [label="lines\\nkeep"];\n'
        '  "calm" [label="calm\\nloud"];\n'
        '  "lines" -> "calm";\n'
        "}\n"
    )
    assert json.loads(toy.run("graph", "calm", "--json").stdout) == {
        "targets": [
            {"label": "lines", "rule": "keep", "kind": "file", "inputs": []},
            {
                "label": "calm",
                "rule": "loud",
                "kind": "file",
                "inputs": [{"attribute": "text", "label": "lines", "part": None}],
            },
        ]
    }


def test_a_graph_takes_apart_only_once_what_is_needed_twice(toy: Toy) -> None:
    diamond = '[loud.other]\ntext = "calm"\n'
    toy.write("FTBUILD.toml", (toy.root / "FTBUILD.toml").read_text() + diamond)
    assert toy.run("graph", "shout", "other").stdout == (
        "shout loud\n└─ calm loud\n   └─ lines keep\nother loud\n└─ calm loud (above)\n"
    )


def test_targets_lists_rule_kind_tags_and_description(toy: Toy) -> None:
    assert toy.run("targets").stdout == (
        "lines  keep  file  data small  the lines that are no comments\n"
        "calm   loud  file\n"
        "shout  loud  file\n"
    )
    found = json.loads(toy.run("targets", "--tag", "small", "--json").stdout)
    assert found == {
        "targets": [
            {
                "label": "lines",
                "rule": "keep",
                "kind": "file",
                "description": "the lines that are no comments",
                "tags": ["data", "small"],
            }
        ]
    }


def test_rules_shows_types_defaults_and_bounds(toy: Toy) -> None:
    assert toy.run("rules", "loud").stdout == (
        "loud: Raise the letters.\n"
        "\n"
        "text  label of file  required\n"
        "    The text.\n"
        'mark  text  = ""\n'
        "    Ends each line.\n"
        "times  whole number  = 1  (>= 1, <= 9)\n"
        "    How often the mark stands there.\n"
        'style  "upper" | "title"  = "upper"\n'
        "    Which letters are raised.\n"
    )
    row = "| `times` | whole number (>= 1, <= 9) | 1 | How often the mark stands there. |\n"
    assert row in toy.run("rules", "loud", "--markdown").stdout
    listed = toy.run("rules").stdout.splitlines()
    assert "loud" in {line.split()[0] for line in listed}
    unknown = toy.run("rules", "lod")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_schema_is_json_that_knows_the_projects_rules(toy: Toy) -> None:
    schema = json.loads(toy.run("schema").stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"project", "run", "cache", "profile", "keep", "loud"} <= schema["properties"].keys()


def test_check_counts_what_it_read(toy: Toy) -> None:
    done = toy.run("check")
    assert (done.returncode, done.stdout) == (0, "3 targets in 1 package: all is well\n")
    assert toy.run("check", "--json").stdout == '{"problems": []}\n'


def test_check_json_tells_each_problem_with_its_place(toy: Toy) -> None:
    text = (toy.root / "FTBUILD.toml").read_text().replace('mark = "!"', "mark = 7")
    toy.write("FTBUILD.toml", text)
    plain = toy.run("check")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("error[E02")
    assert "  --> FTBUILD.toml:16:8 in [loud.shout]\n" in plain.stderr
    done = toy.run("check", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["where"] == {"path": "FTBUILD.toml", "line": 16, "column": 8}
    assert problem.keys() == {"code", "what", "where", "why", "fix"}


def test_path_prints_the_directory_and_nothing_else(toy: Toy) -> None:
    build(toy)
    done = toy.run("path", "shout")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert (Path(done.stdout[:-1]) / "text.txt").read_bytes() == SHOUTED
    assert (toy.root / "ftbuild-out/shout/text.txt").read_bytes() == SHOUTED


def test_path_of_what_is_not_built(toy: Toy) -> None:
    done = toy.run("path", "shout")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error[E0010]: `shout` has not been built here\n  fix: ftbuild make shout\n"
    )


def test_clean_removes_the_links_and_make_runs_nothing_to_bring_them_back(toy: Toy) -> None:
    build(toy)
    done = toy.run("clean", "calm")
    assert (done.returncode, done.stdout) == (0, "removed calm from ftbuild-out\n")
    assert not (toy.root / "ftbuild-out/calm").exists()
    assert untimed(toy.run("make").stderr) == "nothing to do (3 targets fresh, T)\n"
    assert (toy.root / "ftbuild-out/calm").exists()


def test_gc_keeps_what_is_in_use(toy: Toy) -> None:
    build(toy)
    done = toy.run("gc", "--max-size", "0 B", "--grace", "0 s")
    assert done.returncode == 0
    assert done.stdout.startswith("removed 0 records, ")
    assert re.search(r"; 3 records with \d\.\d KB stay\n$", done.stdout)
    assert (toy.root / "ftbuild-out/shout/text.txt").read_bytes() == SHOUTED


def test_gc_takes_its_limits_from_the_manifest_and_flags_beat_them(toy: Toy) -> None:
    build(toy)
    limits = '\n[cache]\nmax_size = "0 B"\n'
    toy.write("FTBUILD.toml", (toy.root / "FTBUILD.toml").read_text() + limits)
    # The last two builds are in use: `diff` compares them.
    assert toy.run("make", "-q", "--set", "shout.mark=?").returncode == 0
    assert toy.run("make", "-q", "--set", "shout.mark=.").returncode == 0
    for record in (toy.root.parent / "store").glob("v1/actions/*/*.json"):
        os.utime(record, (0, 0))  # last used long ago
    grace = ("-n", "--grace", "0 s", "--json")
    assert json.loads(toy.run("gc", *grace, "--max-size", "1 GB").stdout)["records"] == 0
    assert json.loads(toy.run("gc", *grace).stdout)["records"] == 1


def test_lock_check_exits_3_until_the_lock_is_written(toy: Toy) -> None:
    assert toy.run("lock").returncode == 0
    done = toy.run("lock", "--check")
    assert (done.returncode, done.stdout) == (0, "FTBUILD.lock is up to date\n")


def test_doctor_finds_nothing_wrong_with_the_toy(toy: Toy) -> None:
    done = toy.run("doctor", "--json")
    levels = {finding["level"] for finding in json.loads(done.stdout)["findings"]}
    assert (done.returncode, "error" in levels) == (0, False)


def test_another_folder_by_the_flag_before_and_after_the_command(toy: Toy) -> None:
    above = toy.root.parent
    build(toy)
    before = toy.run("-C", "toy", "path", "shout", cwd=above)
    after = toy.run("path", "shout", "-C", "toy", cwd=above)
    steps = toy.run("-C", str(above), "-C", "toy", "path", "shout", cwd=Path("/"))
    assert before.stdout == after.stdout == steps.stdout != ""
    missing = toy.run("-C", "nowhere", "plan", cwd=above)
    assert (missing.returncode, missing.stderr) == (
        2,
        "error[E0022]: there is no folder `nowhere`\n  fix: check `-C`\n",
    )
