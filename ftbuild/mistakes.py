"""What pydantic finds wrong with a rule's params, in the words of a manifest's author.

A value may be allowed several forms (`"all-linear"` or a list of texts). Pydantic then reports
each form that it tried; here they become one mistake: "should be "all-linear" or a list".
"""

import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftbuild.spans import KeyPath
from ftbuild.wording import as_toml, did_you_mean, dotted, kind_of_value, shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from ftbuild.rule import Params, Rule

_FORMS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
    "tuple_too_short": "a list of at least {min_length} values",
}
_WITHOUT_QUOTES = {
    "a whole number": (int,),
    "a number": (int, float),
    "true or false": (bool,),
    "a list": (list,),
    "a table": (dict,),
}


@dataclass(frozen=True)
class Mistake:
    """One wrong value, or one key too many or too few."""

    code: str
    what: str
    path: KeyPath
    is_key: bool
    fix: str


def of_params(
    errors: Sequence["ErrorDetails"], values: Mapping[str, Any], rule: "Rule"
) -> Iterator[Mistake]:
    """Yield what is wrong with `values`, the params of a target of `rule`."""
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        if error["type"] == "missing":
            yield _missing(error, values, rule)
        elif error["type"] == "extra_forbidden":
            yield _too_many(error, values, rule)
        else:
            grouped.setdefault(_real_path(error["loc"], values), []).append(error)
    for path, group in grouped.items():
        goes_deeper = any(other[: len(path)] == path for other in grouped if other != path)
        if not (goes_deeper and path):  # one form fits so far, and what is inside it does not
            yield _wrong_value(path, group, _at(values, path), rule)


def _missing(error: "ErrorDetails", values: Mapping[str, Any], rule: "Rule") -> Mistake:
    name = str(error["loc"][-1])
    path = _real_path(error["loc"][:-1], values)
    whose = f"`{dotted(path)}`" if path else f"rule `{rule.name}`"
    fix = f"add `{name} = …`; `ftbuild rules {rule.name}` shows what it takes"
    return Mistake("E0203", f"{whose} needs `{name}`", path, True, fix)


def _too_many(error: "ErrorDetails", values: Mapping[str, Any], rule: "Rule") -> Mistake:
    *_, name = path = _real_path(error["loc"], values)
    what = f"`{dotted(path[:-1])}` has no attribute `{shown(str(name))}`"
    lists = f"`ftbuild rules {rule.name}` lists all"
    model = _model_at(rule.params, path[:-1])
    fix = known_remedy(model, str(name), _at(values, path))
    if fix is None:
        known = [] if model is None else model.model_fields
        fix = did_you_mean(str(name), known, lists) or lists
    return Mistake("E0204", what, path, True, fix)


def known_remedy(model: "type[Params] | None", name: str, value: Any) -> str | None:
    """Return what to write instead of an attribute that another tool has, if that is known."""
    ours = getattr(model, "other_names", {}).get(name)
    if ours is not None:
        return f"here it is `{ours} = {as_toml(value)}`"
    remedy: str | None = getattr(model, "elsewhere", {}).get(name)
    return remedy


def _real_path(loc: Sequence[str | int], values: Any) -> KeyPath:
    """Return `loc` without the names of types that pydantic puts between the keys."""
    path: KeyPath = ()
    for step in loc:
        steps: Any = values if isinstance(values, dict) else ()
        if isinstance(values, list):
            steps = range(len(values))
        if step in steps:
            values = values[step]
            path = (*path, step)
    return path


def _at(values: Any, path: KeyPath) -> Any:
    for step in path:
        values = values[step]
    return values


def _wrong_value(path: KeyPath, group: list["ErrorDetails"], value: Any, rule: "Rule") -> Mistake:
    forms = list(dict.fromkeys(form for error in group if (form := _form(error))))
    shows = f"`ftbuild rules {rule.name}` shows what it takes"
    if not forms:
        said = group[0]["msg"].removeprefix("Value error, ")
        name = f"`{dotted(path)}`" if path else f"the params of rule `{rule.name}`"
        return Mistake("E0205", f"{name}: {said}", path, not path, shows)
    name = dotted(path)
    is_type = all(error["type"] in _FORMS for error in group)
    found = kind_of_value(value)
    if not is_type and not isinstance(value, list | dict):
        found = as_toml(value)
    if isinstance(value, float) and "a whole number" in forms:
        found = as_toml(value)
    what = f"`{name}` should be {' or '.join(forms)}; found {found}"
    fix = _meant(value, group) or _rewritten(name, value, forms) or shows
    return Mistake("E0202" if is_type else "E0205", what, path, False, fix)


def _form(error: "ErrorDetails") -> str | None:
    """Return what the value should have been, or None for an error that tells it all."""
    context = error.get("ctx", {})
    if error["type"] in _BOUNDS:
        return _BOUNDS[error["type"]].format(**context)
    if error["type"] in ("literal_error", "enum"):
        return str(context["expected"]).replace("'", '"')
    return _FORMS.get(error["type"])


def _rewritten(name: str, value: Any, forms: Sequence[str]) -> str | None:
    """Return the same value in a form that fits, ready to paste."""
    if isinstance(value, str):
        try:
            plain = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            plain = value
        if any(type(plain) in _WITHOUT_QUOTES.get(form, ()) for form in forms):
            return f"write `{name} = {value}`, without quotes"
    if isinstance(value, float) and value.is_integer() and "a whole number" in forms:
        return f"write `{name} = {int(value)}`"
    if "a list" in forms and not isinstance(value, dict):
        return f"write `{name} = [{as_toml(value)}]`"
    if "text" in forms and isinstance(value, bool | int | float):
        return f'write `{name} = "{as_toml(value)}"`'
    return None


def _meant(value: Any, group: Sequence["ErrorDetails"]) -> str | None:
    expected = " ".join(str(error.get("ctx", {}).get("expected", "")) for error in group)
    options = re.findall(r"'([^']*)'", expected)
    return did_you_mean(value, options) if isinstance(value, str) else None


def _model_at(model: Any, path: KeyPath) -> "type[Params] | None":
    """Return the params class that the value at `path` is made of, if it is made of one."""
    for step in path:
        found = model.model_fields.get(step) if hasattr(model, "model_fields") else None
        if found is None:
            return None
        inner = [found.annotation, *typing.get_args(found.annotation)]
        model = next((kind for kind in inner if hasattr(kind, "model_fields")), None)
    of_a_rule: type[Params] | None = model
    return of_a_rule
