"""Seventeen probes of correctness on a three-step chain, each tool beside the others.

    python benchmarks/probes.py --peers DIR

`clean` drops the comment lines of src/raw.txt, `loud` makes it upper case, `final` copies. Each
step writes its name into a file outside the project when it runs. A probe passes when the
bytes of `final` are right and no step ran that need not; where it says "like from nothing", the
right bytes are those that the same tool makes in a new copy of the project.
Every probe starts in a new directory; a tool without a store fails the probe that asks for one.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _chain import COMMANDS, FIRST, LIMIT_S, Chain, Failed, expect_ran, rewrite, started
from _peers import Tool, tools


def nothing_to_do_runs_nothing(tool: Tool, top: Path) -> None:
    """Build twice."""
    chain = started(tool, top)
    chain.expect("HELLO\nWORLD\n")
    expect_ran(chain.build(), [])


def touch_runs_nothing(tool: Tool, top: Path) -> None:
    """Give the source a new time and its old bytes."""
    chain = started(tool, top)
    chain.source.touch()
    expect_ran(chain.build(), [])


def comment_edit_is_cut_off(tool: Tool, top: Path) -> None:
    """Edit a line that `clean` drops."""
    chain = started(tool, top)
    chain.source.write_text("# a second comment\nhello\nworld\n")
    expect_ran(chain.build(), ["clean"])
    chain.expect("HELLO\nWORLD\n")


def same_size_edit_with_old_time(tool: Tool, top: Path) -> None:
    """Edit without changing size or time of modification."""
    chain = started(tool, top)
    rewrite(chain.source, "# first\njello\nworld\n")
    chain.build()
    chain.expect("JELLO\nWORLD\n")


def other_size_edit_with_old_time(tool: Tool, top: Path) -> None:
    """Edit and put the time of modification back."""
    chain = started(tool, top)
    rewrite(chain.source, "# first\nhello\nwide world\n")
    chain.build()
    chain.expect("HELLO\nWIDE WORLD\n")


def source_replaced_by_an_older_file(tool: Tool, top: Path) -> None:
    """Move another file of another size, a day older, to the source's name."""
    chain = started(tool, top)
    old = chain.directory / "src/old"
    old.write_text("# old\nonce\n")
    time_ns = chain.source.stat().st_mtime_ns - 86_400 * 10**9
    os.utime(old, ns=(time_ns, time_ns))
    old.replace(chain.source)
    chain.build()
    chain.expect("ONCE\n")


def changed_command_runs_again(tool: Tool, top: Path) -> None:
    """Change the second command."""
    chain = started(tool, top)
    chain.loud = "tr a-z b-za < @in > @out"
    chain.write()
    expect_ran(chain.build(), ["loud", "final"])
    chain.expect("ifmmp\nxpsme\n")


def tampered_output_is_repaired(tool: Tool, top: Path) -> None:
    """Write into the final output, and then into one that only other steps read."""
    chain = started(tool, top)
    for step in ("final", "clean"):
        right = chain.path(step).read_text()
        chain.path(step).chmod(0o644)
        chain.path(step).write_text("tampered\n")
        chain.build()
        if chain.path(step).read_text() != right:
            raise Failed(f"{step} is still what was written into it")
    chain.expect("HELLO\nWORLD\n")


def deleted_output_comes_back_without_running(tool: Tool, top: Path) -> None:
    """Delete the final output."""
    chain = started(tool, top)
    chain.delete("final")
    expect_ran(chain.build(), [])
    chain.expect("HELLO\nWORLD\n")


def deleted_intermediate_leaves_the_final_alone(tool: Tool, top: Path) -> None:
    """Delete the output of the step before the last."""
    chain = started(tool, top)
    chain.delete("loud")
    if "final" in chain.build():
        raise Failed("ran final")
    chain.expect("HELLO\nWORLD\n")


def going_back_comes_from_the_store(tool: Tool, top: Path) -> None:
    """Build A, then B, then A again."""
    chain = started(tool, top)
    chain.source.write_text("# first\nother\n")
    chain.build()
    chain.expect("OTHER\n")
    chain.source.write_text(FIRST)
    expect_ran(chain.build(), [])
    chain.expect("HELLO\nWORLD\n")


def undeclared_file_appears(tool: Tool, top: Path) -> None:
    """Let `final` add a file that nobody declared, if it is there: like from nothing."""
    chain = started(tool, top, final="{ cat @in; cat extra.txt 2>/dev/null || true; } > @out")
    (chain.directory / "extra.txt").write_text("extra\n")
    chain.build()
    chain.expect(chain.from_nothing())


def environment_variable_changes(tool: Tool, top: Path) -> None:
    """Let `final` add a variable that nobody declared: like from nothing."""
    chain = started(tool, top, final='{ cat @in; echo "$GREETING"; } > @out')
    chain.greeting = "good night"
    chain.build()
    chain.expect(chain.from_nothing())


def failed_step_builds_later(tool: Tool, top: Path) -> None:
    """Let `loud` fail after a part of its output, once."""
    allowed = top / "allowed"
    loud = f"printf part > @out; test -e {allowed} || exit 7; {COMMANDS['loud']}"
    chain = Chain(tool, top, loud)
    chain.start()
    code, _ = chain.try_build()
    if code == 0:
        raise Failed("a failed step made no failed build")
    allowed.touch()
    chain.build()
    chain.expect("HELLO\nWORLD\n")


def kill_in_mid_step(tool: Tool, top: Path) -> None:
    """Kill the whole process group while `loud` has written a part of its output."""
    slow = top / "slow"
    slow.touch()
    loud = f"printf part > @out; test -e {slow} && sleep 60; {COMMANDS['loud']}"
    chain = Chain(tool, top, loud)
    chain.start()
    process = chain.spawn(tool.build)
    begin = time.monotonic()
    while "loud" not in chain.ran() and time.monotonic() < begin + LIMIT_S:
        time.sleep(0.05)
    time.sleep(0.3)
    # Steps may sit in process groups of their own: all that descends from the tool has to go.
    for pid in [process.pid, *_descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    slow.unlink()
    chain.build()
    chain.expect("HELLO\nWORLD\n")


def two_builds_at_once(tool: Tool, top: Path) -> None:
    """Start two builds of the same project together."""
    chain = Chain(tool, top, f"sleep 0.5; {COMMANDS['loud']}")
    chain.start()
    processes = [chain.spawn(tool.build) for _ in range(2)]
    codes = [chain.wait(process) for process in processes]
    if any(codes):
        raise Failed(f"the builds ended with {codes[0]} and {codes[1]}")
    expect_ran(sorted(chain.ran()), ["clean", "final", "loud"])
    chain.expect("HELLO\nWORLD\n")


def corrupt_object_is_noticed(tool: Tool, top: Path) -> None:
    """Change a byte of the store's copy of the final output, and delete the output."""
    if tool.objects is None:
        raise Failed("no store")
    chain = started(tool, top)
    right = "HELLO\nWORLD\n"
    files = [path for path in (chain.directory / tool.objects).rglob("*") if path.is_file()]
    hit = [path for path in files if path.read_bytes() == right.encode()]
    assert hit, f"no object of {tool.name} holds the output"
    for path in hit:
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"J")
        path.chmod(0o444)
    chain.delete("final")
    code, _ = chain.try_build()
    if code == 0:
        chain.expect(right)


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


PROBES: dict[str, Callable[[Tool, Path], None]] = {
    "nothing to do runs nothing": nothing_to_do_runs_nothing,
    "touch runs nothing": touch_runs_nothing,
    "a comment edit is cut off": comment_edit_is_cut_off,
    "same-size edit, old mtime": same_size_edit_with_old_time,
    "other-size edit, old mtime": other_size_edit_with_old_time,
    "source replaced by an older file": source_replaced_by_an_older_file,
    "command changed": changed_command_runs_again,
    "tampered output is repaired": tampered_output_is_repaired,
    "deleted output comes back without running": deleted_output_comes_back_without_running,
    "deleted intermediate leaves the final alone": deleted_intermediate_leaves_the_final_alone,
    "A, B, A comes from the store": going_back_comes_from_the_store,
    "undeclared file appears": undeclared_file_appears,
    "environment variable changes": environment_variable_changes,
    "failed after a partial output, then builds": failed_step_builds_later,
    "kill -9 in mid-step": kill_in_mid_step,
    "two builds at once": two_builds_at_once,
    "corrupt store object is noticed": corrupt_object_is_noticed,
}


def attempt(probe: str, tool: Tool, work: Path) -> str | None:
    """Run one probe in a new directory; return None if it holds, else what was seen."""
    top = work / tool.name / probe.replace(" ", "-").replace(",", "")
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    try:
        PROBES[probe](tool, top)
    except Failed as failed:
        return str(failed)
    return None


def main() -> int:
    """Run all probes with all tools, print the table, and fail if ftbuild fails one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = os.environ.get("FTBUILD_BENCH_PEERS")
    parser.add_argument("--peers", type=Path, default=default, required=default is None)
    parser.add_argument("--ftbuild", type=Path, default=Path(sys.executable).parent / "ftbuild")
    parser.add_argument("--tools", type=lambda text: text.split(","), help="only these")
    parser.add_argument("--work", type=Path, default=Path("/tmp/ftbuild-probes"))
    options = parser.parse_args()
    every = tools(
        options.peers, options.ftbuild if options.ftbuild.exists() else None, careful=True
    )
    chosen = [every[name] for name in options.tools or every]
    seen = {}
    for probe in PROBES:
        for tool in chosen:
            seen[probe, tool.name] = attempt(probe, tool, options.work)
            if failure := seen[probe, tool.name]:
                print(f"{tool.name}: {probe}: {failure}", file=sys.stderr, flush=True)
    names = [tool.name for tool in chosen]
    print("| | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for probe in PROBES:
        cells = ["pass" if seen[probe, name] is None else "-" for name in names]
        print(f"| {probe} | " + " | ".join(cells) + " |")
    totals = {name: sum(seen[probe, name] is None for probe in PROBES) for name in names}
    print(f"| **of {len(PROBES)}** | " + " | ".join(f"**{totals[name]}**" for name in names) + " |")
    return 0 if totals.get("ftbuild", len(PROBES)) == len(PROBES) else 1


if __name__ == "__main__":
    sys.exit(main())
