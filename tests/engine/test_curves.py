"""The metrics of a run stay in its record, thinned out where they are many."""

import math

from engine.space import Space
from ftbuild.curves import MAX_CURVES, MAX_POINTS, Curves

RULE = """\
from ftbuild.api import Context, File, Inputs, Params, rule


class Nothing(Inputs):
    pass


class Steps(Params):
    steps: int = 3


@rule(output=File)
def learn(ctx: Context, inputs: Nothing, params: Steps) -> None:
    for step in range(1, params.steps + 1):
        ctx.progress(step, params.steps, loss=8 / step, learning_rate=0.1)
    ctx.progress(params.steps, params.steps, eval_loss=1 / 3)
    (ctx.out / "f").write_text("done")
"""


def test_every_metric_of_a_short_run_is_in_the_record(space: Space) -> None:
    space.write("FTBUILD.toml", '[project]\nname = "p"\nrules = ["r.py"]\n[learn.one]\n')
    space.write("r.py", RULE)
    space.make("one")
    with space.open() as project:
        [step] = project.lineage("one")
    assert step.record is not None
    assert step.record.provenance["curves"] == {
        "loss": [[1, 2, 3], [8.0, 4.0, 2.66667]],
        "learning_rate": [[1, 2, 3], [0.1, 0.1, 0.1]],
        "eval_loss": [[3], [0.333333]],
    }


def test_a_long_run_keeps_first_and_last_and_points_evenly_between() -> None:
    curves = Curves()
    for step in range(1, 10_001):
        curves.note(step, {"loss": float(step)})
    steps, values = curves.to_plain()["loss"]
    assert steps == values
    assert (steps[0], steps[-1]) == (1, 10_000)
    # Thinned at 256, 512, … 8,192 values: each 64th is left of 10,000.
    assert steps[:-1] == list(range(1, 10_001, 64))
    assert len(steps) <= MAX_POINTS + 1


def test_what_is_not_finite_leaves_a_gap_and_too_many_names_are_left_out() -> None:
    curves = Curves()
    for step, value in enumerate([1.0, math.nan, math.inf, 2.0]):
        curves.note(step, {"loss": value})
    curves.note(9, {f"metric-{number}": 0.0 for number in range(MAX_CURVES)})
    plain = curves.to_plain()
    assert plain["loss"] == [[0, 3], [1.0, 2.0]]
    assert len(plain) == MAX_CURVES
