"""The tables of the root's FTBUILD.toml that are no targets: [project], [run] and [cache]."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ftbuild.signing import is_public
from ftbuild.spans import Finding
from ftbuild.units import parse_age, parse_size
from ftbuild.wording import as_toml, did_you_mean, kind_of_value

RESERVED = ("project", "run", "cache", "profile")
"""Names of tables that no rule may have."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Programs that draw curves; an action starts those that `[run] trackers` names."""


@dataclass(frozen=True)
class ProjectTable:
    """[project]: what the workspace is called, builds by default and brings in rules."""

    name: str = ""
    default: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What one key of such a table takes."""

    expected: str
    """Completes "`jobs` should be …"."""
    accepts: Callable[[Any], bool]
    example: str
    help: str
    schema: Mapping[str, Any]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _text(example: str, help_text: str) -> Setting:
    schema = {"type": "string", "minLength": 1}
    return Setting("a text", _is_text, as_toml(example), help_text, schema)


def _texts(example: str, help_text: str) -> Setting:
    schema = {"type": "array", "items": {"type": "string", "minLength": 1}}
    return Setting("a list of texts", _are_texts, example, help_text, schema)


def _flag(help_text: str) -> Setting:
    return Setting(
        "true or false", lambda v: type(v) is bool, "true", help_text, {"type": "boolean"}
    )


SETTINGS: dict[str, dict[str, Setting]] = {
    "project": {
        "name": _text("support-bot", "What the workspace is called in messages."),
        "default": _texts('["merged_model"]', "Targets that `ftbuild make` builds."),
        "rules": _texts('["rules/my_rule.py"]', "Python files with rules of this project."),
    },
    "run": {
        "jobs": Setting(
            "a whole number, at least 1",
            lambda v: type(v) is int and v >= 1,
            "4",
            "How many actions run at the same time.",
            {"type": "integer", "minimum": 1},
        ),
        "sandbox": _flag("Each action sees its declared inputs alone and has no network."),
        "trackers": Setting(
            f"a list of {', '.join(f'`{name}`' for name in TRACKERS)}",
            lambda v: isinstance(v, list) and all(item in TRACKERS for item in v),
            '["tensorboard"]',
            "Where trainings log their curves too. A tracker that fails changes nothing.",
            {"type": "array", "items": {"enum": list(TRACKERS)}},
        ),
    },
    "cache": {
        "dir": _text("~/.cache/ftbuild", "The store's directory."),
        "remote": Setting(
            "an address or a list of addresses",
            lambda v: _is_text(v) or _are_texts(v),
            '"https://cache.example.org/ftbuild"',
            "Remote stores, asked in this order: https://, s3://, gs://, az:// or a folder.",
            {
                "oneOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": {"type": "string", "minLength": 1}},
                ]
            },
        ),
        "remote_write": Setting(
            "true or false",
            lambda v: isinstance(v, bool),
            "false",
            "Whether results are sent to the remote stores; never from a job for a fork.",
            {"type": "boolean"},
        ),
        "max_size": Setting(
            "a size",
            lambda v: isinstance(v, str) and parse_size(v) is not None,
            '"200 GB"',
            "What `ftbuild gc` shrinks the store to.",
            {"type": "string", "examples": ["200 GB"]},
        ),
        "max_age": Setting(
            "an age",
            lambda v: isinstance(v, str) and parse_age(v) is not None,
            '"30 d"',
            "`ftbuild gc` drops what was not used for so long.",
            {"type": "string", "examples": ["30 d"]},
        ),
        "trusted_keys": Setting(
            "a list of public keys",
            lambda v: isinstance(v, list) and all(map(is_public, v)),
            '["ed25519:…"], as `ftbuild keys` prints it',
            "Whose records are believed, besides those made here.",
            {"type": "array", "items": {"type": "string", "pattern": "^ed25519:"}},
        ),
        "require_signed": _flag(
            "A record that none of `trusted_keys` has signed counts as absent; by default so "
            "where there are such keys."
        ),
    },
}


def check(tables: Mapping[str, Any], name: str, file: str) -> tuple[dict[str, Any], list[Finding]]:
    """Return the good keys of the table `name` and what is wrong with the others."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        what = f"`{name}` should be a table; found {kind_of_value(table)}"
        return {}, [Finding("E0110", what, file, (name,), fix=f"write a header: `[{name}]`")]
    settings, good, findings = SETTINGS[name], {}, []
    for key, value in table.items():
        setting = settings.get(key)
        if setting is None:
            lists = f"it takes {', '.join(f'`{known}`' for known in settings)}"
            fix = did_you_mean(key, settings, lists)
            what = f"[{name}] has no key `{key}`"
            findings.append(Finding("E0109", what, file, (name, key), of="key", fix=fix))
        elif setting.accepts(value):
            good[key] = value
        else:
            what = f"`{key}` should be {setting.expected}; found {_found(value)}"
            fix = f"for example `{key} = {setting.example}`"
            findings.append(Finding("E0110", what, file, (name, key), fix=fix))
    return good, findings


def _found(value: Any) -> str:
    return kind_of_value(value) if isinstance(value, list | dict) else as_toml(value)
