"""Start-up and up-to-date checks of ftbuild beside six other tools, in one run.

    python benchmarks/_peers.py DIR                 # once: the peers into a virtual environment
    python benchmarks/engine.py --peers DIR         # prints the tables

The graph is `_graph.synthetic`: N/10 sources, nine steps on each, a binary tree of joins. For
each N every scenario is run by all tools in turn, five rounds of it or until a tool has used
20 s; the median counts. After every run the goal's bytes are compared with the right ones.

- start: `--version`
- first build: in a new directory, with an empty store
- nothing to do: three seconds after the last change, so that no time stamp is too young to
  be trusted, and with warm state: the run before it is not counted
- one source edited: one line of data
- a comment edited: a line that the first step drops
- all touched: every source has a new time and the old bytes
- outputs restored: the folder of the outputs is deleted and made again, from the store
  (ftbuild, DVC by `dvc checkout`) or by running every step (all others)

Units: CPU seconds (user and system, all descendants), wall seconds, MiB of the largest process.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import _dvc
from _graph import Graph, contents, source_text, synthetic
from _measure import Usage, measure
from _peers import Tool, install, tools

ROUNDS = 5
ENOUGH_S = 20.0
LIMIT_S = 3 * 3600.0
SETTLED_S = 3.0

Change = Callable[["Bench", int], None]


@dataclass
class Bench:
    """One tool with the graph in a directory of its own."""

    tool: Tool
    graph: Graph
    directory: Path
    comments: dict[int, str] = field(default_factory=dict)
    data: dict[int, str] = field(default_factory=dict)

    @property
    def num_sources(self) -> int:
        """How many sources the graph has."""
        return sum(step.kind == "strip" for step in self.graph.steps)

    def text(self, number: int) -> bytes:
        """Return what source `number` now holds."""
        data, comment = self.data.get(number, "one"), self.comments.get(number, "first")
        return source_text(number, data=data, comment=comment).encode()

    def start_anew(self, round_number: int) -> None:
        """Make the directory again, with sources and build files and nothing else."""
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "src").mkdir(parents=True)
        (self.directory / ".home").mkdir()
        for number in range(self.num_sources):
            (self.directory / f"src/{number}.txt").write_bytes(self.text(number))
        self.tool.write(self.graph, self.directory)
        for command in self.tool.prepare:
            self.run(command)

    def edit_data(self, round_number: int) -> None:
        """Edit the data of one source."""
        number = self.num_sources // 2
        self.data[number] = f"edit {round_number}"
        (self.directory / f"src/{number}.txt").write_bytes(self.text(number))

    def edit_comment(self, round_number: int) -> None:
        """Edit the comment of one source."""
        number = self.num_sources // 3
        self.comments[number] = f"comment {round_number}"
        (self.directory / f"src/{number}.txt").write_bytes(self.text(number))

    def touch(self, round_number: int) -> None:
        """Give every source the present time."""
        for number in range(self.num_sources):
            os.utime(self.directory / f"src/{number}.txt")

    def delete_outputs(self, round_number: int) -> None:
        """Delete every output in the workspace; a tool's store stays."""
        shutil.rmtree(self.directory / self.tool.outputs)
        if self.tool.outputs == "out":
            (self.directory / "out").mkdir()

    def leave(self, round_number: int) -> None:
        """Change nothing."""

    def seed(self) -> None:
        """Write the state that DVC's first build would have left."""
        self.start_anew(0)
        sources = {f"src/{n}.txt": self.text(n) for n in range(self.num_sources)}
        _dvc.seed(self.graph, contents(self.graph, sources), self.directory)
        self.run(self.tool.restore)

    def run(self, command: tuple[str, ...]) -> Usage:
        """Run and measure `command`.

        Raises:
            RuntimeError: it failed.
        """
        used = measure(
            command,
            directory=str(self.directory),
            environment=self.tool.variables(self.directory),
            log=str(self.directory / "log"),
            limit_s=LIMIT_S,
        )
        if used.exit_code:
            raise RuntimeError(f"`{' '.join(command)}` failed: see {self.directory / 'log'}")
        return used

    def check(self) -> None:
        """Hold the goal against the right bytes.

        Raises:
            RuntimeError: they differ.
        """
        sources = {f"src/{n}.txt": self.text(n) for n in range(self.num_sources)}
        right = contents(self.graph, sources)[self.graph.goal]
        if self.tool.output(self.directory, self.graph.goal).read_bytes() != right:
            raise RuntimeError(f"{self.tool.name}: wrong goal in {self.directory}")


SCENARIOS: dict[str, Change] = {
    "start": Bench.leave,
    "first build": Bench.start_anew,
    "nothing to do": Bench.leave,
    "one source edited": Bench.edit_data,
    "a comment edited": Bench.edit_comment,
    "all touched": Bench.touch,
    "outputs restored": Bench.delete_outputs,
}


def command_for(tool: Tool, scenario: str) -> tuple[str, ...]:
    """Return what `tool` runs in `scenario`."""
    if scenario == "start":
        return tool.version
    if scenario == "outputs restored" and tool.restore:
        return tool.restore
    return tool.build


def measure_scenario(scenario: str, benches: list[Bench]) -> dict[str, Usage]:
    """Run `scenario` in rounds, each tool once a round, and return medians by tool."""
    runs: dict[str, list[Usage]] = {bench.tool.name: [] for bench in benches}
    if scenario in ("start", "nothing to do"):
        time.sleep(SETTLED_S)
        for bench in benches:
            bench.run(command_for(bench.tool, scenario))
    for round_number in range(ROUNDS):
        for bench in benches:
            done = runs[bench.tool.name]
            if sum(used.wall_s for used in done) > ENOUGH_S:
                continue
            SCENARIOS[scenario](bench, round_number)
            done.append(bench.run(command_for(bench.tool, scenario)))
            if scenario != "start":
                bench.check()
    return {name: _median(done) for name, done in runs.items()}


def _median(runs: list[Usage]) -> Usage:
    cpu_s, wall_s, peak_mib = (
        statistics.median(getattr(used, unit) for used in runs)
        for unit in ("cpu_s", "wall_s", "peak_mib")
    )
    return Usage(cpu_s, wall_s, peak_mib, exit_code=0)


@dataclass(frozen=True)
class Row:
    """One measured figure: a line of the results file."""

    size: int
    scenario: str
    tool: str
    used: Usage


def measure_size(
    size: int, chosen: list[Tool], work: Path, *, dvc_builds_up_to: int
) -> Iterator[Row]:
    """Measure all scenarios at one N."""
    graph = synthetic(size)
    benches = [Bench(tool, graph, work / str(size) / tool.name) for tool in chosen]
    for bench in benches:
        bench.start_anew(0)
    for scenario in SCENARIOS:
        taking_part = benches
        if scenario == "first build" and size > dvc_builds_up_to:
            taking_part = [bench for bench in benches if bench.tool.name != "dvc"]
            for bench in benches:
                if bench not in taking_part:
                    bench.seed()
        for tool, used in measure_scenario(scenario, taking_part).items():
            yield Row(size, scenario, tool, used)


def table(rows: list[Row], size: int, unit: str) -> str:
    """Return a Markdown table of one unit: a line for each tool, with ratios to ftbuild's."""
    known = {(row.tool, row.scenario): getattr(row.used, unit) for row in rows if row.size == size}
    lines = ["| | " + " | ".join(SCENARIOS) + " |", "|---" * (len(SCENARIOS) + 1) + "|"]
    for name in dict.fromkeys(row.tool for row in rows):
        cells = [_cell(known, name, scenario) for scenario in SCENARIOS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(known: dict[tuple[str, str], float], tool: str, scenario: str) -> str:
    value = known.get((tool, scenario))
    if value is None:
        return "-"
    own = known.get(("ftbuild", scenario))
    return f"{value:.3g}" if not own else f"{value:.3g} (x {value / own:.3g})"


@dataclass(frozen=True)
class Goal:
    """A bound on ftbuild's CPU time: `bound` times the peer's."""

    scenario: str
    size: int
    peer: str
    bound: float


GOALS = (
    Goal("nothing to do", 5000, "doit", 1 / 2),
    Goal("nothing to do", 5000, "snakemake", 1 / 10),
    Goal("nothing to do", 5000, "dvc", 1 / 200),
    Goal("first build", 1000, "ninja", 1.5),
    Goal("outputs restored", 5000, "dvc", 1 / 40),
    Goal("start", 100, "doit", 1.0),
)


def verdicts(rows: list[Row]) -> list[str]:
    """Return a line for each goal of which both figures were measured."""
    known = {(row.scenario, row.size, row.tool): row.used.cpu_s for row in rows}
    lines = []
    for goal in GOALS:
        own = known.get((goal.scenario, goal.size, "ftbuild"))
        peer = known.get((goal.scenario, goal.size, goal.peer))
        if own is None or peer is None:
            continue
        word = "met" if own <= goal.bound * peer else "MISSED"
        what = f"{goal.scenario} at {goal.size}: {own:.3g} s, {own / peer:.3g} of {goal.peer}'s"
        lines.append(f"- {what} (bound {goal.bound:.3g}): {word}")
    return lines


def machine() -> str:
    """Return one line about this machine."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    version = platform.python_version()
    return f"{os.cpu_count()} cores of {cpu}, Linux {platform.release()}, Python {version}"


def interpreter_cpu_s() -> float:
    """Return the CPU time that a bare interpreter takes to start and end."""
    used = [
        measure(
            [sys.executable, "-c", "pass"],
            directory="/",
            environment=os.environ,
            log=os.devnull,
            limit_s=LIMIT_S,
        )
        for _ in range(ROUNDS)
    ]
    return statistics.median(one.cpu_s for one in used)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = os.environ.get("FTBUILD_BENCH_PEERS")
    parser.add_argument("--peers", type=Path, default=default, required=default is None)
    parser.add_argument("--install", action="store_true", help="make the peers' environment first")
    parser.add_argument("--ftbuild", type=Path, default=Path(sys.executable).parent / "ftbuild")
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--tools", type=lambda text: text.split(","), help="only these")
    parser.add_argument("--limit", action="append", default=[], metavar="TOOL=N")
    parser.add_argument(
        "--dvc-builds-up-to",
        type=int,
        default=1000,
        metavar="N",
        help="above this DVC gets the state that its first build would leave (1,000: 17 minutes)",
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/ftbuild-bench"))
    parser.add_argument("--results", type=Path, help="a JSON line for each figure goes here too")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    if options.install:
        install(options.peers)
    every = tools(options.peers, options.ftbuild if options.ftbuild.exists() else None)
    chosen = [every[name] for name in options.tools or every]
    limits = {name: int(n) for name, n in (text.split("=") for text in options.limit)}
    rows: list[Row] = []
    begin = time.time()
    print(f"{machine()}; a bare interpreter takes {interpreter_cpu_s():.3g} s of CPU")
    for size in options.sizes or [100, 1000, 5000]:
        fitting = [tool for tool in chosen if size <= limits.get(tool.name, size)]
        measured = measure_size(
            size, fitting, options.work, dvc_builds_up_to=options.dvc_builds_up_to
        )
        for row in measured:
            rows.append(row)
            line = json.dumps({**row.__dict__, "used": row.used._asdict()})
            print(f"{time.time() - begin:7.0f} s  {line}", file=sys.stderr, flush=True)
            if options.results:
                with options.results.open("a") as file:
                    file.write(line + "\n")
        for unit, title in (("cpu_s", "CPU, s"), ("wall_s", "wall, s"), ("peak_mib", "peak, MiB")):
            print(f"\n{size:,} targets: {title}\n\n{table(rows, size, unit)}")
        for tool in chosen:
            if tool not in fitting:
                print(f"\n- {tool.name}: too slow above {limits[tool.name]:,} targets, left out")
        if size > options.dvc_builds_up_to and any(tool.name == "dvc" for tool in fitting):
            print("\n- dvc: first build left out; it rewrites its lock after each of the steps")
    print("\n" + "\n".join(verdicts(rows)))


if __name__ == "__main__":
    main()
