"""Rules found by file name, in the installed packs and in the project."""

import subprocess
import sys
from pathlib import Path

import pytest

from ftbuild.docstrings import attribute_docstrings
from ftbuild.errors import ManifestError, UsageError
from ftbuild.registry import Registry, load_rule

RULES = '''\
import helper
from ftbuild.api import TOKENIZER, Context, Field, File, Inputs, Model, Params, rule
from typing import Annotated


class LoudInputs(Inputs):
    model: Annotated[Model, TOKENIZER] | None = None


class LoudParams(Params):
    mark: str = helper.MARK
    """What ends each line."""


@rule(output=File)
def loud(ctx: Context, inputs: LoudInputs, params: LoudParams) -> None:
    """Raise a text.

    And more.
    """


@rule(version=3, output=File, pins=("torch",), preload=("json",), runs="process", cpus="all")
def quiet(ctx: Context, inputs: LoudInputs, params: LoudParams) -> None:
    """Lower a text."""
'''


def project(root: Path, mark: str = "!") -> Registry:
    (root / "rules").mkdir(parents=True, exist_ok=True)
    (root / "rules" / "toys.py").write_text(RULES)
    (root / "rules" / "helper.py").write_text(f"MARK = {mark!r}\n")
    return Registry(root, ["rules/toys.py"])


def mark_of(registry: Registry) -> object:
    return registry.rule("loud").params.model_fields["mark"].default


def test_one_file_of_a_project_holds_several_rules(tmp_path: Path) -> None:
    registry = project(tmp_path)
    assert {"loud", "quiet"} <= set(registry.names())
    assert registry.problems() == []
    assert registry.rule("loud").help == "Raise a text."
    assert attribute_docstrings(registry.rule("loud").params)["mark"] == "What ends each line."


def test_the_facts_of_a_rule_without_a_version_hold_its_source(tmp_path: Path) -> None:
    facts = project(tmp_path).facts("loud")
    assert facts.version is None
    assert facts.source is not None
    assert facts.file == "rules/toys.py"
    assert facts.files == ("rules/helper.py", "rules/toys.py")
    assert "tokenizer.json" in facts.parts["model"]
    assert (facts.runs, facts.cpus, facts.pins, facts.preload) == ("worker", "one", (), ())
    assert facts.is_reproducible


def test_the_facts_of_a_rule_with_a_version_hold_no_source(tmp_path: Path) -> None:
    facts = project(tmp_path).facts("quiet")
    assert (facts.version, facts.source, facts.files) == (3, None, ())
    assert (facts.runs, facts.cpus, facts.pins, facts.preload) == (
        "process",
        "all",
        ("torch",),
        ("json",),
    )


def test_an_edited_helper_is_seen_by_the_next_registry(tmp_path: Path) -> None:
    first = project(tmp_path, "!")
    assert mark_of(first) == "!"
    source = first.facts("loud").source
    second = project(tmp_path, "?")  # same size, within the second
    assert mark_of(second) == "?"
    assert second.facts("loud").source != source


def test_two_projects_in_one_process_keep_their_helpers_apart(tmp_path: Path) -> None:
    assert mark_of(project(tmp_path / "one", "!")) == "!"
    assert mark_of(project(tmp_path / "two", "?")) == "?"
    assert mark_of(project(tmp_path / "one", "!")) == "!"


def test_importing_a_rule_leaves_no_bytecode_in_the_project(tmp_path: Path) -> None:
    project(tmp_path).rule("loud")
    assert sorted(p.name for p in (tmp_path / "rules").iterdir()) == ["helper.py", "toys.py"]


def test_a_worker_loads_a_rule_from_its_facts(tmp_path: Path) -> None:
    facts = project(tmp_path).facts("loud")
    script = (
        "import sys; from pathlib import Path\n"
        "from ftbuild.nodes import RuleFacts\n"
        "from ftbuild.registry import load_rule\n"
        f"print(load_rule(Path({str(tmp_path)!r}), {facts!r}).params().mark)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("!\n", "")


def test_a_standard_rule_is_found_and_loaded(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    facts = registry.facts("command")
    assert facts.module == "ftbuild_rules.glue.command"
    assert Path(facts.file).name == "command.py"
    assert load_rule(tmp_path, facts) is registry.rule("command")


def test_only_the_file_of_the_rule_that_is_asked_for_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ftbuild.registry import Registry\n"
        f"registry = Registry(Path({str(tmp_path)!r}))\n"
        "assert 'command' in registry.names() and 'dataset' in registry.names()\n"
        "print('ftbuild_rules' in sys.modules, 'pydantic' in sys.modules)\n"
        "registry.rule('command')\n"
        "print(sorted(m for m in sys.modules if m.startswith('ftbuild_rules')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "False False",
        "['ftbuild_rules', 'ftbuild_rules.glue', 'ftbuild_rules.glue.command']",
    ]


def test_an_unknown_rule_is_an_error_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Registry(tmp_path).rule("comand")
    assert caught.value.render() == (
        "error[E0201]: there is no rule `comand`\n"
        "  fix: did you mean `command`? `ftbuild rules` lists all"
    )


def test_a_project_rule_with_the_name_of_a_standard_one_is_an_error(tmp_path: Path) -> None:
    project(tmp_path)
    path = tmp_path / "rules" / "toys.py"
    path.write_text(RULES.replace("def quiet", "def command"))
    standard = Registry(tmp_path).facts("command").file

    registry = Registry(tmp_path, ["rules/toys.py"])

    assert [problem.render() for problem in registry.problems()] == [
        f"error[E0214]: two files hold a rule `command`: rules/toys.py and {standard}\n"
        "  --> rules/toys.py:23 in rule `command`\n"
        "  fix: rename one of them; a name means one rule"
    ]


def test_a_rule_of_a_broken_file_raises_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "toys.py").write_text("raise SystemExit(3)\n")
    registry = Registry(tmp_path, ["toys.py"])
    [problem] = registry.problems()
    assert problem.why == "SystemExit: 3"
    with pytest.raises(UsageError):
        registry.rule("loud")


def test_workers_of_the_standard_rules_are_offline_and_quiet(tmp_path: Path) -> None:
    environment = Registry(tmp_path).environment()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_a_kind_without_a_viewer_has_none(tmp_path: Path) -> None:
    assert Registry(tmp_path).viewer("nothing") is None


def test_a_pack_whose_file_holds_no_rule_of_its_name_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "toy_pack_without_rule"
    (pack / "deep").mkdir(parents=True)
    (pack / "__init__.py").write_text("WORKER_ENVIRONMENT = {'TOY': '1'}\n")
    (pack / "deep" / "wrong.py").write_text(
        RULES.replace("import helper\n", "class helper:\n    MARK = 1\n")
    )
    (pack / "deep" / "broken.py").write_text("1 / 0\n")
    (pack / "deep" / "_helper.py").write_text("")
    info = tmp_path / "toy_pack_without_rule-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy_pack_without_rule\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[ftbuild.rules]\ntoy = toy_pack_without_rule\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    registry = Registry(tmp_path / "elsewhere")

    assert {"wrong", "broken", "command"} <= set(registry.names())
    assert "_helper" not in registry.names()
    assert registry.environment()["TOY"] == "1"
    with pytest.raises(ManifestError) as caught:
        registry.rule("wrong")
    file = pack / "deep" / "wrong.py"
    assert caught.value.render() == (
        f"error[E0212]: `{file}` should hold a rule named as the file is, `wrong`\n"
        f"  --> {file}\n"
        "  fix: rename the file"
    )
    with pytest.raises(ManifestError) as caught:
        registry.rule("broken")
    file = pack / "deep" / "broken.py"
    assert caught.value.render() == (
        f"error[E0211]: the rule file `{file}` cannot be imported\n"
        f"  --> {file}:1\n"
        "  1 | 1 / 0\n"
        "  why: ZeroDivisionError: division by zero\n"
        "  fix: mend that line, or take the file out of `rules` of [project]"
    )
