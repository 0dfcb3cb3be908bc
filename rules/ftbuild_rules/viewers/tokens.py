"""How tokens look: trained ones green, masked ones dim; figures; and which rows differ.

The texts of the tokens come from the tokenizer that the artifact holds beside its ids.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.data._arrow import read_table, shard_paths
from ftbuild_rules.viewers._rows import Line, RowChange, diff_rows, read_row, summary_lines

_MASKED = -100
_BARS = 10
_BAR_CHARACTERS = 40


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the tokens of the row of that number, or the figures of all."""
    index = json.loads((artifact.path / "tokens.json").read_bytes())
    if row is None:
        return _summary(artifact, index)
    sequences = _sequences(index["form"], read_row(artifact, index, row))
    tokenizer = _tokenizer(artifact)
    shown = {name: _tokens(tokenizer, ids, labels) for name, (ids, labels) in sequences.items()}
    lines: list[Line] = []
    for name, (ids, labels) in sequences.items():
        lines += [(Span(name, "bold"),)] if name else []
        lines += _coloured(tokenizer, ids, labels)
    return View(shown.get("", shown), tuple(lines))


def _sequences(form: str, row: dict[str, Any]) -> dict[str, tuple[list[int], list[int]]]:
    """Return ids and labels by name: one pair without a name, or two answers to one prompt."""
    if form == "sft":
        return {"": (row["input_ids"], row["labels"])}
    prompt = row["prompt_ids"]
    masked = [_MASKED] * len(prompt)
    return {
        name: (prompt + row[f"{name}_ids"], masked + row[f"{name}_ids"])
        for name in ("chosen", "rejected")
    }


def _tokenizer(artifact: Artifact) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(artifact.path / "tokenizer" / "tokenizer.json"))


def _tokens(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
    tokens = [tokenizer.id_to_token(token) for token in ids]
    return {"input_ids": list(ids), "labels": list(labels), "tokens": tokens}


def _coloured(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[Line]:
    """Return the text of the ids, its runs of trained and masked tokens each in its style."""
    lines: list[list[Span]] = [[]]
    end, shown = 0, ""
    for is_masked, run in groupby(labels, key=lambda label: label == _MASKED):
        end += len(list(run))
        # The whole up to here and not the run alone: a decoder treats the first token specially.
        text = tokenizer.decode(list(ids[:end]), skip_special_tokens=False)
        for number, part in enumerate(text[len(shown) :].split("\n")):
            if number:
                lines.append([])
            if part:
                lines[-1].append(Span(part, "dim" if is_masked else "green"))
        shown = text
    return [tuple(line) for line in lines]


def _summary(artifact: Artifact, index: dict[str, Any]) -> View:
    lengths = _lengths(artifact, index["form"])
    step = max(1, -(-max(lengths) // _BARS))
    counts = [0] * (max(lengths) // step + 1)
    for length in lengths:
        counts[length // step] += 1
    histogram = [[number * step, (number + 1) * step - 1, c] for number, c in enumerate(counts)]
    names = ("form", "rows", "tokens", "trainable_tokens", "max_length", "dropped", "truncated")
    data = {name: index[name] for name in (*names, "chat_template")}
    data |= {"shards": len(index["shards"]), "lengths": histogram}
    share = index["trainable_tokens"] / max(1, index["tokens"])
    lines: list[Line] = [
        (Span(f"{name:18}", "dim"), Span(f"{index[name]:,}" if name != "form" else index[name]))
        for name in names
    ]
    lines.insert(4, (Span(f"{'trained on':18}", "dim"), Span(f"{share:.1%}", "green")))
    template = index["chat_template"]
    lines.append(
        (Span(f"{'chat template':18}", "dim"), Span(template[:12] if template else "none"))
    )
    lines.append((Span("tokens in a row", "dim"),))
    for first, last, count in histogram:
        bar = "█" * round(_BAR_CHARACTERS * count / max(counts))
        lines.append(
            (Span(f"{first:>6} to {last:<6}"), Span(f" {bar} ", "green"), Span(f"{count:,}"))
        )
    return View(data, tuple(lines))


def _lengths(artifact: Artifact, form: str) -> list[int]:
    """Return how many tokens each row has; of a pair, the prompt with the longer answer."""
    import pyarrow.compute as pc

    lengths: list[int] = []
    for path in shard_paths(artifact.path):
        table = read_table(path)
        if form == "sft":
            found = pc.list_value_length(table["input_ids"])
        else:
            prompt, chosen, rejected = (
                pc.list_value_length(table[f"{name}_ids"])
                for name in ("prompt", "chosen", "rejected")
            )
            found = pc.add(prompt, pc.max_element_wise(chosen, rejected))
        lengths += found.to_pylist()
    return lengths


def diff(a: Artifact, b: Artifact) -> View:
    """Show how many rows differ, in their tokens or only in their masks, and the first of them."""
    found = diff_rows(a, b)
    tokenizers = (_tokenizer(a), _tokenizer(b))
    examples = [_example(change) for change in found.examples]
    data = {
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "examples": examples,
    }
    lines = summary_lines(found)
    for change, example in zip(found.examples, examples, strict=True):
        at = "" if example["at"] is None else f", first at {example['at']}"
        lines.append((Span(f"row {example['row']}: {example['what']}{at}", "bold"),))
        for sign, row, tokenizer in zip(
            "-+", (change.before, change.after), tokenizers, strict=True
        ):
            lines += [] if row is None else _signed(sign, tokenizer, row)
    return View(data, tuple(lines))


def _example(change: RowChange) -> dict[str, Any]:
    before, after = change.before, change.after
    at = None
    if before is None or after is None:
        what = "added" if before is None else "removed"
    else:
        changed = [name for name in before if before[name] != after.get(name)]
        what = "labels alone changed" if changed == ["labels"] else f"{', '.join(changed)} changed"
        pairs = zip(before[changed[0]], after[changed[0]], strict=False)
        at = next((place for place, (x, y) in enumerate(pairs) if x != y), None)
    return {"row": change.number, "what": what, "at": at, "a": before, "b": after}


def _signed(sign: str, tokenizer: Any, row: dict[str, Any]) -> list[Line]:
    style = "red" if sign == "-" else "green"
    form = "sft" if "labels" in row else "preference"
    lines: list[Line] = []
    for name, (ids, labels) in _sequences(form, row).items():
        lines += [(Span(f"{sign} {name}", style),)] if name else []
        lines += [(Span(f"{sign} ", style), *line) for line in _coloured(tokenizer, ids, labels)]
    return lines
