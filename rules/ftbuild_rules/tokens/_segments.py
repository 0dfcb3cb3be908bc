"""Plain text in pieces, each trained on or not, and ids made elsewhere -> ids and labels.

The segments of a row are one text, tokenized once: so the ids are those that the text has
wherever it is read. What the tokenizer puts before a text stands before it, unless the row begins
with it; an EOS token follows a last segment that is trained on, unless it ends with an end token.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ftbuild_rules.tokens._encoder import Encoder
from ftbuild_rules.tokens._findings import Findings
from ftbuild_rules.tokens._masks import MASKED, Labelled, Span, label_spans

_Numbered = tuple[int, Any, Labelled]
_Rows = Sequence[tuple[int, dict[str, Any]]]


def segment_rows(encoder: Encoder, rows: _Rows, *, trains_eot: bool) -> Iterator[_Numbered]:
    """Yield number, ids and labels of each row of segments."""
    opening, enders = encoder.opening(), encoder.ender_ids()
    texts = ["".join(item["text"] for item in row["segments"]) for _, row in rows]
    for (number, row), (ids, offsets) in zip(rows, encoder.encode_with_offsets(texts), strict=True):
        found = label_spans(ids, offsets, _trained_spans(row["segments"]))
        ids, labels = ids.tolist(), found.labels.tolist()
        if ids[: len(opening)] != opening:
            ids, labels = [*opening, *ids], [MASKED] * len(opening) + labels
        if row["segments"][-1]["train"] and ids[-1] not in enders:
            assert encoder.eos_id is not None  # checked before the first shard
            ids.append(encoder.eos_id)
            labels.append(encoder.eos_id if trains_eot else MASKED)
        lacks_eot = trains_eot and enders.isdisjoint(labels)
        yield number, ids, Labelled(labels, lacks_eot, found.has_split_token)


def _trained_spans(segments: Sequence[dict[str, Any]]) -> list[Span]:
    spans = []
    at = 0
    for item in segments:
        end = at + len(item["text"])
        if item["train"] and end > at:
            spans.append((at, end))
        at = end
    return spans


def given_rows(encoder: Encoder, rows: _Rows, findings: Findings) -> Iterator[_Numbered]:
    """Yield number, ids and labels of each row that is tokenized already; unknown ids are noted."""
    size, enders = encoder.size(), encoder.ender_ids()
    for number, row in rows:
        ids, labels = row["input_ids"], row["labels"]
        if (highest := max(ids)) >= size:
            detail = f"it has the id {highest}; the tokenizer's are 0 to {size - 1}"
            findings.add("vocabulary", number, detail)
        yield number, ids, Labelled(labels, enders.isdisjoint(labels), has_split_token=False)
