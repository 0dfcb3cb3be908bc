"""A list of a user's functions as one input: order, code and places of mistakes."""

from pathlib import Path

import pytest

from engine.space import Space
from ftbuild.errors import FtbuildError

RULE = '''"""`choir`: what each of some functions says, in their order."""

from ftbuild.api import Context, File, Function, Inputs, Params, rule


class ChoirInputs(Inputs):
    """Who sings."""

    voices: tuple[Function, ...] = ()
    """Functions without arguments."""


class ChoirParams(Params):
    """Nothing."""


@rule(output=File)
def choir(ctx: Context, inputs: ChoirInputs, params: ChoirParams) -> None:
    """Write what they say."""
    said = [voice.load()() for voice in inputs.voices]
    (ctx.out / "song.txt").write_text(" ".join(said))
'''


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setenv("FTBUILD_CACHE", str(tmp_path / "store"))
    made = Space(tmp_path / "space", tmp_path / "store")
    made.write("rules/choir.py", RULE)
    made.write("low.py", "from words import WORD\n\ndef low():\n    return WORD\n")
    made.write("words.py", "WORD = 'oom'\n")
    made.write("high.py", "def high():\n    return 'la'\n\ndef higher():\n    return 'li'\n")
    made.write(
        "FTBUILD.toml",
        '[project]\nname = "songs"\nrules = ["rules/choir.py"]\n\n'
        '[choir.song]\nvoices = ["low.py:low", "high.py:higher", "high.py:high"]\n',
    )
    return made


def song(space: Space) -> str:
    return (space.root / "ftbuild-out/song/song.txt").read_text()


def test_functions_come_in_their_order_and_their_code_is_in_the_key(space: Space) -> None:
    assert space.make() == ["song"]
    assert song(space) == "oom li la"
    space.edit("words.py", "'oom'\n", "'oom'  # deep\n")
    assert space.make() == []
    space.edit("words.py", "'oom'", "'dum'")
    assert space.make() == ["song"]
    assert song(space) == "dum li la"
    space.edit("FTBUILD.toml", '"high.py:higher", "high.py:high"', '"high.py:high"')
    assert space.make() == ["song"]
    assert song(space) == "dum la"


def test_plan_names_the_function_that_changed(space: Space) -> None:
    space.make()
    space.edit("words.py", "'oom'", "'dum'")
    (verdict,) = [v for v in space.open().plan().verdicts if v.label == "song"]
    assert [reason.detail for reason in verdict.reasons] == ["low.py:low changed"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "high.py:higher",
            "high.py:highr",
            "error[E0405]: `high.py` has no function `highr`\n  --> FTBUILD.toml:6:",
        ),
        (
            '["low.py:low", "high.py:higher", "high.py:high"]',
            '"low.py:low"',
            "error[E0202]: `voices` should be a list of functions; found text",
        ),
        (
            '"low.py:low"',
            '"low.py"',
            "error[E0202]: `voices[0]` should be a file and a function in it",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(space: Space, old: str, new: str, message: str) -> None:
    space.edit("FTBUILD.toml", old, new)
    with pytest.raises(FtbuildError) as caught:
        space.build()
    assert caught.value.render().startswith(message)
