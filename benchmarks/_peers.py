"""How each tool is told of a graph, and run: one `Tool` for each, all built alike.

Every tool is set up as its own documentation advises for this sort of work; what that means
is said at each `_write_…`. Steps write `out/NAME`, ftbuild's `ftbuild-out/NAME/f`. Nothing of
a tool's state is outside the directory it works in.
"""

import functools
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _graph import Graph, Step, is_source

VERSIONS = {
    "doit": "0.37.0",
    "dvc": "3.67.1",
    "ninja": "1.13.2",
    "redun": "0.44.1",
    "snakemake": "9.27.1",
}


@dataclass(frozen=True)
class Tool:
    """One tool: how it is told of a graph, and what is run."""

    name: str
    version: tuple[str, ...]
    """Prints the version: what a start costs."""
    build: tuple[str, ...]
    """Brings the graph's goal up to date."""
    write: Callable[[Graph, Path], None]
    restore: tuple[str, ...] = ()
    """Brings deleted outputs back, where that is another command than `build`."""
    prepare: tuple[tuple[str, ...], ...] = ()
    """Run once in a new directory, before the first build."""
    environment: Mapping[str, str] = field(default_factory=dict)
    outputs: str = "out"
    """The folder of the outputs; `{directory}` in `environment` is where the tool works."""
    objects: str | None = None
    """The folder of the store's objects, for a tool that has a store."""

    def output(self, directory: Path, step: str) -> Path:
        """Return where the output of `step` is found."""
        found = directory / self.outputs / step
        return found / "f" if self.outputs == "ftbuild-out" else found

    def variables(self, directory: Path) -> dict[str, str]:
        """Return the whole environment of a run in `directory`: nothing of the caller's home."""
        own = {name: text.format(directory=directory) for name, text in self.environment.items()}
        home = {"HOME": str(directory / ".home"), "LANG": "C.UTF-8"}
        return {"PATH": os.environ["PATH"], "TMPDIR": "/tmp", **home, **own}


def install(directory: Path) -> None:
    """Make a virtual environment at `directory` that holds the peers in the versions above."""
    venv.create(directory, with_pip=True)
    wanted = [f"{name}=={version}" for name, version in VERSIONS.items()]
    subprocess.run([directory / "bin/python", "-m", "pip", "install", "-q", *wanted], check=True)


def tools(peers: Path, ftbuild: Path | None, *, careful: bool = False) -> dict[str, Tool]:
    """Return the tools by name: those of the virtual environment `peers`, make, and ftbuild.

    Where a tool can be set up to be faster or to notice more, `careful` wants the second.
    """
    write_doit = functools.partial(_write_doit, watches_commands=careful)
    jobs = str(os.cpu_count())
    doit, dvc, ninja, redun, snakemake = (str(peers / "bin" / name) for name in VERSIONS)
    found = [
        Tool("ninja", (ninja, "--version"), (ninja, "-j", jobs, "--quiet"), _write_ninja),
        Tool("make", ("make", "--version"), ("make", "-rs", "-j", jobs), _write_make),
        Tool("doit", (doit, "--version"), (doit, "run"), write_doit),
        Tool(
            "snakemake",
            (snakemake, "--version"),
            (snakemake, "--cores", jobs, "--quiet", "all", "--scheduler", "greedy"),
            _write_snakemake,
        ),
        Tool(
            "dvc",
            (dvc, "--version"),
            (dvc, "repro", "--quiet"),
            _write_dvc,
            restore=(dvc, "checkout", "--quiet"),
            prepare=((dvc, "init", "--no-scm", "--quiet"),),
            environment={"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": "{directory}/.site"},
            objects=".dvc/cache/files",
        ),
        Tool("redun", (redun, "--version"), (redun, "run", "workflow.py", "main"), _write_redun),
    ]
    if ftbuild is not None:
        variants = {"ftbuild-apart": True, "ftbuild": False}
        if careful:  # a chain has no equal steps
            del variants["ftbuild-apart"]
        for name, is_apart in variants.items():
            own = Tool(
                name,
                (str(ftbuild), "--version"),
                (str(ftbuild), "make", "-j", jobs),
                functools.partial(_write_ftbuild, is_apart=is_apart),
                environment={"FTBUILD_CACHE": "{directory}/.store"},
                outputs="ftbuild-out",
                objects=".store/v1/blobs",
            )
            found.insert(0, own)
    return {tool.name: tool for tool in found}


def path_of(name: str) -> str:
    """Return the path, relative to the directory, of a source or of a step's output."""
    return name if is_source(name) else f"out/{name}"


def command_of(graph: Graph, step: Step) -> str:
    """Return the step's command with the paths that all but ftbuild use."""
    paths = " ".join(path_of(name) for name in step.inputs)
    return graph.commands[step.kind].replace("@in", paths).replace("@out", path_of(step.name))


def _write_ninja(graph: Graph, directory: Path) -> None:
    """Use one rule a kind; `restat` with a compared copy where early cutoff can happen.

    Source: https://ninja-build.org/manual.html#ref_rule, `restat`.
    """
    lines = ["builddir = ."]
    for kind, command in graph.commands.items():
        text = command.replace("$", "$$").replace("@in", "$in")
        if kind in graph.filters:
            text = text.replace("@out", "$out.new")
            text += " && { cmp -s $out.new $out && rm $out.new || mv $out.new $out; }"
        text = text.replace("@out", "$out")
        lines += [f"rule {kind}", f"  command = {text}"]
        lines += ["  restat = 1"] if kind in graph.filters else []
    for step in graph.steps:
        inputs = " ".join(map(path_of, step.inputs))
        lines.append(f"build {path_of(step.name)}: {step.kind} {inputs}")
    lines.append(f"default {path_of(graph.goal)}")
    (directory / "build.ninja").write_text("\n".join(lines) + "\n")


def _write_make(graph: Graph, directory: Path) -> None:
    """Use one rule a file; no built-in rules, and half-written targets are deleted.

    Source: https://www.gnu.org/software/make/manual/html_node/Errors.html, `.DELETE_ON_ERROR`.
    """
    lines = [f"{path_of(graph.goal)}:", ".DELETE_ON_ERROR:"]
    for step in graph.steps:
        command = graph.commands[step.kind].replace("$", "$$")
        command = command.replace("@in", "$^").replace("@out", "$@")
        lines += [f"{path_of(step.name)}: {' '.join(map(path_of, step.inputs))}", f"\t{command}"]
    (directory / "Makefile").write_text("\n".join(lines) + "\n")
    (directory / "out").mkdir(exist_ok=True)


DODO = """
from doit.tools import config_changed

DOIT_CONFIG = {{"backend": "json", "reporter": "zero"}}
COMMANDS = {commands!r}
STEPS = {steps!r}


def task_step():
    for kind, name, inputs in STEPS:
        command = COMMANDS[kind].replace("@in", " ".join(inputs)).replace("@out", "out/" + name)
        yield {{
            "name": name,
            "actions": [command],
            "file_dep": inputs,
            "targets": ["out/" + name],
            "uptodate": [config_changed(command)] if {watches_commands} else [],
        }}
"""


def _write_doit(graph: Graph, directory: Path, *, watches_commands: bool) -> None:
    """Use one sub-task a file, and the fastest of the three state files for 5,000 of them, JSON.

    That a command changed is noticed only where a task says so, for a fifth more time.
    Source: https://pydoit.org/uptodate.html, `config_changed`.
    """
    commands = {kind: command.replace("%", "%%") for kind, command in graph.commands.items()}
    steps = [(s.kind, s.name, list(map(path_of, s.inputs))) for s in graph.steps]
    text = DODO.format(commands=commands, steps=steps, watches_commands=watches_commands)
    (directory / "dodo.py").write_text(text)
    (directory / "out").mkdir(exist_ok=True)


def _write_snakemake(graph: Graph, directory: Path) -> None:
    """Use one rule a kind, with wildcards, and look its inputs up in a table."""
    table = {s.name: list(map(path_of, s.inputs)) for s in graph.steps}
    lines = [f"INPUTS = {table!r}", "rule all:", f"    input: {path_of(graph.goal)!r}"]
    for kind, command in graph.commands.items():
        text = command.replace("{", "{{").replace("}", "}}")
        text = text.replace("@in", "{input}").replace("@out", "{output}")
        lines += [
            f"rule {kind}:",
            f"    input: lambda wildcards: INPUTS[{kind!r} + wildcards.rest]",
            f'    output: "out/{kind}{{rest,[0-9_]*}}"',
            f"    shell: {text!r}",
        ]
    (directory / "Snakefile").write_text("\n".join(lines) + "\n")


def _write_dvc(graph: Graph, directory: Path) -> None:
    """Use one stage a file, in a project without Git; JSON is YAML that loads faster."""
    stages = {}
    for step in graph.steps:
        command = command_of(graph, step).replace("${", "\\${")
        inputs = list(map(path_of, step.inputs))
        stages[step.name] = {"cmd": command, "deps": inputs, "outs": [path_of(step.name)]}
    (directory / "dvc.yaml").write_text(json.dumps({"stages": stages}, indent=1))
    (directory / "out").mkdir(exist_ok=True)


WORKFLOW = """
import subprocess

from redun import task
from redun.file import ContentFile

redun_namespace = "bench"


class Content(ContentFile):
    type_basename = "Content"
    type_name = "bench.Content"

    def is_valid(self) -> bool:
        return self.exists() and super().is_valid()


COMMANDS = {commands!r}
STEPS = {steps!r}


@task()
def step(command: str, inputs: list[Content], output: str) -> Content:
    paths = " ".join(file.path for file in inputs)
    subprocess.run(command.replace("@in", paths).replace("@out", output), shell=True, check=True)
    return Content(output)


@task(cache=False)
def main() -> Content:
    made = {{}}
    for kind, name, inputs in STEPS:
        files = [Content(path) if "/" in path else made[path] for path in inputs]
        made[name] = step(COMMANDS[kind], files, "out/" + name)
    return made[name]
"""

REDUN = """[backend]
db_uri = sqlite:///redun.db
[executors.default]
type = local
mode = thread
max_workers = {jobs}
"""


def _write_redun(graph: Graph, directory: Path) -> None:
    """Use one task for all steps; files are told apart by content, so that cutoff can happen.

    A `ContentFile` that was deleted is an exception in redun 0.44; `Content` spares it that.
    Source: https://insitro.github.io/redun/values.html, "Content-based hashing".
    """
    steps = [(s.kind, s.name, list(s.inputs)) for s in graph.steps]
    text = WORKFLOW.format(commands=dict(graph.commands), steps=steps)
    (directory / "workflow.py").write_text(text)
    (directory / ".redun").mkdir(exist_ok=True)
    (directory / ".redun" / "redun.ini").write_text(REDUN.format(jobs=os.cpu_count()))
    (directory / "out").mkdir(exist_ok=True)


def _write_ftbuild(graph: Graph, directory: Path, *, is_apart: bool) -> None:
    """Use one `command` target a step, all in one file.

    Of equal commands on equal bytes ftbuild runs one: a chain's copies are one action. With
    `is_apart` no two commands are equal, since their variables are named after the steps, as
    paths are in the other tools' commands: then it runs as many commands as they do.
    """
    lines = ["[project]", 'name = "bench"', f'default = ["{graph.goal}"]']
    for step in graph.steps:
        sources = {Path(name).parent.name: name for name in step.inputs if is_source(name)}
        labels = [name for name in step.inputs if not is_source(name)]
        steps = {name if is_apart else f"in{place}": name for place, name in enumerate(labels)}
        paths = [f'"${name}"' for name in sources] + [f'"${name}/f"' for name in steps]
        command = graph.commands[step.kind].replace("@in", " ".join(paths))
        command = command.replace("@out", '"$out/f"')
        lines += ["", f"[command.{step.name}]", f"run = {json.dumps(command)}"]
        lines += _table("srcs", sources) + _table("deps", steps)
    (directory / "FTBUILD.toml").write_text("\n".join(lines) + "\n")


def _table(attribute: str, values: Mapping[str, str]) -> list[str]:
    if not values:
        return []
    pairs = ", ".join(f'{name} = "{value}"' for name, value in values.items())
    return [f"{attribute} = {{ {pairs} }}"]


if __name__ == "__main__":
    install(Path(sys.argv[1]))
