"""The table to add where a target is given an artifact of the wrong kind."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftbuild import labels
from ftbuild.attributes import fixed_kind
from ftbuild.declaration import Declaration
from ftbuild.errors import ManifestError
from ftbuild.kinds import RewardModel, Tokens
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

    def rank(rule: "Rule") -> tuple[Any, ...]:
        # Of `prm` and `reward_model` the one that is named after what is wanted.
        entry = _entry(rule, has)
        is_sure = entry is not None and entry.is_required
        return not is_sure, len(_required(rule)), rule.name not in takes, rule.name

    rule = min(found, key=rank)
    entry = _entry(rule, has)
    assert entry is not None  # `_turns` has seen to it
    home, plain = labels.split(label)
    written = plain if home == reader.package else f"//{home}:{plain}"
    name = f"{plain.partition('[')[0]}_{takes[0]}"
    own = _own_field(registry, reader, has)
    start = "add this, and" if own is None else f'write `{own} = "{written}"`; or add this, and'
    # An entry of a list has no line of its own.
    here = f'{dotted(path)} = "{name}"' if len(path) == 1 else f'"{name}"'
    lines = [f"{start} write `{here}` here"]
    lines.append(f"[{rule.name}.{as_key(name)}]")
    for field in dict.fromkeys([*_required(rule), entry.name]):
        value = reader.attributes.get(field, "…") if _shares(field, path, rule, reader) else "…"
        if field == entry.name:
            value = [written] if entry.shape == "list" else written
        lines.append(f"{field} = {as_toml(value)}")
    return "\n".join(lines)


def _shares(field: str, path: KeyPath, rule: "Rule", reader: Declaration) -> bool:
    """Say whether what `reader` has under a name is likely what the new target needs under it."""
    if field == path[0]:
        return False
    # A judge learns from other rows than those of its reader, of another form.
    is_judge = fixed_kind(rule) == RewardModel.kind and reader.rule != rule.name
    needed = rule.input_fields.get(field)
    return not (is_judge and needed is not None and Tokens in needed.kinds)


def _own_field(registry: "Registry", reader: Declaration, kind: str) -> str | None:
    """Return the reader's field that is named after a kind and takes it, if it is free."""
    field = registry.rule(reader.rule).input_fields.get(kind)
    is_free = field is not None and field.shape == "one" and kind not in reader.attributes
    return kind if is_free else None


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
    fields = [field for field in rule.input_fields.values() if field.shape != "table"]
    for field in fields:
        if field.is_required and kind in [k.kind for k in field.kinds]:
            return field
    # The adapter of `merge` may be given as one or as several, so neither is required.
    only = [field for field in fields if [k.kind for k in field.kinds] == [kind]]
    return only[0] if only and any(field.is_required for field in fields) else None


def _turns(rule: "Rule", has: str, takes: Sequence[str]) -> bool:
    return fixed_kind(rule) in takes and _entry(rule, has) is not None
