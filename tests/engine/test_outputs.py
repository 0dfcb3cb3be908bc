"""`ftbuild-out`: links that lead to ready directories, and what may be in their way."""

import os
import shutil
from pathlib import Path

import pytest

from engine.space import Space
from ftbuild import outputs
from ftbuild.errors import MachineError

ONE = '[command.a]\nsrcs = { raw = "raw.txt" }\nrun = "cat $raw > $out/f"\n'


@pytest.fixture
def one(space: Space) -> Space:
    space.manifest(ONE)
    space.write("raw.txt", "1\n")
    space.make()
    return space


def test_link_leads_to_a_read_only_directory_of_the_store(one: Space) -> None:
    folder = Path(os.readlink(one.output("a")))
    assert folder.is_relative_to(one.store / "v1" / "trees")
    assert (folder / "f").stat().st_mode & 0o777 == 0o444
    with one.open() as project:
        assert project.path("a") == folder


def test_link_follows_the_newest_build(one: Space) -> None:
    before = os.readlink(one.output("a"))
    one.write("raw.txt", "2\n")
    one.make()
    assert one.text("a", "f") == "2\n"
    assert (Path(before) / "f").read_text() == "1\n"  # who has it open is not disturbed
    one.write("raw.txt", "1\n")
    assert one.make() == []
    assert os.readlink(one.output("a")) == before


def test_link_that_leads_elsewhere_is_put_right(one: Space, tmp_path: Path) -> None:
    right = os.readlink(one.output("a"))
    one.output("a").unlink()
    one.output("a").symlink_to(tmp_path)
    assert one.make() == []
    assert os.readlink(one.output("a")) == right


def test_removed_folder_comes_back(one: Space) -> None:
    shutil.rmtree(one.root / "ftbuild-out")
    assert one.make() == []
    assert one.text("a", "f") == "1\n"


def test_links_stand_below_their_package(space: Space) -> None:
    space.manifest('[command.all]\ndeps = { a = "//data/faq:a" }\nrun = "cat $a/f > $out/f"\n')
    space.manifest(ONE, package="data/faq")
    space.write("data/faq/raw.txt", "1\n")
    assert space.make() == ["//data/faq:a", "all"]
    assert space.text("a", "f", package="data/faq") == "1\n"
    assert sorted(path.name for path in (space.root / "ftbuild-out").iterdir()) == ["all"]


def test_file_in_the_way_of_a_link_stays(one: Space) -> None:
    one.output("a").unlink()
    one.output("a").mkdir()
    (one.output("a") / "mine").write_text("precious")
    message = one.failed()
    assert message == (
        "exit 5\nerror[E0654]: `ftbuild-out` belongs to ftbuild, but this is not of its "
        f"making\n  --> {one.output('a')}\n  fix: move it elsewhere and run the build again"
    )
    assert (one.output("a") / "mine").read_text() == "precious"


def test_file_in_the_way_of_the_folder(one: Space) -> None:
    shutil.rmtree(one.root / "ftbuild-out")
    (one.root / "ftbuild-out").write_text("precious")
    assert one.failed().splitlines()[2] == f"  --> {one.root}/ftbuild-out"
    assert (one.root / "ftbuild-out").read_text() == "precious"


def test_reader_sees_the_old_link_or_the_new_one(tmp_path: Path) -> None:
    """A rename takes its place; at no moment is there no link."""
    link = str(tmp_path / "out" / "a")
    outputs.point(link, "/one")
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        outputs.point(link, "/two")
        assert os.readlink("a", dir_fd=descriptor) == "/two"
    finally:
        os.close(descriptor)
    assert os.listdir(tmp_path / "out") == ["a"]


def test_left_over_of_a_killed_build_is_no_hindrance(tmp_path: Path) -> None:
    """A process with our number died between making its link and renaming it."""
    link = str(tmp_path / "a")
    os.symlink("/one", link)
    os.symlink("/half", tmp_path / f".new-{os.getpid()}")
    outputs.point(link, "/two")
    assert os.readlink(link) == "/two"
    assert os.listdir(tmp_path) == ["a"]


def test_right_link_is_left_alone(tmp_path: Path) -> None:
    link = str(tmp_path / "a")
    outputs.point(link, "/one")
    before = os.lstat(link)
    outputs.point(link, "/one")
    assert os.lstat(link).st_ctime_ns == before.st_ctime_ns


def test_remove_takes_links_alone(tmp_path: Path) -> None:
    link, file = tmp_path / "a", tmp_path / "b"
    link.symlink_to(file)
    file.write_text("mine")
    assert outputs.remove(str(link))
    assert not outputs.remove(str(link))
    assert not outputs.remove(str(file))
    assert file.read_text() == "mine"


def test_clean_removes_links_and_the_store_keeps_the_artifacts(one: Space) -> None:
    with one.open() as project:
        assert project.clean() == ["a"]
    assert not os.path.lexists(one.output("a"))
    assert one.make() == []
    assert one.text("a", "f") == "1\n"


def test_path_of_what_is_not_built(space: Space) -> None:
    space.manifest('[command.a]\nrun = "true"\n')
    with space.open() as project, pytest.raises(Exception, match="`a` has not been built here"):
        project.path("a")


def test_machine_error_is_what_a_user_reads(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(MachineError, match="belongs to ftbuild"):
        outputs.point(str(tmp_path / "a"), "/one")
