"""The identity of a rule's code: equal for what does the same, different for what does not."""

from pathlib import Path

import pytest

from ftbuild.rulesource import normalised_source, source_digest

RULE = '''\
"""A module."""
import helper

class Settings:
    """What there is."""
    size: int = 10
    """In rows."""

def loud(text):
    """Raise the text."""
    return helper.raised(text) + "!" * 2
'''
SAME = '''\
import helper  # a comment


class Settings:
    size: int = 10

def loud(
    text,
):
    """Quite another docstring."""

    pass
    return (helper.raised(text) + '!' * 2)
'''


def source(tmp_path: Path, text: str) -> str:
    (tmp_path / "rule.py").write_text(text)
    return normalised_source(tmp_path / "rule.py")


def test_docstrings_comments_and_layout_do_not_count(tmp_path: Path) -> None:
    assert source(tmp_path, RULE) == source(tmp_path, SAME)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"!" * 2', '"!" * 3'),
        ('"!" * 2', '"?" * 2'),
        ('"!" * 2', '"!" * 2.0'),
        ('"!" * 2', 'b"!" * 2'),
        ("size: int = 10", "size: int = None"),
        ("size: int = 10", "size: int"),
        ("size: int = 10", "size = 10"),
        ("import helper", "import helper as helper2"),
        ("def loud(text)", "def loud(text, /)"),
        ("def loud(text)", "def loud(text=None)"),
        ("def loud(text)", "async def loud(text)"),
        ("return helper", "yield helper"),
    ],
)
def test_what_may_change_a_result_counts(tmp_path: Path, old: str, new: str) -> None:
    assert RULE.count(old) == 1
    assert source(tmp_path, RULE.replace(old, new)) != source(tmp_path, RULE)


def test_the_text_is_the_same_under_every_python(tmp_path: Path) -> None:
    text = (
        "def f(a, *, b=-1):\n"
        '    "Doc."\n'
        "    return f'{a!r:>{b}}é' 'x', {**a}, None, 0x10, 1.5, ...\n"
    )
    assert source(tmp_path, text) == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a')], "
        "kwonlyargs=[arg(arg='b')], kw_defaults=[UnaryOp(op=USub(), operand=Constant(0x1))]), "
        "body=[Return(value=Tuple(elts=[JoinedStr(values=[FormattedValue(value=Name(id='a'), "
        "conversion=114, format_spec=JoinedStr(values=[Constant('>'), "
        "FormattedValue(value=Name(id='b'), conversion=-1)])), Constant('\\xe9x')]), "
        "Dict(keys=[None], values=[Name(id='a')]), Constant(None), Constant(0x10), "
        "Constant(1.5), Constant(Ellipsis)]))])])"
    )


def project(root: Path) -> Path:
    """Write a rule that imports one helper beside it, which imports a package; return the rule."""
    rules = root / "rules"
    (rules / "words").mkdir(parents=True)
    (rules / "rule.py").write_text("import os, json\n\ndef f():\n    from helper import up\n")
    (rules / "helper.py").write_text("from words import loud\nup = loud\n")
    (rules / "words" / "__init__.py").write_text("")
    (rules / "words" / "loud.py").write_text("x = 1\n")
    (rules / "unused.py").write_text("x = 1\n")
    return rules / "rule.py"


def test_helpers_are_followed_wherever_they_are_imported(tmp_path: Path) -> None:
    rule = project(tmp_path)
    _, files = source_digest(rule, tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "rules/helper.py",
        "rules/rule.py",
        "rules/words/__init__.py",
        "rules/words/loud.py",
    ]


def test_a_helper_counts_and_a_file_beside_it_does_not(tmp_path: Path) -> None:
    rule = project(tmp_path)
    before, _ = source_digest(rule, tmp_path)

    (tmp_path / "rules" / "unused.py").write_text("x = 2\n")
    (tmp_path / "rules" / "words" / "loud.py").write_text("x = 1  # as before\n")
    assert source_digest(rule, tmp_path)[0] == before

    (tmp_path / "rules" / "words" / "loud.py").write_text("x = 2\n")
    assert source_digest(rule, tmp_path)[0] != before


def test_moving_the_project_or_its_rules_changes_nothing(tmp_path: Path) -> None:
    one = project(tmp_path / "one")
    other = project(tmp_path / "other")
    (other.parent).rename(tmp_path / "other" / "my_rules")
    other = tmp_path / "other" / "my_rules" / "rule.py"

    digests = [source_digest(one, tmp_path / "one"), source_digest(other, tmp_path / "other")]

    assert digests[0][0] == digests[1][0]


def test_what_two_helpers_hold_cannot_be_exchanged(tmp_path: Path) -> None:
    for name, (a, b) in {"one": ("1", "2"), "other": ("2", "1")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "rule.py").write_text("import a, b\n")
        (tmp_path / name / "a.py").write_text(f"x = {a}\n")
        (tmp_path / name / "b.py").write_text(f"x = {b}\n")
    one, other = (source_digest(tmp_path / n / "rule.py", tmp_path / n) for n in ("one", "other"))
    assert one[0] != other[0]


def test_files_outside_the_workspace_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("x = 1\n")
    (tmp_path / "project").mkdir()
    rule = tmp_path / "project" / "rule.py"
    rule.write_text("import outside\n")
    assert source_digest(rule, tmp_path / "project")[1] == (rule,)


def test_a_pack_is_followed_by_its_own_name_and_relatively(tmp_path: Path) -> None:
    pack = tmp_path / "my_pack"
    (pack / "training").mkdir(parents=True)
    (pack / "__init__.py").write_text("")
    (pack / "training" / "dpo.py").write_text("from my_pack.training._loop import run\n")
    (pack / "training" / "_loop.py").write_text("from . import _lora\n")
    (pack / "training" / "_lora.py").write_text("import dpo\n")

    _, files = source_digest(pack / "training" / "dpo.py", pack)

    assert [file.relative_to(pack).as_posix() for file in files] == [
        "__init__.py",
        "training/_loop.py",
        "training/_lora.py",
        "training/dpo.py",
    ]
