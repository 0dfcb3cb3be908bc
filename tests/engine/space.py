"""A workspace with a store of its own, and short ways to change it, build it and look at it."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftbuild.build import BuildResult
from ftbuild.errors import FtbuildError
from ftbuild.events import Event, Finished
from ftbuild.project import Project

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TOYS = '[project]\nname = "toys"\nrules = ["rules/toys.py"]\n\n'
PLAIN = '[project]\nname = "plain"\n\n'
"""Without project rules: what builds commands alone starts no worker."""


@dataclass
class Space:
    """One workspace; every call opens it anew, as every command does."""

    root: Path
    store: Path
    events: list[Event] = field(default_factory=list)
    """Of the last build."""
    result: BuildResult | None = None

    def write(self, path: str, content: str | bytes) -> Path:
        """Write a file of the workspace."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def manifest(self, text: str, *, package: str = "", toys: bool = False) -> None:
        """Write an FTBUILD.toml; the root's gets a [project], with toy rules or without."""
        head = "" if package else (TOYS if toys else PLAIN)
        self.write(f"{package}/FTBUILD.toml" if package else "FTBUILD.toml", head + text)
        if toys:
            for name, copy in (("toys.py", "toys.py"), ("toy_helper.py", "toy_helper.py")):
                self.write(f"rules/{copy}", (HERE / name).read_bytes())

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the only `old` in a file."""
        text = (self.root / path).read_text()
        assert text.count(old) == 1, (path, old, text.count(old))
        self.write(path, text.replace(old, new))

    def open(self, directory: str = ".", **options: Any) -> Project:
        """Open the workspace."""
        return Project.open(self.root / directory, **{"jobs": 2, **options})

    def make(self, *names: str, directory: str = ".", **options: Any) -> list[str]:
        """Build, expect success, and return the labels of what really ran, in their order."""
        result = self.build(*names, directory=directory, **options)
        failures = [e for e in self.events if isinstance(e, Finished) and e.error]
        assert result.exit_code == 0, failures
        return list(result.built)

    def build(
        self,
        *names: str,
        directory: str = ".",
        keep_going: bool = False,
        force: tuple[str, ...] = (),
        **options: Any,
    ) -> BuildResult:
        """Build, and return how that went."""
        self.events = []
        with self.open(directory, **options) as project:
            self.result = project.make(
                names, keep_going=keep_going, force=force, on_event=self.events.append
            )
        return self.result

    def plan(self, *names: str, **options: Any) -> dict[str, str]:
        """Return the state of each target."""
        with self.open(**options) as project:
            return {v.label: str(v.state) for v in project.plan(names).verdicts}

    def pending(self, *names: str, **options: Any) -> set[str]:
        """Return the targets that are not fresh."""
        return {label for label, state in self.plan(*names, **options).items() if state != "fresh"}

    def reasons(self, label: str, **options: Any) -> list[tuple[str, str]]:
        """Return kind and detail of each reason why a target is not fresh."""
        with self.open(**options) as project:
            [verdict] = [v for v in project.plan([label]).verdicts if v.label == label]
            return [(r.kind, r.detail) for r in verdict.reasons]

    def why(self, name: str, **options: Any) -> dict[str, list[str]]:
        """Return what `why` says of each target: details, and indented what is below them."""
        with self.open(**options) as project:
            return {
                v.label: [t for r in v.reasons for t in (r.detail, *(f"  {x}" for x in r.lines))]
                for v in project.why(name).verdicts
            }

    def finished(self, label: str) -> Finished:
        """Return how the last build left a target."""
        [found] = [e for e in self.events if isinstance(e, Finished) and e.label == label]
        return found

    def failed(self, *names: str, **options: Any) -> str:
        """Build, expect that it cannot even begin, and return the error in full."""
        try:
            self.build(*names, **options)
        except FtbuildError as error:
            return f"exit {error.exit_code}\n{error.render()}"
        raise AssertionError("it built")

    def output(self, target: str, *, package: str = "") -> Path:
        """Return the link to a target's artifact."""
        return self.root / package / "ftbuild-out" / target

    def text(self, target: str, file: str = "text.txt", *, package: str = "") -> str:
        """Return a file of a target's artifact."""
        return (self.output(target, package=package) / file).read_text()

    def keys_of_plan(self) -> dict[str, str]:
        """Return the action key of each target whose inputs are known."""
        with self.open() as project:
            return {v.label: str(v.key) for v in project.plan().verdicts if v.key}

    def copy_of(self, built: "Space", *, has_outputs: bool = True) -> "Space":
        """Take over the files, the store and the history of a built workspace: a quick start."""
        ours = shutil.ignore_patterns("graph.bin", "fast.bin", "stat.bin", "ftbuild-out")
        shutil.copytree(built.root, self.root, dirs_exist_ok=True, ignore=ours)
        shutil.copytree(built.store, self.store)
        if has_outputs:
            assert self.make() == []
        return self

    def environment(self) -> dict[str, str]:
        """Return what a process needs to build this workspace, and nothing of the caller's."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root.parent / "home"),
            "FTBUILD_CACHE": str(self.store),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "rules")]),
            "LANG": "C.UTF-8",
        }

    def start(
        self, *args: str, env: Mapping[str, str] | None = None, **settings: Any
    ) -> subprocess.Popen[str]:
        """Start the command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "ftbuild", *args],
            cwd=self.root,
            env=self.environment() | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Run the command and return exit status, standard output, standard error."""
        process = self.start(*args, env=env)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@contextmanager
def new_space(folder: Path) -> Iterator[Space]:
    """Make an empty workspace with a store of its own; the caller's environment plays no part."""
    root, store = folder / "space", folder / "store"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("FTBUILD_", "TOY_", "CUDA_")):
                patch.delenv(name)
        patch.setenv("FTBUILD_CACHE", str(store))
        yield Space(root, store)


def has_ended(pid: int) -> bool:
    """Say whether a process that was killed has ended; one that nobody waits for has, too."""
    waiter, end = threading.Event(), time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        waiter.wait(0.01)
    return False


def blobs_of(store: Path) -> list[Path]:
    """Return the paths of all blobs."""
    return sorted((store / "v1" / "blobs").glob("*/*"))
