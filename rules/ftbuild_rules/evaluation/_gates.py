"""Gates: what the figures of an evaluation must be, or the build fails.

gates = { perplexity = "< 12", exact_match = ">= 0.8" }
"""

import operator
import re
from collections.abc import Mapping

from ftbuild.api import AttributeProblem, Context, RuleError

_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_GATE = re.compile(r"(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


def check_gates(gates: Mapping[str, str], known: tuple[str, ...] | None) -> None:
    """Refuse a gate that cannot be read, or on a figure that the target does not measure.

    `known` are the figures it measures; None where a user's function decides.
    """
    for name, gate in gates.items():
        if not _GATE.fullmatch(gate.strip()):
            raise AttributeProblem(
                "gates",
                f"`{name}` has the gate {gate!r}",
                f'write a sign (<, <=, >, >=) and a number: `{name} = "< 12"`',
            )
        if known is not None and name not in known:
            measured = ", ".join(f"`{figure}`" for figure in known)
            raise AttributeProblem(
                "gates",
                f"`{name}` is not measured by this target",
                f"measured are {measured}" if known else "name a `data` or `questions` target",
            )


def require_gates(ctx: Context, gates: Mapping[str, str], figures: Mapping[str, float]) -> None:
    """Fail unless each figure is as its gate says; NaN passes no gate.

    Raises:
        RuleError: E0943: one is not; E0944: one was not measured.
    """
    failed = []
    for name, gate in sorted(gates.items()):
        if name not in figures:
            raise RuleError(
                f"`gates` names `{name}`, which was not measured",
                code="E0944",
                fix="measured are " + ", ".join(f"`{figure}`" for figure in sorted(figures)),
            )
        found = _GATE.fullmatch(gate.strip())
        assert found is not None
        if not _SIGNS[found[1]](figures[name], float(found[2])):
            failed.append(f"{name} is {figures[name]:.6g}, wanted {found[1]} {found[2]}")
    for name, value in sorted(figures.items()):
        ctx.log(f"{name} {value:.6g}")
    if failed:
        raise RuleError(
            "the model does not pass: " + "; ".join(failed),
            code="E0943",
            why="measured: " + ", ".join(f"{n} {v:.6g}" for n, v in sorted(figures.items())),
            fix="train another model, or change `gates`; `ftbuild log` has all figures",
        )


def figures_page(figures: Mapping[str, float], gates: Mapping[str, str]) -> str:
    """Return figures and their gates as a page."""
    lines = ["# Evaluation", "", "| figure | value | gate |", "| --- | --- | --- |"]
    for name, value in sorted(figures.items()):
        lines.append(f"| {name} | {value:.6g} | {gates.get(name, '')} |")
    return "\n".join(lines) + "\n"
