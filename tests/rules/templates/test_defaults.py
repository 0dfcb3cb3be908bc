"""Defaults in a template's own text: what Transformers makes of them is what was asked for."""

from pathlib import Path
from typing import Any

import pytest

from chat_kit import make_tokenizer
from ftbuild_rules.templates._defaults import with_defaults

ECHO = "{{ value | tojson }}"
TALK = [{"role": "user", "content": "Hi"}]


def rendered(template: str, directory: Path, messages: Any = TALK, **given: Any) -> str:
    tokenizer = make_tokenizer(directory, template)
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **given)
    return text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (False, "false"),
        (3, "3"),
        (0.5, "0.5"),
        (None, "null"),
        ('a "b" \\ {% %} }} \n\t\u0001 é 🌍', '"a \\"b\\" \\\\ {% %} }} \\n\\t\\u0001 é 🌍"'),
        (["a", {"b": [True, None]}], '["a", {"b": [true, null]}]'),
    ],
)
def test_value_is_given_as_it_is(value: Any, expected: str, tmp_path: Path) -> None:
    assert rendered(with_defaults(ECHO, None, {"value": value}), tmp_path) == expected


def test_value_of_the_caller_comes_first(tmp_path: Path) -> None:
    text = with_defaults(ECHO, None, {"value": 1})
    assert rendered(text, tmp_path, value=2) == "2"


def test_system_message_where_there_is_none(tmp_path: Path) -> None:
    text = with_defaults("{{ messages | tojson }}", 'Be\n"kind".', {})
    system = '{"role": "system", "content": "Be\\n\\"kind\\"."}'
    assert rendered(text, tmp_path) == f'[{system}, {{"role": "user", "content": "Hi"}}]'
    own = [{"role": "system", "content": "x"}]
    assert rendered(text, tmp_path, own) == '[{"role": "system", "content": "x"}]'


@pytest.mark.parametrize(
    "text",
    ["a", "\na", "  {% if true %}\n a{% endif %}", "\n\n {{ 1 }}", "  {{ 1 }}", " {# c #}\n x",
     "  {%+ if true %}a{% endif %}", "\t{%- if true %}a{% endif %}\n"],
)  # fmt: skip
def test_defaults_change_nothing_else(text: str, tmp_path: Path) -> None:
    with_both = with_defaults(text, "s", {"value": 1})
    assert rendered(with_both, tmp_path / "a") == rendered(text, tmp_path / "b")
    assert with_both.count("\n") == text.count("\n")


def test_without_defaults_the_text_is_as_it_was() -> None:
    assert with_defaults("  {% x %}", None, {}) == "  {% x %}"
