"""The reference of rules as Markdown, made from the rules themselves: `ftbuild rules --markdown`.

docs/reference.md and the table in rules/README.md are what this prints, and a test holds that.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftbuild.cli.rules import attributes, default_text, flat, libraries

if TYPE_CHECKING:
    from ftbuild.rule import Rule

HEAD = """\
# Reference of rules

Printed by `ftbuild rules --markdown`. An attribute stands in the target's table; a `label` names
another target, all else is a value. What every target may have besides is in
[the last section](#every-target).
"""

TAIL = """\
## Every target

| attribute | type | meaning |
| --- | --- | --- |
| `description` | text | what the target is, for people |
| `tags` | list of text | words to find it by |
| `resources` | `{ cpus = 2, gpus = 1, memory = "8 GB" }` | what its action takes of the machine |
| `matrix` | table of lists | alternatives: the table makes a target of each combination |

None of them is in a key.
"""


def markdown(rules: Sequence["Rule"]) -> str:
    """Return the whole reference."""
    sections = ["\n".join(_section(rule)) for rule in rules]
    return "\n".join([HEAD, *sections, TAIL]).rstrip() + "\n"


def table(rules: Sequence["Rule"]) -> str:
    """Return a table of all rules: name, what it makes of what, what it does."""
    lines = ["| rule | reads | what it does |", "| --- | --- | --- |"]
    for rule in rules:
        reads = ", ".join(f"`{name}`" for name in rule.input_fields)
        link = f"[`{rule.name}`](../docs/reference.md#{rule.name})"
        lines.append(f"| {link} | {reads} | {flat(rule.help)} |")
    return "\n".join(lines) + "\n"


def _section(rule: "Rule") -> Iterator[str]:
    yield f"## {rule.name}\n"
    yield f"{flat(rule.help)}\n"
    yield "| attribute | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for attribute in attributes(rule):
        yield _row(attribute)
    if rule.pins:
        yield f"\nKey parts besides: the locked versions of {libraries(rule)}."
    yield ""


def _row(attribute: Mapping[str, Any]) -> str:
    bounds = f" ({attribute['bounds']})" if attribute["bounds"] else ""
    cells = [
        f"`{attribute['name']}`",
        f"{attribute['type']}{bounds}",
        default_text(attribute),
        attribute["help"],
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
