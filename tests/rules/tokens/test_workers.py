"""The same bytes on every run, and however many workers share the shards."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_kit import chat
from ftbuild.events import Finished
from ftbuild.project import Project
from tiny_models import make_model

ROWS: dict[str, list[Any]] = {
    "openai": [chat(f"What is {n} plus {n}?", f"It is {2 * n}.", id=n) for n in range(120)],
    "preference": [{"prompt": f"{n}?", "chosen": f"{n}!", "rejected": "."} for n in range(120)],
    "stepwise": [
        {"prompt": f"{n}?", "completions": ["a", f"b{n}"], "labels": [True, False]}
        for n in range(120)
    ],
    "prompts": [{"prompt": f"{n}?", "answer": n} for n in range(120)],
    "prompt_completion": [{"prompt": f"{n} is", "completion": f" {n}."} for n in range(120)],
}
MORE = {"openai": 'packing = "bfd"\n', "prompt_completion": 'packing = "wrapped"\n'}


def digests(root: Path, store: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> dict[str, Any]:
    """Return the digest of each target, built anew; and of the tokens how many fragments."""
    monkeypatch.setenv("FTBUILD_CACHE", str(store))
    found: dict[str, Any] = {}

    def note(event: Any) -> None:
        if isinstance(event, Finished):
            assert event.outcome == "built", event.error
            found[event.label] = (event.digest, event.fragments)

    with Project.open(root, jobs=jobs) as project:
        project.make(on_event=note)
    return found


def test_digests_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "model")
    tables = ['[project]\nname = "p"\n', '[base_model.smol]\nsource = "model"\n']
    for name, rows in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
        tables += [
            f'[dataset.{name}]\nsource = "{name}.jsonl"\nformat = "{name}"\n',
            f'[tokens.{name}_ids]\ndataset = "{name}"\nmodel = "smol"\nmax_length = 64\n'
            f"{MORE.get(name, '')}",
        ]
    (tmp_path / "FTBUILD.toml").write_text("\n".join(tables))
    one = digests(tmp_path, tmp_path / "one", monkeypatch, 1)
    assert len(one) == 1 + 2 * len(ROWS)
    assert all(one[f"{name}_ids"][1][0] > 1 for name in ROWS)  # there is something to share
    assert digests(tmp_path, tmp_path / "three", monkeypatch, 3) == one
