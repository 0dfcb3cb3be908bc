"""Viewing: ask a viewer of a rule pack, in a process of its own, how an artifact looks."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.digest import Digest
from ftbuild.errors import FtbuildError, MachineError, problems_from
from ftbuild.view import Span, View


@dataclass(frozen=True)
class Shown:
    """An artifact that is to be looked at."""

    kind: str
    path: Path
    digest: Digest
    label: str


def call(module: str, function: str, artifacts: Sequence[Shown], arguments: Sequence[Any]) -> View:
    """Return what `function` of the viewer `module` says of `artifacts`.

    Raises:
        FtbuildError: what the viewer raises, such as a row that is not there.
        MachineError: E0708, the viewer itself fails.
    """
    request = {
        "module": module,
        "function": function,
        "artifacts": [[a.kind, str(a.path), a.digest, a.label] for a in artifacts],
        "arguments": list(arguments),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ftbuild.worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise MachineError(
            f"the viewer for a {artifacts[0].kind} failed", code="E0708", why=last[0]
        )
    answer = json.loads(done.stdout)
    if "failed" in answer:
        error = FtbuildError("", code="E0709")
        error.problems = problems_from(answer["failed"])
        error.exit_code = 2
        raise error
    view = answer["view"]
    lines = tuple(tuple(Span(**s) for s in line) for line in view["lines"])
    return View(view["data"], lines, view["distance"])
