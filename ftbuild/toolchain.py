"""Toolchains: for a rule whose libraries clash with the rest, a Python environment of its own.

A rule names the libraries that it needs. pip finds their versions once, FTBUILD.lock keeps these,
and the environment is made in the store when the first action needs it: one for all projects that
lock the same. A worker of the rule runs in it, and speaks with the engine as any other does.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftbuild.digest import hash_value
from ftbuild.errors import DifferenceError, MachineError
from ftbuild.graph import RuleFacts
from ftbuild.lockfile import NAME, Lock, Toolchain
from ftbuild.store.store import Store

_PIP = (sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input")
_MARK = "ftbuild-toolchain.json"
_KEPT_LINES = 3


def resolved(rule: str, requirements: Sequence[str]) -> Toolchain:
    """Return the versions of all libraries that `requirements` come to on this machine.

    Raises:
        MachineError: E0512, pip finds none, or cannot be run.
    """
    options = ("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-")
    done = subprocess.run(
        [*_PIP, *options, *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise MachineError(
            f"there are no versions of what rule `{rule}` needs: {', '.join(requirements)}",
            code="E0512",
            why=_last_words(done.stderr),
            fix="mend `toolchain` of the rule; offline nothing can be looked up",
        )
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    packages = {m["name"].lower().replace("_", "-"): _public(m["version"]) for m in found}
    return Toolchain(tuple(requirements), packages)


def _public(version: str) -> str:
    # As of libraries in the lock: `+cpu` and `+cu130` are one release.
    return version.partition("+")[0]


@dataclass(frozen=True)
class Toolchains:
    """The environments of one store, as one project needs them."""

    store: Store
    packs: Callable[[], Sequence[str]]
    """The folders of the rule packs."""
    is_offline: bool = False

    def folder(self, facts: RuleFacts, lock: Lock) -> Path:
        """Return the environment of a rule, which is made if it is not there.

        Raises:
            DifferenceError: E0504, the lock does not hold it.
            MachineError: E0513, it cannot be made.
        """
        chain = lock.toolchain(facts.name, facts.toolchain)
        if chain is None:
            raise DifferenceError(
                f"rule `{facts.name}` runs in an environment of its own, which `{NAME}` does not "
                "hold",
                code="E0504",
                fix="run `ftbuild lock` and commit the file",
            )
        packages = [os.path.dirname(os.path.abspath(__file__)), *self.packs()]
        own = _own_requirements()
        where = [sys.version, platform.machine(), os.path.realpath(sys.executable), packages, own]
        digest = hash_value([[*chain.requirements], dict(chain.packages), where])
        folder = self.store.toolchain(digest)
        if not (folder / _MARK).exists():
            with self.store.lease(digest):
                if not (folder / _MARK).exists():
                    self._make(folder, facts.name, chain, packages, own)
        os.utime(folder / _MARK)  # gc spares what is in use
        return folder

    def _make(
        self, folder: Path, rule: str, chain: Toolchain, packages: list[str], own: list[str]
    ) -> None:
        if self.is_offline:
            raise MachineError(
                f"the environment of rule `{rule}` is not in the store, and `--offline` forbids "
                "to make it",
                code="E0513",
                fix="run the build once without `--offline`",
            )
        shutil.rmtree(folder, ignore_errors=True)  # what a kill has left
        folder.parent.mkdir(exist_ok=True)
        steps = [[sys.executable, "-I", "-m", "venv", "--without-pip", str(folder)]]
        locked = folder / "constraints.txt"
        python = str(python_of(folder))
        options = ["--python", python, "install", "--quiet", "--constraint", str(locked)]
        steps.append([*_PIP, *options, *chain.requirements, *own])
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise MachineError(
                    f"the environment of rule `{rule}` cannot be made",
                    code="E0513",
                    why=_last_words(done.stderr or done.stdout),
                    fix=f"`ftbuild lock --upgrade {rule}` looks its versions up anew",
                )
            lines = [f"{name}=={version}" for name, version in sorted(chain.packages.items())]
            locked.write_text("".join(f"{line}\n" for line in lines))
        for package in packages:
            _site_packages(folder).joinpath(os.path.basename(package)).symlink_to(package)
        (folder / _MARK).write_text(json.dumps({"rule": rule, "packages": dict(chain.packages)}))


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "bin" / "python"


def _site_packages(folder: Path) -> Path:
    [found] = folder.glob("lib/python*/site-packages")
    return found


def _own_requirements() -> list[str]:
    """Return what ftbuild itself needs in the environment of a worker."""
    from importlib import metadata

    return [line for line in metadata.requires("ftbuild") or [] if "extra ==" not in line]


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    told = [line for line in lines if line.startswith("ERROR")] or lines or ["it said nothing"]
    return "\n".join(told[-_KEPT_LINES:])
