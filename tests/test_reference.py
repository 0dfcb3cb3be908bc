"""What is generated is what stands in the repository: reference, table of rules, codes."""

import re
from pathlib import Path

from ftbuild.cli.reference import markdown, table
from ftbuild.registry import Registry
from ftbuild.rule import Rule

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"\bE0\d{3}\b")


def rules() -> list[Rule]:
    registry = Registry(ROOT / "docs")
    return [registry.rule(name) for name in registry.names()]


def test_reference_is_what_the_command_prints() -> None:
    # If this fails: ftbuild rules --markdown > docs/reference.md
    assert (ROOT / "docs/reference.md").read_text() == markdown(rules())


def test_table_of_rules_is_complete() -> None:
    text = (ROOT / "rules/README.md").read_text()
    found = text.partition("<!-- rules -->\n")[2].partition("<!-- /rules -->")[0]
    assert found == table(rules())


def test_every_code_of_an_error_is_explained_and_no_other() -> None:
    used = {
        code
        for folder in ("ftbuild", "rules")
        for path in (ROOT / folder).rglob("*.py")
        for code in CODE.findall(path.read_text())
    }
    explained = CODE.findall((ROOT / "docs/errors.md").read_text())
    assert explained == sorted(set(explained))
    assert set(explained) == used
