"""The chain of targets that one configuration becomes: model, rows, tokens, training, merge."""

import re
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ftbuild.api import Imported, ImportProblem, Note, Table
from ftbuild_rules.formats._all import FORMATS
from ftbuild_rules.importers._reading import Reading

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
MODEL, QUANTIZED = "base", "base_quantized"


@dataclass
class Chain:
    """What is known so far of the targets."""

    folder: Path
    notes: list[Note]
    tables: list[Table] = field(default_factory=list)

    def add(self, rule: str, name: str, **attributes: Any) -> str:
        """Add a target and return its name; an attribute that is None is left out."""
        given = {key: value for key, value in attributes.items() if value is not None}
        self.tables.append(Table(rule, name, given))
        return name

    def is_here(self, path: str) -> bool:
        """Say whether there is a file or folder of that name, as seen from the project."""
        return (self.folder / path).exists()

    def model_source(self, name: str, revision: str | None = None) -> str:
        """Return the source of a model or an adapter: a folder, or a repository of the hub."""
        if self.is_here(name) or not _REPOSITORY.fullmatch(name):
            return name
        return f"hf:{name}@{revision}" if revision else f"hf:{name}"

    def rows(self, sources: list[dict[str, Any]], name: str = "rows", key: str = "datasets") -> str:
        """Add a dataset, or several and their mix, and return the target that holds all rows.

        Raises:
            ImportProblem: rows of several forms, which cannot be mixed.
        """
        if len(sources) == 1:
            return self.add("dataset", name, **sources[0])
        forms = {FORMATS[each["format"]].FORM for each in sources}
        if len(forms) > 1:
            raise ImportProblem(
                (key,),
                f"rows of several forms cannot be mixed: {', '.join(sorted(forms))}",
                "import each form on its own, and let the second training continue the first",
            )
        names = [
            self.add("dataset", f"{name}_{number}", **each)
            for number, each in enumerate(sources, 1)
        ]
        return self.add("mix", name, datasets={each: each for each in names})

    @property
    def trained_model(self) -> str:
        """The model that the training target reads: the quantized one if there is one."""
        return QUANTIZED if any(table.name == QUANTIZED for table in self.tables) else MODEL

    def set_aside(self, config: Reading, key: str, rows: str) -> tuple[str, str | None]:
        """Add the parts that the share under `key` asks for; without it train on all rows."""
        share = float(config.number(key, 0.0))
        if share >= 1:
            config.note(key, "a share below 1 can be imported; no rows were set aside")
        if not 0 < share < 1:
            return rows, None
        config.note(key, "the split here is by content, so other rows are set aside")
        return self.split(rows, share)

    def split(self, rows: str, share: float) -> tuple[str, str]:
        """Add the two parts of a dataset, and return the one to train on and the other."""
        fractions = {"train": round(1 - share, 10), "eval": share}
        one, other = (
            self.add("split", f"{part}_rows", dataset=rows, part=part, fractions=fractions)
            for part in ("train", "eval")
        )
        return one, other

    def tokens(self, rows: str, eval_rows: str | None, how: dict[str, Any]) -> dict[str, str]:
        """Add the tokens to train on, and those to evaluate on, which are not packed."""
        made = {"data": self.add("tokens", "train_tokens", dataset=rows, model=MODEL, **how)}
        if eval_rows is not None:
            flat = {key: value for key, value in how.items() if key != "packing"}
            made["eval_data"] = self.add(
                "tokens", "eval_tokens", dataset=eval_rows, model=MODEL, **flat
            )
        return made

    def train(self, method: str, attributes: dict[str, Any]) -> str:
        """Add the target that trains; what the method does not know is left out, with a note."""
        module = import_module(f"ftbuild_rules.training.{method}")
        rule = getattr(module, method).__ftbuild_rule__
        known = {*rule.input_fields, *rule.params.model_fields}
        for name, value in attributes.items():
            if name not in known and value is not None:
                self.notes.append(Note((), f"`{method}` has no `{name}`, so it was left out"))
        return self.add(method, "trained", **{k: v for k, v in attributes.items() if k in known})

    def finish(self, trained: str, *, merges: bool) -> Imported:
        """Add the merge of an adapter, and return all."""
        if merges:
            trained = self.add("merge", "merged_model", model=MODEL, adapter=trained)
        return Imported(tuple(self.tables), trained, tuple(self.notes))


def hub_dataset(name: str, *, revision: Any, config: Any, split: Any) -> str:
    """Return the source of a dataset of the hub."""
    at = f"@{revision}" if revision else ""
    options = "&".join(
        f"{key}={value}" for key, value in (("config", config), ("split", split)) if value
    )
    return f"hf:datasets/{name}{at}" + (f"?{options}" if options else "")
