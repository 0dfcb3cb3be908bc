"""One target's table, checked against its rule: params, sources, variables, wanted labels.

Params go through pydantic, as JSON, so that TOML's lists fit tuples while all else stays
strict. Its errors are turned into the words of somebody who writes FTBUILD.toml.
"""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftbuild import mistakes, queries
from ftbuild.declaration import ENGINE_ATTRIBUTES, Declaration
from ftbuild.digest import canonical_json
from ftbuild.kinds import Artifact
from ftbuild.spans import Finding, KeyPath
from ftbuild.units import parse_size
from ftbuild.wording import as_toml, did_you_mean, dotted, kind_of_value, nearest, shown

if TYPE_CHECKING:
    from ftbuild.rule import InputField, Params, Rule

_FUNCTION = re.compile(r"[^:]+\.py:[A-Za-z_]\w*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE_FORM = "a name has A-Z a-z 0-9 _ and does not begin with a digit"


@dataclass(frozen=True)
class Wish:
    """A label in a table, not yet looked up."""

    field: "InputField"
    place: str | int | None
    text: str

    @property
    def path(self) -> KeyPath:
        """Where it stands in the target's table."""
        return (self.field.name,) if self.place is None else (self.field.name, self.place)


@dataclass
class Checked:
    """What a target's table says, and all that is wrong with it."""

    declaration: Declaration
    params: "Params | None" = None
    """None where they are wrong."""
    plain_params: dict[str, Any] = field(default_factory=dict)
    wishes: list[Wish] = field(default_factory=list)
    sources: dict[str, Any] = field(default_factory=dict)
    variables: list[tuple[str, str]] = field(default_factory=list)
    resources: dict[str, int] = field(default_factory=dict)
    description: str = ""
    tags: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)

    def wrong(
        self,
        code: str,
        what: str,
        path: KeyPath = (),
        *,
        of_key: bool = False,
        fix: str | None = None,
    ) -> None:
        """Note that the attribute at `path` is wrong."""
        file, keys = self.declaration.origin(path)
        if of_key and keys[2:3] == ("matrix",) and isinstance(keys[-1], int):
            keys = keys[:-1]  # the axis is wrong, not one of its values
        of = "key" if of_key or not path else "value"
        self.findings.append(Finding(code, what, file, keys, of=of, fix=fix))  # type: ignore[arg-type]  # one of the two


def check(declaration: Declaration, rule: "Rule") -> Checked:
    """Return what a target's table means to its rule."""
    checked = Checked(declaration)
    values: dict[str, Any] = {}
    meant: set[str | None] = set()  # what is there but misspelt is not missed as well
    for name, value in declaration.attributes.items():
        if name in rule.input_fields:
            _input(checked, rule.input_fields[name], value)
        elif name in rule.params.model_fields:
            values[name] = value
        elif name in ENGINE_ATTRIBUTES:
            _ENGINE_CHECKS[name](checked, value)
        else:
            meant.add(_unknown(checked, rule, name))
    for name, wanted in rule.input_fields.items():
        if wanted.is_required and name not in declaration.attributes and name not in meant:
            fix = f"add `{name} = {_example(wanted)}`{_meaning(wanted)}"
            checked.wrong("E0203", f"rule `{rule.name}` needs `{name}`", fix=fix)
    _params(checked, rule, values, meant)
    return checked


def _unknown(checked: Checked, rule: "Rule", name: str) -> str | None:
    """Note an attribute that the rule does not have; return the one that was likely meant."""
    known = [*rule.input_fields, *rule.params.model_fields, *ENGINE_ATTRIBUTES]
    value = checked.declaration.attributes[name]
    fix = mistakes.known_remedy(rule.params, name, value) or did_you_mean(
        name, known, f"`ftbuild rules {rule.name}` lists all"
    )
    what = f"rule `{rule.name}` has no attribute `{shown(name)}`"
    checked.wrong("E0204", what, (name,), of_key=True, fix=fix)
    return rule.params.other_names.get(name) or nearest(name, known)


def _params(
    checked: Checked, rule: "Rule", values: dict[str, Any], meant: Container[str | None]
) -> None:
    from pydantic import ValidationError

    try:
        text = canonical_json(values)
    except (TypeError, ValueError):
        _not_json(checked, values, ())
        return
    try:
        params = rule.params.model_validate_json(text)
    except ValidationError as error:
        errors = [e for e in error.errors() if e["type"] != "missing" or e["loc"][-1] not in meant]
        for found in mistakes.of_params(errors, values, rule):
            checked.wrong(found.code, found.what, found.path, of_key=found.is_key, fix=found.fix)
        return
    checked.params = params
    if values:
        checked.plain_params = params.model_dump(mode="json", exclude_defaults=True)


def _not_json(checked: Checked, value: Any, path: KeyPath) -> None:
    """Note every date, infinity and not-a-number below `value`: no rule takes them."""
    if isinstance(value, dict):
        for key, item in value.items():
            _not_json(checked, item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _not_json(checked, item, (*path, place))
    elif isinstance(value, float) and not abs(value) < float("inf"):
        what = f"`{dotted(path)}` is {as_toml(value)}; no attribute takes that"
        checked.wrong("E0107", what, path, fix="write a finite number")
    elif not isinstance(value, str | int | float):
        what = f"`{dotted(path)}` is a date or time; no attribute takes one"
        checked.wrong("E0107", what, path, fix=f'write it as a text: `"{value}"`')


def _input(checked: Checked, wanted: "InputField", value: Any) -> None:
    read = _READS[wanted.outside]
    name = wanted.name
    found: list[tuple[str | int | None, Any]]
    if wanted.shape == "one":
        found = [(None, value)]
    elif wanted.shape == "list" and isinstance(value, list):
        found = [(place, item) for place, item in enumerate(value)]
    elif wanted.shape == "table" and isinstance(value, dict):
        found = [*value.items()]
    else:
        shape = "a list of" if wanted.shape == "list" else "a table of"
        what = f"`{name}` should be {shape} {_PLURAL[wanted.outside]}; found {kind_of_value(value)}"
        fix = f"write `{name} = {_example(wanted, value)}`"
        checked.wrong("E0202", what, (name,), fix=fix)
        return
    before = len(checked.findings)
    for place, item in found:
        read(checked, wanted, place, item)
    if wanted.outside in ("source", "function") and len(checked.findings) == before:
        checked.sources[name] = {_SOURCE_SHAPES[wanted.outside, wanted.shape]: value}


_SOURCE_SHAPES = {
    ("source", "one"): "one",
    ("source", "list"): "list",
    ("source", "table"): "table",
    ("function", "one"): "function",
    ("function", "list"): "functions",
}
_PLURAL = {
    None: "labels",
    "source": "sources",
    "variable": "names of variables",
    "function": "functions",
}


def _path(wanted: "InputField", place: str | int | None) -> KeyPath:
    return (wanted.name,) if place is None else (wanted.name, place)


def _label(checked: Checked, wanted: "InputField", place: str | int | None, value: Any) -> None:
    if isinstance(value, str):
        checked.wishes.append(Wish(wanted, place, value))
        return
    path = _path(wanted, place)
    what = f"`{dotted(path)}` should be a label; found {kind_of_value(value)}"
    is_single = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
    fix = f"write `{dotted(path)} = {as_toml(value[0] if is_single else '…')}`"
    checked.wrong("E0202", what, path, fix=f"{fix}{_meaning(wanted)}")


def _variable(checked: Checked, wanted: "InputField", place: str | int | None, value: Any) -> None:
    if isinstance(value, str) and _VARIABLE.fullmatch(value):
        checked.variables.append((wanted.name, value))
        return
    path = _path(wanted, place)
    found = as_toml(value) if isinstance(value, str) else kind_of_value(value)
    what = f"`{dotted(path)}` should be the name of an environment variable; found {found}"
    checked.wrong("E0202", what, path, fix=_VARIABLE_FORM)


def _function(checked: Checked, wanted: "InputField", place: str | int | None, value: Any) -> None:
    if isinstance(value, str) and _FUNCTION.fullmatch(value):
        return
    path = _path(wanted, place)
    found = as_toml(value) if isinstance(value, str) else kind_of_value(value)
    what = f"`{dotted(path)}` should be a file and a function in it; found {found}"
    checked.wrong("E0202", what, path, fix=f'write `{dotted(path)} = "file.py:function"`')


def _source(checked: Checked, wanted: "InputField", place: str | int | None, value: Any) -> None:
    path = _path(wanted, place)
    specs: Iterable[tuple[KeyPath, Any]] = [(path, value)]
    if isinstance(value, list):
        specs = [((*path, index), item) for index, item in enumerate(value)]
        if not value:
            what = f"`{dotted(path)}` is an empty list: there is nothing to read"
            checked.wrong("E0403", what, path, fix="name a file, or remove the attribute")
    for where, spec in specs:
        if isinstance(spec, dict) and "sql" in spec:
            if problem := queries.problem(spec):
                checked.wrong("E0406", f"`{dotted(where)}`: {problem[0]}", where, fix=problem[1])
            continue
        if not _is_text(spec):
            what = f"`{dotted(where)}` should be a path, an address or a table of texts"
            found = "an empty text" if spec == "" else kind_of_value(spec)
            fix = f'for example `{dotted(path)} = "data/rows.jsonl"`'
            checked.wrong("E0403", f"{what}; found {found}", where, fix=fix)


_READS = {None: _label, "source": _source, "variable": _variable, "function": _function}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _example(wanted: "InputField", value: Any = None) -> str:
    one = as_toml(value) if isinstance(value, str) else '"…"'
    return {"one": one, "list": f"[{one}]", "table": f"{{ name = {one} }}"}[wanted.shape]


def _meaning(wanted: "InputField") -> str:
    if wanted.outside:
        return {
            "source": ", a path or an address",
            "variable": ", the name of a variable",
            "function": ", a file and a function in it: `file.py:function`",
        }[wanted.outside]
    kinds = " or ".join(f"`{kind.kind}`" for kind in wanted.kinds)
    one = wanted.shape == "one"
    return (
        f", the label of a target of kind {kinds}"
        if one
        else f", labels of targets of kind {kinds}"
    )


def a_kind(kinds: Iterable[str]) -> str:
    """Return kinds with their articles: `an adapter`, `a model or a quantized_model`."""
    named = [f"{'an' if kind[0] in 'aeiou' else 'a'} `{kind}`" for kind in kinds]
    named = ["`tokens`" if name == "a `tokens`" else name for name in named]
    return " or ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def fixed_kind(rule: "Rule") -> str | None:
    """Return the kind of a rule's output; None where it follows from a target's attributes."""
    if isinstance(rule.output, type) and issubclass(rule.output, Artifact):
        return rule.output.kind
    return None


def _description(checked: Checked, value: Any) -> None:
    if isinstance(value, str):
        checked.description = value
    else:
        what = f"`description` should be text; found {kind_of_value(value)}"
        checked.wrong("E0207", what, ("description",), fix='write `description = "…"`')


def _tags(checked: Checked, value: Any) -> None:
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        checked.tags = tuple(value)
    else:
        what = f"`tags` should be a list of texts; found {kind_of_value(value)}"
        fix = 'for example `tags = ["small"]`'
        if isinstance(value, str):
            fix = f"write `tags = [{as_toml(value)}]`"
        checked.wrong("E0207", what, ("tags",), fix=fix)


def _resources(checked: Checked, value: Any) -> None:
    example = 'for example `resources = { cpus = 2, gpus = 1, memory = "8 GB" }`'
    if not isinstance(value, dict):
        what = f"`resources` should be a table; found {kind_of_value(value)}"
        checked.wrong("E0207", what, ("resources",), fix=example)
        return
    for name, amount in value.items():
        path = ("resources", name)
        if name in ("cpus", "gpus"):
            least = 1 if name == "cpus" else 0
            if type(amount) is int and amount >= least:
                checked.resources[name] = amount
                continue
            expected = f"a whole number, at least {least}"
        elif name == "memory":
            size = parse_size(amount) if isinstance(amount, str) else None
            if size:
                checked.resources[name] = size
                continue
            expected = 'a size such as "8 GB"'
        else:
            fix = did_you_mean(name, ("cpus", "gpus", "memory")) or example
            what = f"`resources` has no key `{shown(name)}`"
            checked.wrong("E0207", what, path, of_key=True, fix=fix)
            continue
        what = f"`resources.{name}` should be {expected}; found {as_toml(amount)}"
        checked.wrong("E0207", what, path, fix=example)


_ENGINE_CHECKS = {"description": _description, "tags": _tags, "resources": _resources}
