"""`[run] trackers`: told to actions beside their key, with the variables that are theirs."""

import json

import pytest

from engine.space import Space

RULE = '''
import json
import os

from ftbuild.api import Context, File, Inputs, Params, rule


class SeenInputs(Inputs):
    """None."""


class SeenParams(Params):
    """Only a number."""

    number: int = 1
    """Whatever."""


@rule(output=File)
def seen(ctx: Context, inputs: SeenInputs, params: SeenParams) -> None:
    """Write which variables an action has of trackers."""
    names = ("FTBUILD_TRACKER", "WANDB", "MLFLOW")
    found = {n: v for n, v in os.environ.items() if n.startswith(names)}
    (ctx.out / "seen.json").write_text(json.dumps(found))
'''
HEAD = '[project]\nname = "t"\nrules = ["rules/seen.py"]\n\n'


def seen(space: Space, target: str) -> dict[str, str]:
    read: dict[str, str] = json.loads(
        (space.root / "ftbuild-out" / target / "seen.json").read_text()
    )
    return read


def test_actions_are_told_which_trackers_there_are_and_no_key_changes(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "m")
    space.write("rules/seen.py", RULE)
    space.write("FTBUILD.toml", HEAD + "[seen.before]\n")
    space.make("before")
    assert seen(space, "before") == {}

    run = '[run]\ntrackers = ["wandb"]\n\n'
    space.write("FTBUILD.toml", HEAD + run + "[seen.before]\n[seen.after]\nnumber = 2\n")
    assert space.make("before") == []
    space.make("after")
    assert seen(space, "after") == {
        "FTBUILD_TRACKERS": "wandb",
        "FTBUILD_TRACKER_FOLDER": str(space.root / ".ftbuild" / "trackers"),
        "FTBUILD_TRACKER_RUN": "after",
        "WANDB_API_KEY": "k",
    }
