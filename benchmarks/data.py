"""Rules between datasets at two sizes, in one run: time, cores used, the peak of memory.

    python benchmarks/data.py --work DIR --prepare      # once: makes the rows
    python benchmarks/data.py --work DIR                # prints the table

Rows are chats of 260 tokens in the mean (`_rows.py`); each rule starts from the finished dataset
and an empty history, and writes its rows. One row in a hundred of those for `dedup` and `leakage`
repeats another one, and one in a hundred is another one with its last words gone. The last column
is the same target once more after one row of the source was edited.

Units: seconds of the clock, of CPU (user and system, all descendants), MiB of the largest process,
mapped files included.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from _measure import Usage, measure
from _rows import lines, written

LIMIT_S = 3600.0
MANIFEST = """[project]
name = "data"

[dataset.rows]
source = "rows.jsonl"
format = "openai"

[dataset.others]
source = "others.jsonl"
format = "openai"

[filter.filter]
dataset = "rows"
where = "id % 100 != 7"

[split.split]
dataset = "rows"
part = "train"

[transform.transform]
dataset = "rows"
function = "change.py:change"

[mix.mix]
datasets = { rows = "rows", others = "others" }
weights = { rows = 9, others = 1 }

[dedup.exact]
dataset = "rows"

[dedup.near]
dataset = "rows"
method = "near"

[leakage.leakage]
train = "rows"
eval = "others"
"""
CHANGE = """def change(row):
    row["messages"][-1]["content"] += " Anything else?"
    return row
"""
TARGETS = ["filter", "split", "transform", "mix", "exact", "near", "leakage"]


def repeated(count: int) -> Iterator[str]:
    """Yield rows of which some say what one of the thousand before says."""
    earlier: list[str] = []
    for number, line in enumerate(lines(count)):
        if number % 50 == 49:
            row = json.loads(earlier[number * 7 % len(earlier)])
            if number % 100 == 99:
                said = row["messages"][-1]["content"].split()
                row["messages"][-1]["content"] = " ".join(said[:-1]) or "Yes."
            yield json.dumps({**row, "id": number}) + "\n"
            continue
        earlier = [*earlier[-999:], line]
        yield line


class Bench:
    """A project in a folder of its own, with its store."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.project = work / "project"
        self.project.mkdir(parents=True, exist_ok=True)
        (self.project / "FTBUILD.toml").write_text(MANIFEST)
        (self.project / "change.py").write_text(CHANGE)
        self.environment = {**os.environ, "FTBUILD_CACHE": str(work / "store")}

    def make(self, *targets: str) -> Usage:
        """Build targets."""
        log = self.work / "log"
        log.unlink(missing_ok=True)
        used = measure(
            [sys.executable, "-m", "ftbuild", "make", *targets],
            directory=str(self.project),
            environment=self.environment,
            log=str(log),
            limit_s=LIMIT_S,
        )
        if used.exit_code:
            raise SystemExit(log.read_text())
        return used

    def use(self, rows: int) -> None:
        """Begin anew, with both datasets built."""
        shutil.rmtree(self.work / "store", ignore_errors=True)
        shutil.copyfile(self.work / f"rows-{rows}.jsonl", self.project / "rows.jsonl")
        shutil.copyfile(self.work / f"rows-{rows // 10}.jsonl", self.project / "others.jsonl")
        self.make("rows", "others")

    def edit(self) -> None:
        """Change one row in the middle."""
        path = self.project / "rows.jsonl"
        staged = path.with_suffix(".part")
        middle = path.stat().st_size // 2
        mark = b'"content": "%d ' % time.time_ns()
        at = 0
        with open(path, "rb") as source, open(staged, "wb") as target:
            for line in source:
                is_here = at <= middle < at + len(line)
                at += len(line)
                target.write(line.replace(b'"content": "', mark, 1) if is_here else line)
        staged.replace(path)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where all files are")
    parser.add_argument("--prepare", action="store_true", help="make the rows")
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--only", nargs="*", default=TARGETS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.work.resolve())
    if args.prepare:
        for rows in sorted({*args.rows, *(rows // 10 for rows in args.rows)}):
            written(bench.work / f"rows-{rows}.jsonl", repeated(rows))
        return
    print(f"{len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}\n")
    print("| rule | rows | wall s | CPU s | peak MiB | wall s after an edit |")
    print("|---|---|---|---|---|---|", flush=True)
    for rows in args.rows:
        bench.use(rows)
        first = {target: bench.make(target) for target in args.only}
        bench.edit()
        bench.make("rows")
        for target, used in first.items():
            again = bench.make(target)
            print(
                f"| {target} | {rows:,} | {used.wall_s:.1f} | {used.cpu_s:.1f} "
                f"| {used.peak_mib:,.0f} | {again.wall_s:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
