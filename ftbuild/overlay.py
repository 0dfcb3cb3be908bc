"""What is laid over the tables of targets: [profile.NAME] and `--set`.

Both change a target exactly as an edit of its table would, so both end up in its key.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ftbuild import labels
from ftbuild.declaration import FILE_NAME, Declaration, Origin
from ftbuild.spans import Finding, KeyPath
from ftbuild.wording import as_key, did_you_mean, kind_of_value, shown

Tables = dict[str, Declaration]
"""By label."""


def lay_over(target: Declaration, over: Mapping[str, Any], origin: Origin) -> Declaration:
    """Return `target` with the values of `over` in the place of its own; tables are merged."""
    origins = dict(target.origins)
    attributes = _merged(target.attributes, over, (), origin, origins)
    return replace(target, attributes=attributes, origins=origins)


def _merged(
    below: Mapping[str, Any],
    over: Mapping[str, Any],
    path: KeyPath,
    origin: Origin,
    origins: dict[KeyPath, Origin],
) -> dict[str, Any]:
    out = dict(below)
    file, keys = origin
    for key, value in over.items():
        here, there = (*path, key), (file, (*keys, key) if keys else ())
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _merged(out[key], value, here, there, origins)
        else:
            out[key] = value
            origins[here] = there
    return out


def apply_profiles(
    tables: Tables, profiles: Any, wanted: str | None, broken: frozenset[str]
) -> tuple[Tables, list[Finding]]:
    """Lay the profile `wanted` over the targets; check that all profiles name targets.

    Targets of the packages in `broken` could not be read and are not missed.
    """
    if not isinstance(profiles, dict):
        what = f"`profile` should be a table of profiles; found {kind_of_value(profiles)}"
        fix = "a header is `[profile.NAME.TARGET]`"
        return tables, [Finding("E0114", what, FILE_NAME, ("profile",), of="key", fix=fix)]
    out, findings = dict(tables), []
    for name, overlays in profiles.items():
        if not isinstance(overlays, dict):
            findings.append(_no_table(("profile", name), overlays))
            continue
        for target, over in overlays.items():
            keys: KeyPath = ("profile", name, target)
            label = labels.resolve(target, "")
            if not isinstance(over, dict):
                findings.append(_no_table(keys, over))
            elif label in tables:
                if name == wanted:
                    out[label] = lay_over(tables[label], over, (FILE_NAME, keys))
            elif label is None or labels.split(label)[0] not in broken:
                findings.append(_no_target(name, target, keys, tables))
    if wanted is not None and wanted not in profiles:
        findings.append(_no_profile(wanted, profiles))
    return out, findings


def _no_table(keys: KeyPath, value: Any) -> Finding:
    path = ".".join(as_key(str(key)) for key in keys)
    what = f"`{path}` should be a table; found {kind_of_value(value)}"
    fix = "a header is `[profile.NAME.TARGET]`, and attributes stand below it"
    return Finding("E0114", what, FILE_NAME, keys, of="key", fix=fix)


def _no_target(profile: str, target: str, keys: KeyPath, tables: Tables) -> Finding:
    what = f"profile `{shown(profile)}` overlays `{shown(target)}`, which is no target"
    fix = did_you_mean(target, tables) or (
        'a target of another package is named `[profile.NAME."//PACKAGE:TARGET"]`'
    )
    return Finding("E0114", what, FILE_NAME, keys, of="key", fix=fix)


def _no_profile(wanted: str, profiles: Mapping[str, Any]) -> Finding:
    known = ", ".join(f"`{name}`" for name in profiles)
    lists = f"the workspace has {known}" if known else f"add `[profile.{as_key(wanted)}.TARGET]`"
    fix = did_you_mean(wanted, profiles, lists)
    what = f"there is no profile `{shown(wanted)}`"
    return Finding("E0003", what, f"--profile {shown(wanted)}", fix=fix)


def apply_overrides(
    tables: Tables, overrides: Sequence[str], broken: frozenset[str]
) -> tuple[Tables, list[Finding]]:
    """Lay each `TARGET.ATTRIBUTE=VALUE` over its target, in their order."""
    out, findings = dict(tables), []
    for override in overrides:
        option = f"--set {shown(override)}"
        name, equals, text = override.partition("=")
        label = _longest_target(name, tables)
        keys = _keys(name[len(label[0]) + 1 :]) if label else None
        if not equals or "." not in name:
            findings.append(
                Finding(
                    "E0002",
                    "`--set` takes TARGET.ATTRIBUTE=VALUE",
                    option,
                    fix="for example `--set helper.epochs=1`",
                )
            )
        elif label is None:
            if (labels.package_named(name.partition(".")[0]) or "") not in broken:
                findings.append(_unknown_target(name, option, tables))
        elif keys is None:
            what = f"`{shown(name)}` names no attribute"
            fix = "tables are joined by dots: `--set helper.lora.r=8`"
            findings.append(Finding("E0002", what, option, fix=fix))
        else:
            out[label[1]] = lay_over(out[label[1]], _nested(keys, _value(text)), (option, ()))
    return out, findings


def _longest_target(name: str, tables: Tables) -> tuple[str, str] | None:
    """Return the longest beginning of `name` that is a target, as written and its label.

    Names of targets may hold dots as well, so the longest one is meant.
    """
    stops = [i for i, character in enumerate(name) if character == "."]
    for stop in reversed(stops):
        label = labels.resolve(name[:stop], "")
        if label in tables:
            return name[:stop], label
    return None


def _unknown_target(name: str, option: str, tables: Tables) -> Finding:
    target = name.rpartition(".")[0]
    what = f"there is no target `{shown(target)}`"
    fix = did_you_mean(target, tables, "`ftbuild targets` lists all")
    return Finding("E0002", what, option, fix=fix)


def _keys(dotted: str) -> list[str] | None:
    """Return the keys of a dotted TOML key, or None if it is none."""
    try:
        value = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return None
    keys = []
    while isinstance(value, dict):
        if len(value) != 1:
            return None
        [(key, value)] = value.items()
        keys.append(key)
    return keys


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _value(text: str) -> Any:
    """Return the TOML value that `text` is, or `text` itself, so that quotes can be left out."""
    if "\n" not in text:
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            return text
    return text
