"""How tokens look: trained ones green, masked ones dim; figures; and which rows differ.

The texts of the tokens come from the tokenizer that the artifact holds beside its ids.
"""

import json
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.data._arrow import read_table, shard_paths
from ftbuild_rules.viewers import _sequences
from ftbuild_rules.viewers._rows import Line, RowChange, diff_rows, read_row, summary_lines

_ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")
_BARS = 10
_BAR_CHARACTERS = 40


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the tokens of the row of that number, or the figures of all."""
    index = json.loads((artifact.path / "tokens.json").read_bytes())
    if row is None:
        return _summary(artifact, index)
    form, tokenizer = index["form"], _tokenizer(artifact)
    found = read_row(artifact, index, row)
    shown = _sequences.plain(form, found, tokenizer)
    return View(shown, tuple(_sequences.lines(form, found, tokenizer)))


def _tokenizer(artifact: Artifact) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(artifact.path / "tokenizer" / "tokenizer.json"))


def _summary(artifact: Artifact, index: dict[str, Any]) -> View:
    lengths = _lengths(artifact)
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


def _lengths(artifact: Artifact) -> list[int]:
    """Return how many tokens each row has; of a pair, the prompt with the longer answer."""
    import pyarrow.compute as pc

    lengths: list[int] = []
    for path in shard_paths(artifact.path):
        table = read_table(path)
        counts = {
            name: pc.list_value_length(table[name])
            for name in table.column_names
            if name.endswith("_ids")
        }
        answers = [counts[name] for name in counts if name in _ANSWERS]
        found = counts["input_ids" if "input_ids" in counts else "prompt_ids"]
        if answers:
            found = pc.add(found, pc.max_element_wise(*answers))
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
            if row is not None:
                form = _sequences.form_of(row)
                lines += _sequences.lines(form, row, tokenizer, sign=sign)
    return View(data, tuple(lines))


def _example(change: RowChange) -> dict[str, Any]:
    before, after = change.before, change.after
    at = None
    if before is None or after is None:
        what = "added" if before is None else "removed"
    else:
        changed = [name for name in before if before[name] != after.get(name)]
        what = "labels alone changed" if changed == ["labels"] else f"{', '.join(changed)} changed"
        old, new = before[changed[0]], after.get(changed[0])
        if isinstance(old, list) and isinstance(new, list):
            pairs = zip(old, new, strict=False)
            at = next((place for place, (x, y) in enumerate(pairs) if x != y), None)
    return {"row": change.number, "what": what, "at": at, "a": before, "b": after}
