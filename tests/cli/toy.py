"""A toy project of three steps, and the command as users start it: a process of its own."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

MANIFEST = """\
[project]
name = "toy"
default = ["shout"]
rules = ["rules/text.py"]

[keep.lines]
source = "data/raw.txt"
description = "the lines that are no comments"
tags = ["data", "small"]

[loud.calm]
text = "lines"

[loud.shout]
text = "calm"
mark = "!"
"""

RULES = '''\
"""Rules of the toy project: text in, text out."""

from typing import Literal

from ftbuild.api import Context, Field, File, Inputs, Params, RuleError, Source, rule


class KeepInputs(Inputs):
    """Where the lines come from."""

    source: Source
    """A text file."""


class KeepParams(Params):
    """Which lines stay."""

    comment: str = "#"
    """How a line begins that is dropped."""


@rule(output=File)
def keep(ctx: Context, inputs: KeepInputs, params: KeepParams) -> None:
    """Keep the lines that are no comments."""
    lines = inputs.source.files[0].path.read_text().splitlines(keepends=True)
    if any("BOOM" in line for line in lines):
        print("about to fail\\x1b[2J")
        print("::error::not mine")
        raise RuleError("a line says BOOM", code="E0899", fix="take it out")
    if any("WARN" in line for line in lines):
        ctx.warn("a line says WARN")
    if any("BUG" in line for line in lines):
        raise ZeroDivisionError("in the rule")
    text = "".join(line for line in lines if not line.startswith(params.comment))
    (ctx.out / "text.txt").write_text(text)


class LoudInputs(Inputs):
    """What to raise."""

    text: File
    """The text."""


class LoudParams(Params):
    """How to end a line."""

    mark: str = ""
    """Ends each line."""
    times: int = Field(default=1, ge=1, le=9)
    """How often the mark stands there."""
    style: Literal["upper", "title"] = "upper"
    """Which letters are raised."""


@rule(output=File)
def loud(ctx: Context, inputs: LoudInputs, params: LoudParams) -> None:
    """Raise the letters.

    More than anyone has to know.
    """
    lines = (inputs.text.path / "text.txt").read_text().splitlines()
    for step, _ in enumerate(lines, start=1):
        ctx.progress(step, len(lines), loss=1 / step)
    mark = params.mark * params.times
    text = "".join(f"{getattr(line, params.style)()}{mark}\\n" for line in lines)
    (ctx.out / "text.txt").write_text(text)
'''


@dataclass
class Toy:
    """The project's folder, and a way to call the command in it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, *args: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            self.command(*args),
            cwd=cwd or self.root,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def command(self, *args: str) -> list[str]:
        """Return what to start."""
        return [sys.executable, "-m", "ftbuild", *args]

    def write(self, path: str, text: str) -> None:
        """Write a file of the project."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
