"""The card of a model or adapter: what it was made of, for people (README.md) and rules.

`card.json` is a part of the artifact and made of nothing but its action's own inputs and params,
so it changes when they do and carries no name, path or date. What an input's card says stands
inside: base, adapters, data with digests and row counts, method, parameters, figures. A rule
whose output ends early cutoff (`dataset`, `tokens`) writes none: of data the card of a training
tells the digest that it read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftbuild.api import Artifact, canonical_json

CARD_NAME = "card.json"
README_NAME = "README.md"
CARDS = (CARD_NAME, README_NAME)


def read_card(artifact: Artifact) -> dict[str, Any]:
    """Return an artifact's card: its digest, and what its own card says."""
    path = artifact.path / CARD_NAME
    known: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return {"digest": artifact.digest, **known}


def data_card(artifact: Artifact) -> dict[str, Any]:
    """Return digest, form and number of rows of a `dataset` or `tokens` artifact."""
    for name in ("tokens.json", "dataset.json"):
        if (artifact.path / name).exists():
            about = json.loads((artifact.path / name).read_bytes())
            rows, form = about.get("rows"), about.get("form")
            return {"digest": artifact.digest, "form": form, "rows": rows}
    return {"digest": artifact.digest}


def training_card(inputs: Any, params: Any, rule: str, *, steps: int) -> dict[str, Any]:
    """Return what was trained on what.

    What only watches, such as `eval_data`, is left out: it would change what lies above. So are
    losses: `verify --tolerance` allows tensors to differ in their last digits, texts not at all.
    """
    watches = set() if params.keep == "best" else {"evaluate_every"}
    card: dict[str, Any] = {
        "method": rule,
        "parameters": params.model_dump(mode="json", exclude_defaults=True, exclude=watches),
        "base": read_card(inputs.model),
        "data": [data_card(inputs.data)],
        "figures": {"steps": steps},
    }
    if inputs.adapter is not None:
        card["adapter"] = read_card(inputs.adapter)
    return card


def write_card(
    out: Path, card: Mapping[str, Any], *, fields: Mapping[str, Any] | None = None
) -> None:
    """Write `card.json` and `README.md`; `fields` are the hub's own, such as `license`."""
    (out / CARD_NAME).write_bytes(canonical_json(dict(card)))
    head = "".join(
        f"{name}: {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in sorted((fields or {}).items())
    )
    front = f"---\n{head}---\n\n" if head else ""
    body = "\n".join(_lines(card, 0))
    said = "Written by ftbuild from what this artifact was made of."
    text = f"{front}# Model card\n\n{said}\n\n{body}\n"
    (out / README_NAME).write_text(text, encoding="utf-8")


def _lines(card: Mapping[str, Any], depth: int) -> list[str]:
    indent = "  " * depth
    lines = []
    for name in ("method", "digest", "form", "rows"):
        if card.get(name) is not None:
            lines.append(f"{indent}- {name}: {_code(card[name])}")
    for name in ("parameters", "figures"):
        if card.get(name):
            values = ", ".join(f"{k} {_code(v)}" for k, v in sorted(card[name].items()))
            lines.append(f"{indent}- {name}: {values}")
    for name in ("base", "adapter", "model"):
        if card.get(name):
            lines += [f"{indent}- {name}:", *_lines(card[name], depth + 1)]
    for name in ("adapters", "models", "data", "reports"):
        for entry in card.get(name) or ():
            title = f" {entry['name']}" if "name" in entry else ""
            lines += [f"{indent}- {name}{title}:", *_lines(entry, depth + 1)]
    return lines


def _code(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"`{value}`" if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
