"""Targets joined by their labels, in an order to build in, and as plain data."""

import marshal
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftbuild import manifest
from ftbuild.errors import UsageError
from ftbuild.graph import Edge, Graph, Target, build
from ftbuild.registry import Registry

TOY_RULES = Path(__file__).parent / "errors" / "toy.py"
HEAD = '[project]\nrules = ["toy.py"]\n'
CHAIN = """
[train.helper]
model = "smol"
data = "chat_ids"
epochs = 2
learning_rate = 1e-4
lora = { r = 8, alpha = 32.0 }
description = "Knows the shop."
tags = ["small", "ci"]
resources = { cpus = 2, gpus = 1, memory = "8 GB" }

[ids.chat_ids]
dataset = "chats"
model = "smol"
train_on = ["user", "assistant"]

[rows.chats]
source = ["a.jsonl", "hf:org/data"]

[weights.smol]
source = "hf:org/model"
"""


def graph_of(root: Path, text: str, packages: dict[str, str] | None = None, **load: Any) -> Graph:
    shutil.copy(TOY_RULES, root)
    (root / "a.jsonl").touch()
    (root / "FTBUILD.toml").write_text(HEAD + text)
    for package, more in (packages or {}).items():
        (root / package).mkdir(parents=True)
        (root / package / "FTBUILD.toml").write_text(more)
    read = manifest.load(root, **load)
    return build(read, Registry(root, read.project.rules))


def test_a_target_holds_all_that_its_table_says(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, CHAIN)

    assert graph.targets["helper"] == Target(
        label="helper",
        package="",
        name="helper",
        family="helper",
        rule="train",
        kind="adapter",
        params={"epochs": 2, "lora": {"r": 8}},
        edges=(Edge("model", None, "smol", None), Edge("data", None, "chat_ids", None)),
        sources={},
        variables=(),
        resources={"cpus": 2, "gpus": 1, "memory": 8_000_000_000},
        description="Knows the shop.",
        tags=("small", "ci"),
    )
    assert graph.targets["chat_ids"].params == {"train_on": ["user", "assistant"]}
    assert graph.targets["chat_ids"].edges == (
        Edge("dataset", None, "chats", None),
        Edge("model", None, "smol", "tokenizer"),
    )
    assert graph.targets["chats"].sources == {"source": {"one": ["a.jsonl", "hf:org/data"]}}
    assert [t.kind for t in graph.targets.values()] == ["dataset", "model", "tokens", "adapter"]


def test_inputs_come_first_and_else_targets_stay_as_declared(tmp_path: Path) -> None:
    text = '[fold.z]\nmodel = "m"\nadapter = "a"\n' + CHAIN + "[weights.b]\n[weights.m]\n"
    text += '[train.a]\nmodel = "m"\ndata = "chat_ids"\nlora.r = 1\n'
    assert list(graph_of(tmp_path, text).targets) == [
        "chats",
        "smol",
        "chat_ids",
        "helper",
        "b",
        "m",
        "a",
        "z",
    ]


def test_what_equals_a_default_is_no_param(tmp_path: Path) -> None:
    text = '[weights.a]\nlayers = 1\n[weights.b]\nlayers = 2\n[rows.c]\nformat = "openai"\n'
    targets = graph_of(tmp_path, text).targets
    assert [targets[label].params for label in "abc"] == [{}, {"layers": 2}, {}]


def test_the_kind_of_an_output_may_follow_from_its_attributes(tmp_path: Path) -> None:
    text = CHAIN + '[train.whole]\nmodel = "smol"\ndata = "chat_ids"\n'
    text += '[train.more]\nmodel = "smol"\ndata = "chat_ids"\nadapter = "helper"\n'
    targets = graph_of(tmp_path, text).targets
    assert targets["whole"].kind == "model"
    assert targets["more"].kind == "adapter"


def test_labels_are_relative_to_their_package(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        '[weights.smol]\n[ids.all]\ndataset = "//data/faq:chats"\nmodel = "smol"\n',
        {"data/faq": '[rows.chats]\n[ids.own]\ndataset = "chats"\nmodel = "//:smol"\n'},
    )
    assert graph.targets["all"].edges[0].label == "//data/faq:chats"
    own = graph.targets["//data/faq:own"]
    assert (own.package, own.name) == ("data/faq", "own")
    assert [edge.label for edge in own.edges] == ["//data/faq:chats", "smol"]


SWEEP = """
[weights.smol]
matrix = { layers = [1, 2] }
[weights.other]
[rows.x]
[compare.all]
title = "all"
models = ["other", "smol", "other"]
prompts = { one = "x", two = "x" }
env = ["HOME", "USER"]
"""


def test_a_list_takes_all_members_of_a_family(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, SWEEP)
    assert graph.families == {"smol": ("smol[layers=1]", "smol[layers=2]")}
    assert graph.targets["all"].edges == (
        Edge("models", 0, "other", None),
        Edge("models", 1, "smol[layers=1]", None),
        Edge("models", 2, "smol[layers=2]", None),
        Edge("models", 3, "other", None),
        Edge("prompts", "one", "x", None),
        Edge("prompts", "two", "x", None),
    )
    assert graph.targets["all"].variables == (("env", "HOME"), ("env", "USER"))
    assert graph.targets["smol[layers=2]"].params == {"layers": 2}


def test_names_of_the_command_line_are_resolved(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, SWEEP, {"sub": "[rows.x]\n"}, everything=True)
    assert graph.resolve(["other"]) == ["other"]
    assert graph.resolve(["smol", "smol[layers=1]"]) == ["smol[layers=1]", "smol[layers=2]"]
    assert graph.resolve(["x"], package="sub") == ["//sub:x"]
    assert graph.resolve(["//:x", "//sub:x"], package="sub") == ["x", "//sub:x"]


def test_without_names_the_default_is_wanted(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, 'default = ["smol"]\n' + SWEEP)
    assert graph.default == ("smol[layers=1]", "smol[layers=2]")
    assert graph.resolve([]) == ["smol[layers=1]", "smol[layers=2]"]


def test_without_a_default_all_that_nothing_reads_is_wanted(tmp_path: Path) -> None:
    assert graph_of(tmp_path, SWEEP + "[rows.alone]\n").resolve([]) == ["alone", "all"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("helpr", "did you mean `helper`? `ftbuild targets` lists all"),
        ("../helper", "did you mean `helper`? `ftbuild targets` lists all"),
        ("zzz", "`ftbuild targets` lists all"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_guess(tmp_path: Path, name: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        graph_of(tmp_path, CHAIN).resolve([name])
    assert caught.value.render() == f"error[E0301]: there is no target `{name}`\n  fix: {fix}"
    assert caught.value.exit_code == 2


def test_the_closure_is_what_is_needed_in_build_order(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, CHAIN + "[rows.alone]\n")
    assert [t.label for t in graph.closure(["chat_ids", "chats"])] == ["chats", "smol", "chat_ids"]


def test_a_graph_survives_marshal(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, CHAIN + SWEEP.replace("smol", "smol2").replace("all", "every"))
    plain = marshal.loads(marshal.dumps(graph.to_plain()))
    assert Graph.from_plain(plain) == graph


def test_an_order_of_keys_or_a_comment_changes_no_graph(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = graph_of(tmp_path / "one", '[ids.i]\ndataset = "r"\nmodel = "m"\n[rows.r]\n[weights.m]\n')
    two = graph_of(
        tmp_path / "two",
        '# note\n[weights.m]\n[rows]\nr = {}\n[ids]\ni.model = "m"\ni.dataset = "r"\n',
    )
    assert {label: (t.params, set(t.edges)) for label, t in one.targets.items()} == {
        label: (t.params, set(t.edges)) for label, t in two.targets.items()
    }


def test_loading_a_graph_imports_no_parser_and_no_validation(tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(marshal.dumps(graph_of(tmp_path, CHAIN).to_plain()))
    script = (
        "import marshal, sys; from ftbuild.graph import Graph\n"
        f"graph = Graph.from_plain(marshal.load(open({str(tmp_path / 'graph')!r}, 'rb')))\n"
        "assert graph.resolve([]) == ['helper'], graph\n"
        "print([m for m in ('pydantic', 'tomllib', 'tree_sitter', 'difflib', 'inspect', 'json',\n"
        "       'importlib.metadata', 'ftbuild.registry', 'ftbuild.rule') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert set(eval(done.stdout)) <= {"inspect"}  # which dataclasses import


def test_a_good_manifest_is_never_parsed_for_positions(tmp_path: Path) -> None:
    (tmp_path / "FTBUILD.toml").write_text('[project]\n[command.a]\nrun = "true"\n')
    script = (
        "import sys; from pathlib import Path; from ftbuild import graph, manifest\n"
        "from ftbuild.registry import Registry\n"
        f"root = Path({str(tmp_path)!r})\n"
        "graph.build(manifest.load(root), Registry(root))\n"
        "print('tree_sitter' in sys.modules, 'difflib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_five_thousand_targets_are_the_same_from_their_plain_form(tmp_path: Path) -> None:
    tables = ["[project]\n"]
    for chain in range(500):
        (tmp_path / f"{chain}.txt").touch()
        tables.append(f'[command.c{chain}_0]\nsrcs = {{ src = "{chain}.txt" }}\nrun = "cat $src"\n')
        tables += [
            f'[command.c{chain}_{step}]\ndeps = {{ src = "c{chain}_{step - 1}" }}\nrun = "cat"\n'
            for step in range(1, 10)
        ]
    (tmp_path / "FTBUILD.toml").write_text("".join(tables))
    graph = build(manifest.load(tmp_path), Registry(tmp_path))
    again = Graph.from_plain(marshal.loads(marshal.dumps(graph.to_plain())))

    assert len(graph.targets) == 5000
    assert again == graph


def test_a_source_may_be_a_pattern_a_folder_or_outside_the_workspace(tmp_path: Path) -> None:
    root = tmp_path / "a[1]*"  # must not be read as a pattern itself
    root.mkdir()
    (tmp_path / "outside.txt").touch()
    specs = ["*.jsonl", "../outside.txt", str(tmp_path)]
    graph = graph_of(root, f"[rows.x]\nsource = {specs}\n")
    assert graph.targets["x"].sources == {"source": {"one": specs}}
