"""List the rules that targets can use; with RULE, its attributes, defaults and bounds.

Exit status:
  0 done; 2 there is no such rule.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ftbuild.cli import terminal
from ftbuild.cli.flags import open_registry
from ftbuild.cli.terminal import Line, plain
from ftbuild.kinds import KINDS
from ftbuild.view import Span

if TYPE_CHECKING:
    from ftbuild.rule import InputField, Rule

_BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": ">= {}",
    "exclusiveMaximum": "< {}",
    "maximum": "<= {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "minItems": "at least {} items",
    "pattern": "like {}",
}


def arguments(parser: ArgumentParser) -> None:
    """Add what `rules` takes."""
    parser.add_argument("rule", metavar="RULE", nargs="?", help="the name of one rule")
    parser.add_argument("--markdown", action="store_true", help="print the reference of rules")


def run(options: Namespace) -> int:
    """Print all rules, or one."""
    registry = open_registry(options)
    if options.rule is not None:
        found = [registry.rule(options.rule)]
    else:
        found = [registry.rule(name) for name in registry.names()]
    if options.json:
        rules = [_as_json(rule) for rule in found]
        terminal.print_json(rules[0] if options.rule else {"rules": rules})
        return 0
    if options.markdown:
        from ftbuild.cli.reference import markdown

        print(markdown(found), end="")
        return 0
    lines = _one(found[0]) if options.rule else _all(found)
    terminal.write(lines, sys.stdout, color=terminal.use_color(sys.stdout, options.color))
    return 0


def _as_json(rule: "Rule") -> dict[str, Any]:
    return {
        "name": rule.name,
        "help": flat(rule.help),
        "version": rule.version,
        "pins": libraries(rule) if callable(rule.pins) else list(rule.pins),
        "toolchain": list(rule.toolchain),
        "attributes": attributes(rule),
    }


def attributes(rule: "Rule") -> list[dict[str, Any]]:
    """Return the attributes of a rule as plain data: inputs first, then params."""
    return [_input(field) for field in rule.input_fields.values()] + list(
        _params(rule.params.model_json_schema())
    )


def _input(field: "InputField") -> dict[str, Any]:
    if field.outside is not None:
        what = {
            "source": "source",
            "variable": "environment variable",
            "function": "file.py:function",
        }[field.outside]
    else:
        is_any = set(field.kinds) == set(KINDS)
        what = f"label of {'any target' if is_any else ' or '.join(k.kind for k in field.kinds)}"
    what = {"one": what, "list": f"list: {what}", "table": f"table: {what}"}[field.shape]
    found = {"name": field.name, "type": what, "required": field.is_required}
    return {**found, "default": None, "bounds": "", "help": flat(field.help)}


def _params(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the params from a pydantic model's JSON Schema; nested tables as `lora.r`."""
    yield from _properties(schema, schema.get("$defs", {}), "")


def _properties(
    table: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[dict[str, Any]]:
    required = table.get("required", [])
    for name, schema in table.get("properties", {}).items():
        yield {
            "name": prefix + name,
            "type": _type(schema, definitions),
            "required": name in required,
            "default": schema.get("default"),
            "bounds": ", ".join(_bounds(schema)),
            "help": flat(schema.get("description", "")),
        }
        for inner in _tables(schema, definitions):
            yield from _properties(inner, definitions, f"{prefix}{name}.")


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [s for s in schema.get("anyOf", [schema]) if s.get("type") != "null"]


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
    return found


def _tables(
    schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    for alternative in _alternatives(schema):
        found = _resolved(alternative, definitions)
        if "properties" in found:
            yield found


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    names = [_one_type(s, definitions) for s in _alternatives(schema)]
    return " or ".join(dict.fromkeys(names))


def _one_type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    found = _resolved(schema, definitions)
    if "enum" in found or "const" in found:
        values = found.get("enum", [found.get("const")])
        return " | ".join(_value(value) for value in values)
    if found.get("type") == "array":
        items = found.get("items")
        return f"list of {_type(items, definitions)}" if items else "list"
    words = {"object": "table", "string": "text", "integer": "whole number"}
    words |= {"number": "number", "boolean": "true | false"}
    return words.get(found.get("type", ""), "anything")


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    for alternative in _alternatives(schema):
        for key, form in _BOUNDS.items():
            if key in alternative:
                yield form.format(alternative[key])


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def flat(text: str) -> str:
    """Return a docstring as one line."""
    return " ".join(text.split())


def _all(rules: list["Rule"]) -> list[Line]:
    return terminal.table([(Span(r.name, "bold"), Span(flat(r.help))) for r in rules])


def _one(rule: "Rule") -> Iterator[Line]:
    yield (Span(rule.name, "bold"), Span(f": {flat(rule.help)}"))
    yield plain("")
    for attribute in attributes(rule):
        yield from _attribute(attribute)
    if rule.pins:
        yield plain("")
        yield plain(f"key parts: the locked versions of {libraries(rule)}")
    if rule.toolchain:
        yield plain("")
        yield plain(f"runs in an environment of its own, with {', '.join(rule.toolchain)}")


def libraries(rule: "Rule") -> str:
    """Return the names of the libraries that shape what a rule makes, and when some do."""
    if not callable(rule.pins):
        return ", ".join(rule.pins)
    said = (rule.pins.__doc__ or "").strip().split("\n\n")[0]
    return flat(said).removeprefix("Return ").rstrip(".")


def default_text(attribute: Mapping[str, Any]) -> str:
    """Return `required`, `optional`, or the default as a value."""
    if attribute["required"]:
        return "required"
    return "optional" if attribute["default"] is None else _value(attribute["default"])


def _attribute(attribute: Mapping[str, Any]) -> Iterator[Line]:
    default = default_text(attribute)
    style = "yellow" if attribute["required"] else ""
    equals = "" if default in ("required", "optional") else "= "
    bounds = f"  ({attribute['bounds']})" if attribute["bounds"] else ""
    what = Span(f"  {attribute['type']}", "cyan")
    name = Span(attribute["name"], "bold")
    yield (name, what, Span(f"  {equals}{default}", style), Span(bounds, "dim"))
    if attribute["help"]:
        yield plain(f"    {attribute['help']}")
