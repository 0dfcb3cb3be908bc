"""A row of tokens, of whatever form, as sequences of ids that are trained on or not.

Of a stepwise row the labels are no ids but judgements, 1 or 0; of a prompt nothing is trained on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ftbuild.view import Span

Line = tuple[Span, ...]
_MASKED = -100
_JUDGEMENTS = {1: (" ✓", "green"), 0: (" ✗", "red")}


@dataclass(frozen=True)
class Ids:
    """A sequence of ids with their labels."""

    name: str
    """What it is where a row has several, else nothing."""
    ids: list[int]
    labels: list[int]
    judged: bool = False
    """The labels say whether a step that ends there is right."""


def form_of(row: dict[str, Any]) -> str:
    """Return the form of a row by its columns; of steps it is that of other ids with labels."""
    by_column = {"chosen_ids": "preference", "completion_ids": "unpaired", "metadata": "prompts"}
    return next((form for column, form in by_column.items() if column in row), "sft")


def sequences(form: str, row: dict[str, Any]) -> list[Ids]:
    """Return the sequences of a row: one, two answers to one prompt, or documents of a pack."""
    if form in ("sft", "stepwise"):
        if "seq_lengths" in row:
            return list(_documents(row))
        return [Ids("", row["input_ids"], row["labels"], judged=form == "stepwise")]
    prompt = row["prompt_ids"]
    masked = [_MASKED] * len(prompt)
    if form == "prompts":
        return [Ids("", prompt, masked)]
    names = ("chosen", "rejected") if form == "preference" else ("completion",)
    shown = {"completion": "good answer" if row.get("label") else "bad answer"}
    return [
        Ids(shown.get(name, name), prompt + row[f"{name}_ids"], masked + row[f"{name}_ids"])
        for name in names
    ]


def _documents(row: dict[str, Any]) -> Iterator[Ids]:
    at = 0
    for number, length in enumerate(row["seq_lengths"], 1):
        end = at + length
        name = f"document {number} of {len(row['seq_lengths'])}"
        yield Ids(name, row["input_ids"][at:end], row["labels"][at:end])
        at = end


def plain(form: str, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return a row as tools read it: ids, labels and tokens, by answer where there are two."""
    if "seq_lengths" in row:
        whole = Ids("", row["input_ids"], row["labels"])
        return {**_tokens(tokenizer, whole), "seq_lengths": row["seq_lengths"]}
    found = sequences(form, row)
    if form == "preference":
        return {sequence.name: _tokens(tokenizer, sequence) for sequence in found}
    shown = _tokens(tokenizer, found[0])
    if form == "unpaired":
        shown["label"] = row["label"]
    if form == "prompts":
        shown["metadata"] = json.loads(row["metadata"])
    return shown


def _tokens(tokenizer: Any, sequence: Ids) -> dict[str, Any]:
    tokens = [tokenizer.id_to_token(token) for token in sequence.ids]
    return {"input_ids": sequence.ids, "labels": sequence.labels, "tokens": tokens}


def lines(form: str, row: dict[str, Any], tokenizer: Any, *, sign: str = "") -> list[Line]:
    """Return a row for a person: trained tokens green, masked ones dim; `sign` begins each line."""
    style = {"-": "red", "+": "green"}.get(sign, "")
    out: list[Line] = []
    for sequence in sequences(form, row):
        if sequence.name:
            out.append(
                (Span(f"{sign} {sequence.name}", style) if sign else Span(sequence.name, "bold"),)
            )
        coloured = (
            _judged(tokenizer, sequence) if sequence.judged else _trained(tokenizer, sequence)
        )
        head = (Span(f"{sign} ", style),) if sign else ()
        out += [(*head, *line) for line in coloured]
    if form == "prompts":
        out += [
            (Span(f"{name}: ", "dim"), Span(json.dumps(value, ensure_ascii=False), "dim"))
            for name, value in json.loads(row["metadata"]).items()
        ]
    return out


def _trained(tokenizer: Any, sequence: Ids) -> list[Line]:
    """Return the text of the ids, its runs of trained and masked tokens each in its style."""
    runs = []
    for is_masked, run in groupby(sequence.labels, key=lambda label: label == _MASKED):
        runs.append((len(list(run)), "dim" if is_masked else "green"))
    return _styled(tokenizer, sequence.ids, runs)


def _judged(tokenizer: Any, sequence: Ids) -> list[Line]:
    """Return the text of the ids, each step with its judgement where it ends."""
    runs: list[tuple[int, str]] = []
    at = 0
    for place, label in enumerate(sequence.labels, 1):
        if label != _MASKED:
            runs += [(place - at, "")]
            at = place
    ends = [label for label in sequence.labels if label != _MASKED]
    out: list[Line] = []
    start = 0
    for (length, style), label in zip(runs, ends, strict=True):
        found = _styled(tokenizer, sequence.ids[start : start + length], [(length, style)])
        while len(found) > 1 and not found[-1]:  # the separator's line end
            found.pop()
        found[-1] = (*found[-1], Span(*_JUDGEMENTS[label]))
        out += found
        start += length
    rest = sequence.ids[start:]
    return out + (_styled(tokenizer, rest, [(len(rest), "dim")]) if rest else [])


def _styled(tokenizer: Any, ids: Sequence[int], runs: Sequence[tuple[int, str]]) -> list[Line]:
    """Return the text of the ids in lines; `runs` are lengths in tokens, each with its style."""
    out: list[list[Span]] = [[]]
    end, shown = 0, ""
    for length, style in runs:
        end += length
        # The whole up to here and not the run alone: a decoder treats the first token specially.
        text = tokenizer.decode(list(ids[:end]), skip_special_tokens=False)
        for number, part in enumerate(text[len(shown) :].split("\n")):
            if number:
                out.append([])
            if part:
                out[-1].append(Span(part, style))
        shown = text
    return [tuple(line) for line in out]
