"""Imports point one way: the engine's layers, an engine without ML, rules that know only the SDK.

Read from the syntax trees, so that imports inside functions count too.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A module imports from its own line or a line above, inside functions too. Among
# the imports that loading a file makes there is no cycle.
LAYERS = """
__version__ redaction errors digest labels units docstrings signing
kinds view imported outside wording rows
rule
store.*
remote.*
api testing
root spans declaration settings tomlfile packages overlay matrix manifest
nodes rulesource rulefile registry
importing lookup suggestions mistakes queries localfiles attributes graph joining schema
keys lockfile usersettings
toolchain
sources.*
action history plan locking
events slots
guard sandbox worker warm watchdog workers
desk failures fetching brief curves
run
acting frontier tally
executor
outputs workspace viewing fastpath transfer
stores artifacts lockupdate build verification selection lineage project doctor
ftbuild
cli.* __main__
"""

# No dependency of the core, imported only where a user asks for it: `hf:` needs the hub's client.
ON_REQUEST = {
    ("ftbuild.sources.hub", "huggingface_hub"),
    ("ftbuild.sources.hub", "yaml"),
    ("ftbuild.sources.sql", "sqlalchemy"),
    ("ftbuild.sources.bucket", "fsspec"),
    ("ftbuild.sources.bucket", "obstore"),
    ("ftbuild.remote.bucket", "obstore"),
    ("ftbuild.signing", "cryptography"),
    ("ftbuild.importing", "yaml"),
}

# Of a rule pack's own modules and the standard library a rule file may import all.
SDK = {"ftbuild.api", "ftbuild.view"}

ML = {
    "accelerate", "bitsandbytes", "datasets", "ftbuild_rules", "gguf", "gptqmodel", "jinja2",
    "numpy", "pandas", "peft", "pyarrow", "safetensors", "tokenizers", "torch", "transformers",
    "trl", "xxhash",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    module: str
    line: int
    is_deferred: bool
    """Inside a function, or for type checkers alone: it costs nothing when the file is loaded."""


def imports_of(source: str, modules: frozenset[str] = frozenset()) -> Iterator[Import]:
    """Yield what `source` imports; `from a import b` is `a.b` where that is one of `modules`."""
    yield from _walk(ast.parse(source).body, modules, is_deferred=False)


def _walk(body: list[ast.stmt], modules: frozenset[str], *, is_deferred: bool) -> Iterator[Import]:
    for node in body:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, is_deferred)
            case ast.ImportFrom():
                assert node.level == 0, f"line {node.lineno}: a relative import"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    is_whole = full in modules or alias.name == "__version__"
                    found = full if is_whole else str(node.module)
                    yield Import(found, node.lineno, is_deferred)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _walk(node.body, modules, is_deferred=True)
            case ast.If() if "TYPE_CHECKING" in ast.unparse(node.test):
                yield from _walk(node.body, modules, is_deferred=True)
                yield from _walk(node.orelse, modules, is_deferred=is_deferred)
            case _:
                for block in _blocks(node):
                    yield from _walk(block, modules, is_deferred=is_deferred)


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        if block := getattr(node, name, None):
            yield block
    for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
        yield part.body


def modules_below(folder: Path, package: str) -> dict[str, str]:
    """Return the source of each module of `package`, by its full name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


def layer_of(module: str) -> int | None:
    """Return the line of `LAYERS` on which an engine module stands; None if on none."""
    short = module.removeprefix("ftbuild.")
    for number, line in enumerate(LAYERS.split("\n")):
        for entry in line.split():
            if short == entry or (entry.endswith(".*") and f"{short}.".startswith(entry[:-1])):
                return number
    return None


def engine_problems(modules: dict[str, str]) -> list[str]:
    """Return each import of the engine that breaks a law, as `module:line: what`."""
    problems = []
    edges: dict[str, set[str]] = {}
    for module, source in modules.items():
        if layer_of(module) is None:
            problems.append(f"{module}: stands on no layer of tests/test_layers.py")
            continue
        for found in imports_of(source, frozenset(modules)):
            if problem := engine_problem(module, found):
                problems.append(f"{module}:{found.line}: imports {problem}")
            if found.module.partition(".")[0] == "ftbuild" and not found.is_deferred:
                edges.setdefault(module, set()).add(found.module)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        problems.append("cycle: " + " -> ".join(error.args[1]))
    return problems


def engine_problem(module: str, found: Import) -> str | None:
    """Return what is wrong with one import of the engine's `module`, or None."""
    top = found.module.partition(".")[0]
    if top == "ftbuild":
        own, other = layer_of(module), layer_of(found.module)
        assert own is not None
        return f"{found.module}, which is above it" if other is None or other > own else None
    if top in ML:
        return f"{top}; the engine knows no ML"
    if top in sys.stdlib_module_names | core_dependencies():
        return None
    is_on_request = found.is_deferred and (module, top) in ON_REQUEST
    return None if is_on_request else f"{top}, no dependency of the core"


@cache
def core_dependencies() -> set[str]:
    """Return the import names of what `pip install ftbuild` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.split(">=")[0].replace("-", "_") for line in project["dependencies"]}
    return names | {"pydantic_core"}  # comes with pydantic, and holds its error types


def rule_problems(modules: dict[str, str], pack: str) -> list[str]:
    """Return each import of a rule pack that breaks a law, as `module:line: what`."""
    problems = []
    for module, source in modules.items():
        for found in imports_of(source, frozenset(modules) | SDK):
            where = f"{module}:{found.line}"
            top = found.module.partition(".")[0]
            if top == "ftbuild":
                if found.module not in SDK:
                    problems.append(f"{where}: imports {found.module}, the engine's inside")
            elif top == "pydantic":
                problems.append(f"{where}: imports pydantic; take it from ftbuild.api")
            elif top not in sys.stdlib_module_names and top != pack and not found.is_deferred:
                problems.append(f"{where}: imports {top} when loaded; do it in the function")
    return problems


def test_engine_imports_point_one_way() -> None:
    assert engine_problems(modules_below(ROOT / "ftbuild", "ftbuild")) == []


def test_rules_know_only_the_sdk() -> None:
    modules = modules_below(ROOT / "rules" / "ftbuild_rules", "ftbuild_rules")
    assert "ftbuild_rules.training.sft" in modules
    assert rule_problems(modules, "ftbuild_rules") == []


def test_engine_tests_need_no_ml() -> None:
    found = {
        f"{path.name}: {item.module}"
        for path in sorted((ROOT / "tests" / "engine").rglob("*.py"))
        for item in imports_of(path.read_text(encoding="utf-8"))
        if item.module.partition(".")[0] in ML
    }
    assert found == set()


def test_loading_the_whole_engine_loads_no_ml() -> None:
    modules = sorted(modules_below(ROOT / "ftbuild", "ftbuild"))
    modules = [m for m in modules if not m.endswith("__main__")]
    code = f"import sys, {', '.join(modules)}; print(*sorted({{*{sorted(ML)}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("ftbuild.digest", "from ftbuild import plan", "imports ftbuild.plan, which is above it"),
        ("ftbuild.store.blobs", "import ftbuild.graph", "imports ftbuild.graph, which is above it"),
        ("ftbuild.plan", "from ftbuild import cli", "imports ftbuild.cli, which is above it"),
        ("ftbuild.plan", "def f():\n    import torch", "imports torch; the engine knows no ML"),
        ("ftbuild.worker", "import ftbuild_rules.data", "imports ftbuild_rules; the engine knows"),
        ("ftbuild.keys", "try:\n    import yaml\nexcept ImportError: ...", "imports yaml, no dep"),
        ("ftbuild.sources.hub", "import huggingface_hub", "imports huggingface_hub, no dep"),
        ("ftbuild.helpers", "import json", "stands on no layer"),
        ("ftbuild.graph", "import ftbuild.schema", "cycle: "),
    ],
)
def test_a_planted_engine_import_is_found(module: str, source: str, expected: str) -> None:
    modules = {
        "ftbuild.plan": "import json, pydantic\nfrom ftbuild.errors import FtbuildError\n",
        "ftbuild.schema": "from ftbuild.graph import Graph\n",
        "ftbuild.graph": "",
        "ftbuild.cli": "from ftbuild.plan import make\n",
    }
    assert engine_problems(modules) == []
    problems = engine_problems({**modules, module: source})
    assert expected in problems[0]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", "imports torch when loaded"),
        ("if True:\n    from transformers import AutoModel", "imports transformers when loaded"),
        ("class A:\n    import numpy", "imports numpy when loaded"),
        ("from pydantic import Field", "imports pydantic"),
        ("from ftbuild.keys import action_key", "imports ftbuild.keys, the engine's inside"),
        ("def f():\n    from ftbuild import store", "imports ftbuild, the engine's inside"),
    ],
)
def test_a_planted_rule_import_is_found(source: str, expected: str) -> None:
    fine = (
        "import json\nfrom typing import TYPE_CHECKING\n"
        "from ftbuild import api\nfrom ftbuild.api import rule\nfrom pack import _helper\n"
        "if TYPE_CHECKING:\n    from torch import Tensor\n"
        "def f():\n    import torch\n"
    )
    assert rule_problems({"pack.good": fine}, "pack") == []
    problems = rule_problems({"pack.bad": source}, "pack")
    assert len(problems) == 1
    assert expected in problems[0]
