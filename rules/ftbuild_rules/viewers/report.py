"""How a report looks: its figures, and its answers one below the other."""

import json
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View

Line = tuple[Span, ...]


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the report; `row` chooses one answer by its number."""
    report = _report(artifact)
    answers = report.get("answers", [])
    if row is not None:
        answers = answers[row : row + 1]
    rest = {key: value for key, value in report.items() if key != "answers"}
    lines: list[Line] = [
        (Span(f"{key}: ", "dim"), Span(json.dumps(value, ensure_ascii=False)))
        for key, value in sorted(rest.items())
    ]
    for answer in answers:
        lines += _answer_lines(answer["prompt"], "green", answer["answer"])
    data = report if row is None else {**rest, "answers": answers}
    return View(data, tuple(lines))


def diff(a: Artifact, b: Artifact) -> View:
    """Show the figures and the answers in which two reports differ."""
    before, after = _report(a), _report(b)
    keys = sorted((set(before) | set(after)) - {"answers"})
    figures = {k: [before.get(k), after.get(k)] for k in keys if before.get(k) != after.get(k)}
    old, new = _answers(before), _answers(after)
    changed: list[dict[str, Any]] = [
        {"prompt": prompt, "a": old.get(prompt), "b": new.get(prompt)}
        for prompt in dict.fromkeys([*old, *new])
        if old.get(prompt) != new.get(prompt)
    ]
    lines: list[Line] = [
        (Span(f"~ {key}: ", "yellow"), Span(f"{one!r} -> {two!r}"))
        for key, (one, two) in figures.items()
    ]
    for entry in changed:
        lines.append((Span(entry["prompt"], "bold"),))
        for sign, style, answer in (("-", "red", entry["a"]), ("+", "green", entry["b"])):
            if answer is not None:
                lines.append((Span(f"{sign} {answer}", style),))
    equal = len([prompt for prompt in old if old[prompt] == new.get(prompt)])
    lines.append((Span(f"{equal} equal answers", "dim"),))
    return View({"figures": figures, "answers": changed, "equal": equal}, tuple(lines))


def _report(artifact: Artifact) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((artifact.path / "report.json").read_bytes())
    return report


def _answers(report: dict[str, Any]) -> dict[str, str]:
    return {entry["prompt"]: entry["answer"] for entry in report.get("answers", [])}


def _answer_lines(prompt: str, style: str, answer: str) -> list[Line]:
    return [(Span(prompt, "bold"),), *((Span(line, style),) for line in answer.split("\n"))]
