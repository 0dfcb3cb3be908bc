"""How a dataset looks: how many rows of which form, one of them, and which rows differ."""

import json
from typing import Any

from ftbuild.api import Artifact
from ftbuild.view import Span, View
from ftbuild_rules.viewers._rows import Line, RowChange, diff_rows, read_row, summary_lines

_ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
_LINE_CHARACTERS = 100


def inspect(artifact: Artifact, row: int | None = None) -> View:
    """Show the row of that number, or the dataset's figures."""
    index = json.loads((artifact.path / "dataset.json").read_bytes())
    if row is None:
        return _summary(artifact, index)
    shown = _plain(read_row(artifact, index, row))
    return View(shown, tuple(_row_lines(shown)))


def _summary(artifact: Artifact, index: dict[str, Any]) -> View:
    size_bytes = sum((artifact.path / name).stat().st_size for name, _ in index["shards"])
    rows = [shard_rows for _, shard_rows in index["shards"]]
    data = {
        "form": index["form"],
        "rows": index["rows"],
        "bytes": size_bytes,
        "shards": [{"name": name, "rows": count} for name, count in index["shards"]],
    }
    lines: list[Line] = [
        (Span("form    ", "dim"), Span(index["form"])),
        (Span("rows    ", "dim"), Span(f"{index['rows']:,}")),
        (Span("shards  ", "dim"), Span(f"{len(rows):,} of {min(rows):,} to {max(rows):,} rows")),
        (Span("size    ", "dim"), Span(f"{size_bytes / 1e6:,.2f} MB")),
    ]
    return View(data, tuple(lines))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as a person would write it: without what is not given, JSON as values."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list):
            out[name] = [_plain_item(item) for item in value]
        elif name in ("tools", "metadata"):
            out[name] = None if value is None else json.loads(value)
        else:
            out[name] = value
    return out


def _plain_item(item: Any) -> Any:
    """Return a message without what is not given; a step, a token or a label as it is."""
    if not isinstance(item, dict):
        return item
    given = {key: value for key, value in item.items() if value is not None}
    for key in ("tool_calls", "train_detail"):
        if key in given:
            given[key] = json.loads(given[key])
    return given


def _row_lines(row: dict[str, Any]) -> list[Line]:
    lines: list[Line] = []
    for name, value in row.items():
        if name == "messages":
            lines += _message_lines(value)
        elif name == "segments":
            styles = {True: "green", False: "dim"}
            lines += split_lines([Span(item["text"], styles[item["train"]]) for item in value])
        elif name == "completions":
            lines += _step_lines(value, row["labels"])
        elif name == "labels" and "completions" in row:
            continue
        elif isinstance(value, list) and value and isinstance(value[0], dict) and name != "tools":
            lines += [(Span(name, "bold"),), *_message_lines(value)]
        elif isinstance(value, str):
            lines += [(Span(line),) for line in value.split("\n")]
        elif value or value is False:
            lines.append((Span(f"{name}: ", "dim"), Span(_json(value), "dim")))
    return lines


def _step_lines(steps: list[str], labels: list[bool]) -> list[Line]:
    """Return the steps of a solution, each with what it is judged."""
    lines: list[Line] = []
    for step, is_right in zip(steps, labels, strict=True):
        mark = Span(" ✓", "green") if is_right else Span(" ✗", "red")
        lines += split_lines([Span(step), mark])
    return lines


def split_lines(spans: list[Span]) -> list[Line]:
    """Return spans whose texts hold line ends as lines."""
    lines: list[list[Span]] = [[]]
    for span in spans:
        for number, part in enumerate(span.text.split("\n")):
            if number:
                lines.append([])
            if part:
                lines[-1].append(Span(part, span.style))
    return [tuple(line) for line in lines]


def _content(message: dict[str, Any]) -> list[Line]:
    """Return a message's text; where parts of it have flags of their own, in their styles."""
    text, spans, at = message["content"], [], 0
    for begin, end, is_trained in message.get("train_detail", ()):
        style = "green" if is_trained else "dim"
        spans += [Span(text[at:begin]), Span(text[begin:end], style)]
        at = end
    return split_lines([*spans, Span(text[at:])])


def _message_lines(messages: list[dict[str, Any]]) -> list[Line]:
    lines: list[Line] = []
    for message in messages:
        lines.append((Span(message["role"] + _flag(message), _ROLE_STYLES[message["role"]]),))
        if message.get("reasoning_content"):
            lines += [
                (Span("  "), Span(x, "dim")) for x in message["reasoning_content"].split("\n")
            ]
        if message.get("content"):
            lines += [(Span("  "), *line) for line in _content(message)]
        lines += [(Span("  "), Span(_json(call))) for call in message.get("tool_calls", [])]
    return lines


def _flag(message: dict[str, Any]) -> str:
    if "train" not in message:
        return ""
    return " (trained)" if message["train"] else " (not trained)"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def diff(a: Artifact, b: Artifact) -> View:
    """Show how many rows of two datasets differ, and the first of them."""
    found = diff_rows(a, b)
    examples = [
        {"row": change.number, "a": _given(change.before), "b": _given(change.after)}
        for change in found.examples
    ]
    data = {
        "added": found.added,
        "removed": found.removed,
        "changed": found.changed,
        "examples": examples,
    }
    lines = summary_lines(found)
    for change in found.examples:
        lines += _change_lines(change)
    return View(data, tuple(lines))


def _given(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else _plain(row)


def _change_lines(change: RowChange) -> list[Line]:
    """Return the number of a row, and it or what changed in it."""
    before, after = _given(change.before), _given(change.after)
    lines: list[Line] = [(Span(f"row {change.number}", "bold"),)]
    if before is None:
        return [*lines, (Span("+ " + _cut(_json(after), 0), "green"),)]
    if after is None:
        return [*lines, (Span("- " + _cut(_json(before), 0), "red"),)]
    for name in before:
        old, new = _json(before[name]), _json(after.get(name))
        if old != new:
            at = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), 0)
            lines.append((Span(f"~ {name}", "yellow"),))
            lines.append((Span("  - " + _cut(old, at), "red"),))
            lines.append((Span("  + " + _cut(new, at), "green"),))
    return lines


def _cut(text: str, at: int) -> str:
    """Return the part of `text` around its character `at`, short enough for a line."""
    start = max(0, at - _LINE_CHARACTERS // 2)
    end = start + _LINE_CHARACTERS
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
