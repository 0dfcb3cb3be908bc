"""`matrix = { learning_rate = [1e-4, 2e-4] }`: one table that stands for several targets."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from ftbuild.declaration import ENGINE_ATTRIBUTES, Declaration
from ftbuild.spans import Finding, KeyPath
from ftbuild.wording import as_toml, kind_of_value, shown

MOST_MEMBERS = 1000
LONGEST_NAME = 200
"""Characters; file systems end at 255, and `ftbuild-out` is not all that uses the name."""
_TEXT = re.compile(r"[A-Za-z0-9_.:-]+")
_AXIS = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def expand(target: Declaration) -> tuple[list[Declaration], list[Finding]]:
    """Return the members of the family that `target` declares, in the order of its axes."""
    axes = target.attributes["matrix"]
    findings = _check(target, axes)
    if findings:
        return [], findings
    plain = {key: value for key, value in target.attributes.items() if key != "matrix"}
    members = []
    for places in itertools.product(*(range(len(values)) for values in axes.values())):
        attributes, origins, texts = plain, dict(target.origins), []
        for (axis, values), place in zip(axes.items(), places, strict=True):
            keys = tuple(axis.split("."))
            attributes = _with(attributes, keys, values[place])
            origins[keys] = target.origin(("matrix", axis, place))
            texts.append(f"{axis}={_label_text(values[place])}")
        name = f"{target.name}[{','.join(texts)}]"
        members.append(replace(target, name=name, attributes=attributes, origins=origins))
    longest = max(members, key=lambda member: len(member.name))
    if len(longest.name) > LONGEST_NAME:
        what = f"the name `{shown(longest.name)}` is longer than {LONGEST_NAME} characters"
        return [], [_finding(target, (), what, "give the matrix fewer axes or shorter texts")]
    return members, []


def _finding(
    target: Declaration,
    path: KeyPath,
    what: str,
    fix: str,
    *,
    of: Literal["key", "value"] = "value",
) -> Finding:
    file, keys = target.origin(("matrix", *path))
    return Finding("E0115", what, file, keys, of=of, fix=fix)


def _check(target: Declaration, axes: Any) -> list[Finding]:
    example = "write `matrix = { learning_rate = [1e-4, 2e-4] }`"
    if not isinstance(axes, dict):
        what = f"`matrix` should be a table of lists; found {kind_of_value(axes)}"
        return [_finding(target, (), what, example)]
    if not axes:
        return [_finding(target, (), "`matrix` has no axis", example)]
    findings = [finding for axis, values in axes.items() for finding in _axis(target, axis, values)]
    if findings:
        return findings
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_MEMBERS:
        what = f"`matrix` makes {count:,} targets; at most {MOST_MEMBERS:,} are allowed"
        return [_finding(target, (), what, "drop values or axes")]
    return []


def _axis(target: Declaration, axis: str, values: Any) -> list[Finding]:
    if not _AXIS.fullmatch(axis) or axis.split(".")[0] in ENGINE_ATTRIBUTES:
        what = f"`{shown(axis)}` cannot be an axis of `matrix`"
        return [_finding(target, (axis,), what, "an axis is an attribute of the rule", of="key")]
    if not isinstance(values, list):
        what = f"axis `{axis}` should be a list; found {kind_of_value(values)}"
        return [_finding(target, (axis,), what, f"write `{axis} = [{as_toml(values)}]`")]
    if not values:
        what = f"axis `{axis}` has no value"
        return [_finding(target, (axis,), what, "give it a value, or remove the axis")]
    if _is_set(target.attributes, axis.split(".")):
        what = f"`{axis}` is an axis of `matrix` and set beside it as well"
        _, keys = target.origin(tuple(axis.split(".")))
        if keys[:1] == ("profile",) or not keys:
            return [_finding(target, (axis,), what, f"overlay `matrix.{axis}` instead")]
        return [_finding(target, (axis,), what, "remove one of them")]
    return _values(target, axis, values)


def _values(target: Declaration, axis: str, values: Sequence[Any]) -> list[Finding]:
    findings, seen = [], set()
    for place, value in enumerate(values):
        text = _label_text(value)
        if text is None:
            what = f"axis `{axis}` takes numbers, true, false and texts of A-Z a-z 0-9 _ . : -"
            fix = "for other values write a target for each"
            findings.append(_finding(target, (axis, place), what, fix))
        elif text in seen:
            what = f"axis `{axis}` holds {as_toml(value)} twice"
            findings.append(_finding(target, (axis, place), what, "remove one of them"))
        seen.add(text)
    return findings


def _label_text(value: Any) -> str | None:
    """Return what stands for `value` in a label, or None if it cannot stand in one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # `1e-05` and `1e+20`, as Python writes them, have needless characters.
        return re.sub(r"e([+-])0*", lambda m: "e" + m[1].replace("+", ""), repr(value))
    if isinstance(value, str) and _TEXT.fullmatch(value):
        return value
    return None


def _is_set(attributes: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(attributes, dict):
            return True
        if key not in attributes:
            return False
        attributes = attributes[key]
    return True


def _with(attributes: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of `attributes` in which the place `keys` holds `value`."""
    first, *rest = keys
    if not rest:
        return {**attributes, first: value}
    below = attributes.get(first)
    return {**attributes, first: _with(below if isinstance(below, dict) else {}, rest, value)}
