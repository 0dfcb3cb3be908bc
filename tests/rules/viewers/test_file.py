"""The viewer of plain files, through its functions and through the command that calls it."""

from pathlib import Path

import pytest

from ftbuild.api import File, RuleError
from ftbuild.testing import artifact
from ftbuild.view import Span
from ftbuild_rules.viewers.file import diff, inspect


def files(folder: Path, **texts: str) -> File:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return artifact(File, folder)


def shown(lines: tuple[tuple[Span, ...], ...]) -> list[str]:
    return ["".join(span.text for span in line) for line in lines]


def test_one_text_is_shown_with_its_first_lines(tmp_path: Path) -> None:
    view = inspect(files(tmp_path / "a", f="x\ny\n"))
    # What `printf 'x\ny\n' | sha256sum` prints.
    sha256 = "09834d488008f5f1ef589a2d7cedc52425bee9dd23b2212e4c1d673c5cbb54e4"
    assert view.data == {"f": {"size": 4, "sha256": sha256}}
    assert shown(view.lines) == ["f  4 bytes", "x", "y"]


def test_row_is_a_line_of_the_only_text(tmp_path: Path) -> None:
    found = files(tmp_path / "a", f="x\ny\n")
    assert inspect(found, 1).data == "y"
    with pytest.raises(RuleError, match="has no row 2"):
        inspect(found, 2)


def test_diff_names_files_and_lines(tmp_path: Path) -> None:
    a = files(tmp_path / "a", f="x\ny\n", old="1")
    b = files(tmp_path / "b", f="x\nz\n", new="1")
    view = diff(a, b)
    assert view.data == {"f": "changed", "new": "added", "old": "removed"}
    assert shown(view.lines) == ["~ f", "@@ -1,2 +1,2 @@", " x", "-y", "+z", "+ new", "- old"]
    assert shown(diff(a, a).lines) == ["no file differs"]
