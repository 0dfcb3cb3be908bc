"""The table to add where a target is given an artifact of the wrong kind."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ftbuild import labels
from ftbuild.attributes import fixed_kind
from ftbuild.declaration import Declaration
from ftbuild.errors import ManifestError
from ftbuild.spans import KeyPath
from ftbuild.wording import as_key, as_toml, dotted

if TYPE_CHECKING:
    from ftbuild.registry import Registry
    from ftbuild.rule import InputField, Rule


def table_between(
    registry: "Registry",
    reader: Declaration,
    path: KeyPath,
    label: str,
    kinds: tuple[str, Sequence[str]],
) -> str:
    """Return TOML that makes one of the kinds that `reader` takes of the one that `label` is.

    `kinds` are the kind of `label` and those that the attribute at `path` takes.
    """
    has, takes = kinds
    found = [rule for rule in _rules(registry) if _turns(rule, has, takes)]
    if not found:
        return f"name a target of kind {' or '.join(f'`{kind}`' for kind in takes)}"
    rule = min(found, key=lambda rule: (len(_required(rule)), rule.name))
    entry = _entry(rule, has)
    home, plain = labels.split(label)
    written = plain if home == reader.package else f"//{home}:{plain}"
    name = f"{plain.partition('[')[0]}_{takes[0]}"
    lines = [f'add this, and write `{dotted(path)} = "{name}"` here']
    lines.append(f"[{rule.name}.{as_key(name)}]")
    for field in _required(rule):
        value = "…" if field == path[0] else reader.attributes.get(field, "…")
        if entry is not None and field == entry.name:
            value = [written] if entry.shape == "list" else written
        lines.append(f"{field} = {as_toml(value)}")
    return "\n".join(lines)


def _rules(registry: "Registry") -> list["Rule"]:
    rules = []
    for name in registry.names():
        try:
            rules.append(registry.rule(name))
        except ManifestError:  # a rule that cannot be imported is no remedy
            continue
    return rules


def _required(rule: "Rule") -> list[str]:
    inputs = [name for name, field in rule.input_fields.items() if field.is_required]
    return inputs + [name for name, f in rule.params.model_fields.items() if f.is_required()]


def _entry(rule: "Rule", kind: str) -> "InputField | None":
    """Return the field of a rule that is given what the rule turns into something else."""
    for field in rule.input_fields.values():
        if field.is_required and field.shape != "table" and kind in [k.kind for k in field.kinds]:
            return field
    return None


def _turns(rule: "Rule", has: str, takes: Sequence[str]) -> bool:
    return fixed_kind(rule) in takes and _entry(rule, has) is not None
