"""Broken manifests, each with all that a user reads.

`errors/NAME.txt` holds a workspace and the message, as `head` prints several files:
`==> FTBUILD.toml <==`, other files, `==> options <==` (what else the command line says), and
`==> message <==`. All of them may use the rules of `errors/toy.py`.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftbuild import graph, manifest
from ftbuild.errors import ManifestError
from ftbuild.registry import Registry

HERE = Path(__file__).parent / "errors"
CASES = sorted(path.stem for path in HERE.glob("*.txt"))


def sections(text: str) -> dict[str, str]:
    _, *parts = re.split(r"^==> (.+) <==\n", text, flags=re.MULTILINE)
    return {
        name: body.removesuffix("\n") for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def message(root: Path, options: list[str]) -> str:
    """Return what is said about the workspace at `root`."""
    profiles = [o.removeprefix("--profile ") for o in options if o.startswith("--profile ")]
    overrides = [o.removeprefix("--set ") for o in options if o.startswith("--set ")]
    read = manifest.read(
        root,
        profile=profiles[0] if profiles else None,
        overrides=overrides,
        everything="--everything" in options,
    )
    with pytest.raises(ManifestError) as caught:
        graph.build(read, Registry(root, read.project.rules))
    return caught.value.render()


def lay_out(root: Path, files: dict[str, str]) -> None:
    (root / "rules").mkdir(parents=True)
    shutil.copy(HERE / "toy.py", root / "rules")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" if text else "")


FAULTS = {
    "names_that_differ_in_case": ("26", "names of targets that differ in case alone"),
    "packages_that_differ_in_case": ("26", "names of packages that differ in case alone"),
    "name_that_would_leave_its_folder": ("52", "a name of a target that leaves its folder"),
    "label_that_leaves_the_workspace": ("52", "a label that leaves the workspace"),
}


def marked(name: str) -> Any:
    marks = [pytest.mark.fault(*FAULTS[name])] if name in FAULTS else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_message(name: str, tmp_path: Path) -> None:
    files = sections((HERE / f"{name}.txt").read_text())
    expected = files.pop("message")
    options = files.pop("options", "").splitlines()
    lay_out(tmp_path, files)

    assert message(tmp_path, options) == expected


def test_there_are_at_least_sixty_cases() -> None:
    assert len(CASES) >= 60
