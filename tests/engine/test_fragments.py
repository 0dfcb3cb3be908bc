"""Fragments: an edit redoes one piece, and what is done survives whatever comes after it."""

import hashlib

import pytest

from engine.space import Space
from ftbuild.events import Progress

ROWS = [f"row {letter}" for letter in "abcdefgh"]


@pytest.fixture
def pieces(space: Space) -> Space:
    """Eight rows of 120,000 bytes each, one piece a row."""
    space.manifest('[pieces.cut]\nsource = "rows.txt"\n', toys=True)
    space.write("rows.txt", "\n".join(ROWS))
    return space


def counts(space: Space) -> tuple[int, int] | None:
    return space.finished("cut").fragments


def lines(space: Space) -> list[str]:
    files = sorted(space.output("cut").iterdir())
    assert [path.name for path in files] == [f"{n:03d}-5" for n in range(len(files))]
    return [path.read_text() for path in files]


@pytest.mark.parametrize("jobs", [1, 2])
def test_first_build_makes_all_pieces_in_order(pieces: Space, jobs: int) -> None:
    assert pieces.make(jobs=jobs) == ["cut"]
    assert counts(pieces) == (8, 8)
    assert lines(pieces) == [row * 20_000 for row in ROWS]
    steps = [(e.step, e.steps) for e in pieces.events if isinstance(e, Progress)]
    assert steps == [(n, 8) for n in range(1, 9)]


def test_edited_inserted_and_removed_rows(pieces: Space) -> None:
    pieces.make()
    edited = [*ROWS[:2], "row x", *ROWS[3:]]
    pieces.write("rows.txt", "\n".join(edited))
    pieces.make()
    assert counts(pieces) == (8, 1)
    assert lines(pieces) == [row * 20_000 for row in edited]
    pieces.write("rows.txt", "\n".join(["row y", *edited[:-1]]))
    pieces.make()
    assert counts(pieces) == (8, 1)
    pieces.write("rows.txt", "\n".join(edited[::-1]))
    pieces.make()
    assert counts(pieces) == (8, 0)
    assert lines(pieces) == [row * 20_000 for row in edited[::-1]]


def test_equal_pieces_are_made_once(pieces: Space) -> None:
    pieces.write("rows.txt", "\n".join(["row a"] * 5))
    pieces.make()
    assert counts(pieces) == (5, 1)
    assert lines(pieces) == ["row a" * 20_000] * 5


def test_all_else_of_the_action_is_in_the_key_of_a_piece(pieces: Space) -> None:
    pieces.make()
    pieces.edit("rules/toys.py", "line * 20_000", "line * 20_001")
    pieces.make()
    assert counts(pieces) == (8, 8)
    pieces.edit("FTBUILD.toml", '"rows.txt"', '"rows.txt"\nfail_at = "never"')
    pieces.make()
    assert counts(pieces) == (8, 8)


def test_other_input_is_in_the_key_of_a_piece(pieces: Space) -> None:
    pieces.manifest(
        '[pieces.cut]\nsource = "rows.txt"\nother = "more"\n\n[keep.more]\nsource = "more.txt"\n',
        toys=True,
    )
    pieces.write("more.txt", "1\n")
    pieces.make()
    pieces.write("more.txt", "2\n")
    pieces.make()
    assert counts(pieces) == (8, 8)


def test_pieces_are_shared_by_all_workspaces_of_a_store(pieces: Space) -> None:
    pieces.make()
    other = Space(pieces.root.parent / "other", pieces.store)
    other.manifest('[pieces.cut]\nsource = "rows.txt"\n', toys=True)
    other.write("rows.txt", "\n".join([*ROWS, "row z"]))
    other.make()
    assert counts(other) == (9, 1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_pieces_that_were_done_before_a_failure_are_kept(pieces: Space, jobs: int) -> None:
    """The attribute that makes it fail is in the key, so it stays as it is and the row changes."""
    pieces.edit("FTBUILD.toml", '"rows.txt"', '"rows.txt"\nfail_at = "row e"')
    assert pieces.build(jobs=jobs).failed == ("cut",)
    assert pieces.finished("cut").error == "error[E0899]: a line says row e"
    pieces.write("rows.txt", "\n".join([*ROWS[:4], "row x", *ROWS[5:]]))
    pieces.make(jobs=jobs)
    assert counts(pieces) is not None
    total, built = counts(pieces) or (0, 0)
    assert total == 8
    assert built <= 4  # the first four are there, and one that ran beside them may be
    assert lines(pieces) == [row * 20_000 for row in [*ROWS[:4], "row x", *ROWS[5:]]]


def test_first_of_several_failures_is_told_of_whatever_the_number_of_workers(
    pieces: Space,
) -> None:
    pieces.edit("rules/toys.py", "if line == fail_at:", "if line > fail_at:")
    pieces.edit("FTBUILD.toml", '"rows.txt"', '"rows.txt"\nfail_at = "row d"')
    for jobs in (1, 2, 3):
        assert pieces.build(jobs=jobs).failed == ("cut",)
        assert pieces.finished("cut").error == "error[E0899]: a line says row e"


def test_large_piece_lies_on_the_disk_once(pieces: Space) -> None:
    pieces.make()
    file = next(iter(sorted(pieces.output("cut").iterdir()))).resolve()
    assert file.stat().st_nlink == 3  # the blob, the tree of the fragment, the artifact


@pytest.mark.parametrize("jobs", [1, 2])
def test_pieces_that_lie_untouched_are_not_hashed_again(pieces: Space, jobs: int) -> None:
    pieces.make(jobs=jobs)
    with pieces.open() as project:
        found = [r for r in project.store.records() if "fragment" in r.document]
        assert len(found) == 8
        assert all(project.store.is_intact(record.tree) for record in found)


def test_piece_of_an_unknown_input_is_an_error_of_the_rule(pieces: Space) -> None:
    pieces.edit("rules/toys.py", 'work, of="source"', 'work, of="sources"')
    pieces.build()
    assert pieces.finished("cut").error == "error[E0701]: KeyError: 'sources'"


def test_figures_of_the_rule_are_in_the_provenance(pieces: Space) -> None:
    pieces.make()
    with pieces.open() as project:
        record = project.store.find(project.history.built["cut"].key)
    assert record is not None
    assert record.provenance["facts"] == {"rows": 8}


def test_what_is_made_once_stays_whatever_the_source(space: Space) -> None:
    space.manifest('[recall.kept]\nsource = "rows.txt"\n', toys=True)
    space.write("rows.txt", "a")
    space.make()
    first = space.text("kept", "noise")
    space.write("rows.txt", "b")
    assert space.make() == ["kept"]
    assert space.text("kept", "noise") == first
    assert space.text("kept", "digest") == hashlib.sha256(b"b").hexdigest()
    assert space.finished("kept").fragments is None
    space.manifest('[recall.kept]\nsource = "rows.txt"\nmark = "x"\n', toys=True)
    space.make()
    assert space.text("kept", "noise") != first
