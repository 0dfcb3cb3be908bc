"""The JSON Schema of FTBUILD.toml, by which editors complete, explain and check it.

Made from the rules themselves: a field's docstring is its hover text. Draft 2020-12, as read
by taplo (Even Better TOML); inputs are plain strings there, for only ftbuild knows the labels.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftbuild.attributes import a_kind
from ftbuild.labels import NAME
from ftbuild.settings import SETTINGS

if TYPE_CHECKING:
    from ftbuild.registry import Registry
    from ftbuild.rule import InputField, Rule

_SPEC: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "required": ["sql"],
            "additionalProperties": False,
            "properties": {
                "sql": {"type": "string", "minLength": 1},
                "url": {"type": "string"},
                "url_env": {"type": "string"},
                "params": {
                    "type": "object",
                    "additionalProperties": {"type": ["string", "number", "boolean"]},
                },
            },
        },
    ]
}
_SOURCE: dict[str, Any] = {
    "anyOf": [*_SPEC["anyOf"], {"type": "array", "minItems": 1, "items": _SPEC}]
}
_LABEL: dict[str, Any] = {"type": "string", "minLength": 1}
_VARIABLE: dict[str, Any] = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
_FUNCTION: dict[str, Any] = {"type": "string", "pattern": r"^[^:]+\.py:[A-Za-z_]\w*$"}
_ONE = {None: _LABEL, "source": _SOURCE, "variable": _VARIABLE, "function": _FUNCTION}

_ENGINE_ATTRIBUTES: dict[str, Any] = {
    "description": {"type": "string", "description": "What the target is, for people."},
    "tags": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Words to find the target by.",
    },
    "resources": {
        "type": "object",
        "description": "What an action of the target takes of the machine.",
        "additionalProperties": False,
        "properties": {
            "cpus": {"type": "integer", "minimum": 1},
            "gpus": {"type": "integer", "minimum": 0},
            "memory": {"type": "string", "examples": ["8 GB"]},
        },
    },
    "matrix": {
        "type": "object",
        "description": "Lists of alternatives: the table makes a target of each combination.",
        "minProperties": 1,
        "additionalProperties": {
            "type": "array",
            "minItems": 1,
            "items": {"type": ["string", "number", "boolean"]},
        },
    },
}


def json_schema(registry: "Registry") -> dict[str, Any]:
    """Return the schema of a whole FTBUILD.toml that uses the rules of `registry`.

    Raises:
        ManifestError: the file of a rule cannot be imported.
    """
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {name: _settings(name) for name in SETTINGS}
    properties["profile"] = {
        "type": "object",
        "description": "[profile.NAME.TARGET]: attributes for `--profile NAME`.",
        "additionalProperties": {"type": "object", "additionalProperties": {"type": "object"}},
    }
    for name in registry.names():
        rule = registry.rule(name)
        definitions[f"rule.{name}"] = _target(rule, definitions)
        properties[name] = {
            "type": "object",
            "description": rule.help,
            "propertyNames": {"pattern": f"^{NAME.pattern}$"},
            "additionalProperties": {"$ref": f"#/$defs/rule.{name}"},
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "FTBUILD.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "$defs": dict(sorted(definitions.items())),
    }


def _settings(name: str) -> dict[str, Any]:
    properties = {
        key: {**setting.schema, "description": setting.help}
        for key, setting in SETTINGS[name].items()
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _target(rule: "Rule", definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a target's table; what its params refer to goes into `definitions`."""
    params = rule.params.model_json_schema(ref_template=f"#/$defs/{rule.name}.{{model}}")
    for name, definition in params.pop("$defs", {}).items():
        definitions[f"{rule.name}.{name}"] = definition
    properties = {name: _input(field) for name, field in rule.input_fields.items()}
    properties |= params.get("properties", {})
    required = [name for name, field in rule.input_fields.items() if field.is_required]
    required += params.get("required", [])
    schema: dict[str, Any] = {
        "type": "object",
        "description": rule.help,
        "additionalProperties": False,
        "properties": properties | _ENGINE_ATTRIBUTES,
    }
    if required:  # an axis of a matrix may stand in for any of them
        schema["if"] = {"not": {"required": ["matrix"]}}
        schema["then"] = {"required": required}
    return schema


def _input(field: "InputField") -> dict[str, Any]:
    one: Mapping[str, Any] = _ONE[field.outside]
    meaning = field.help
    if not field.outside:
        meaning = f"{meaning}\n\nThe label of {a_kind(kind.kind for kind in field.kinds)}.".strip()
    shaped: Mapping[str, Any] = one
    if field.shape == "list":
        shaped = {"type": "array", "items": one}
    elif field.shape == "table":
        shaped = {"type": "object", "additionalProperties": one}
    return {**shaped, "description": meaning}
