"""What users of other tools write: each of their names leads to one that there is."""

import re
from pathlib import Path

import pytest

from ftbuild.errors import ManifestError
from ftbuild.project import Project
from ftbuild.registry import Registry
from ftbuild.rule import Params, Rule
from ftbuild_rules.training._settings import TrainingParams

ROOT = Path(__file__).parents[2]
REGISTRY = Registry(ROOT / "docs")
RULES = {name: REGISTRY.rule(name) for name in REGISTRY.names()}
GUIDE = ROOT / "docs/migrating.md"


def attributes(rule: Rule) -> set[str]:
    """Return the attributes of a rule, those of its tables with a point."""
    found = {*rule.input_fields, *rule.params.model_fields}
    for table, field in rule.params.model_fields.items():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, Params):
                found |= {f"{table}.{name}" for name in part.model_fields}
    return found


@pytest.mark.parametrize("name", [n for n, rule in RULES.items() if rule.params.other_names])
def test_each_name_of_others_stands_for_an_attribute(name: str) -> None:
    rule = RULES[name]
    # Of tables that take any key, or whose keys follow from another attribute.
    free = {f"columns.{name}" for name in ("messages", "role", "content")}
    free |= {f"optimizer_settings.{name}" for name in ("beta1", "beta2", "eps")}
    assert {*rule.params.other_names.values()} - free <= attributes(rule)
    assert not {*rule.params.other_names, *rule.params.elsewhere} & attributes(rule)
    assert not rule.params.other_names.keys() & rule.params.elsewhere.keys()


def problems(folder: Path, manifest: str) -> dict[str, str | None]:
    """Return the remedy for each line of a manifest that is wrong."""
    (folder / "FTBUILD.toml").write_text(f'[project]\nname = "p"\n{manifest}')
    lines = ["", *(folder / "FTBUILD.toml").read_text().splitlines()]
    with pytest.raises(ManifestError) as caught, Project.open(folder) as project:
        project.check()
    return {lines[p.where.line]: p.fix for p in caught.value.problems if p.where and p.where.line}


def test_axolotl_file_is_answered_line_by_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        '[dataset.d]\npath = "chats.jsonl"\nformat = "openai"\n'
        '[base_model.m]\nsource = "hf:a/b"\n'
        '[tokens.t]\ndataset = "d"\nmodel = "m"\nsequence_len = 2048\nsample_packing = true\n'
        '[sft.s]\nbase_model = "m"\ndata = "t"\nmicro_batch_size = 2\nlora_r = 32\n'
        "bf16 = true\nload_in_8bit = true\nsave_steps = 10\nlora = { lora_alpha = 16, rank = 4 }\n",
    )
    assert found == {
        'path = "chats.jsonl"': 'here it is `source = "chats.jsonl"`',
        "sequence_len = 2048": "here it is `max_length = 2048`",
        "sample_packing = true": 'write `packing = "bfd"`: documents stay apart, in as few rows '
        "as they fit",
        'base_model = "m"': 'here it is `model = "m"`',
        "micro_batch_size = 2": "here it is `batch_size = 2`",
        "lora_r = 32": "here it is `lora.r = 32`",
        "bf16 = true": 'write `dtype = "bfloat16"`',
        "load_in_8bit = true": "quantize the base model once, as a target: "
        '`[quantize.base_int8]` with `model = …` and `method = "int8"`; then '
        '`model = "base_int8"` here',
        "save_steps = 10": "there is nothing to set: a run that is stopped goes on from its last "
        "checkpoint, and only the result is kept",
        "lora = { lora_alpha = 16, rank = 4 }": "here it is `r = 4`",
    }


def table() -> str:
    """Return the table of docs/migrating.md: each attribute, and what others call it."""
    methods = {name for name, rule in RULES.items() if issubclass(rule.params, TrainingParams)}
    found: dict[str, dict[str, set[str]]] = {}
    for name, rule in RULES.items():
        for theirs, ours in rule.params.other_names.items():
            found.setdefault(ours, {}).setdefault(theirs, set()).add(name)
    lines = ["| here | elsewhere | in |", "| --- | --- | --- |"]
    for ours, others in sorted(found.items()):
        rules = set.union(*others.values())
        where = "every method" if rules == methods else ", ".join(f"`{r}`" for r in sorted(rules))
        where = where if not rules > methods else "every method, `tokens`"
        lines.append(f"| `{ours}` | {', '.join(f'`{o}`' for o in sorted(others))} | {where} |")
    return "\n".join(lines) + "\n"


def test_guide_lists_all_names() -> None:
    _, _, rest = GUIDE.read_text().partition("<!-- names -->\n")
    assert rest.partition("<!-- /names -->")[0] == table()


def test_manifest_of_the_guide_is_valid(tmp_path: Path) -> None:
    [manifest] = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/chats.jsonl").write_text("")
    (tmp_path / "FTBUILD.toml").write_text(manifest)
    with Project.open(tmp_path) as project:
        graph = project.check()
    assert {*graph.targets} == {
        "smol", "chats", "smol_nf4", "train_chats", "eval_chats", "train", "eval", "helper",
        "merged_model",
    }  # fmt: skip
