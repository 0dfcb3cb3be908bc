"""What the documents say is so: commands, links, the tree, and the examples."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftbuild import keys
from ftbuild.digest import Digest
from test_layers import LAYERS

ROOT = Path(__file__).parent.parent
WHERE = ("*.md", "*/*.md", "examples/*/*.md", "rules/ftbuild_rules/**/*.md")
DOCUMENTS = sorted({path for pattern in WHERE for path in ROOT.glob(pattern)})


def code_blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of `language` in a Markdown text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for found, code in blocks if found == language]


def broken_links(path: Path, text: str) -> list[str]:
    """Return the links of a Markdown text that lead to no file, or to no heading of it."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        is_there = target.exists() and (
            not anchor or anchor in anchors(text if target == path else target.read_text())
        )
        if not is_there:
            broken.append(link)
    return broken


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown text."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def tree_paths(tree: str) -> list[str]:
    """Return the paths that a drawn tree names: `├── name/    # comment`, indented by four."""
    paths: list[str] = []
    folders: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"((?:│   |    )*)[├└]── (\S+)", line)
        if match is None:
            continue
        folders[len(match[1]) // 4 :] = [match[2].rstrip("/")]
        paths.append("/".join(folders))
    return paths


def test_ci_runs_the_commands_of_the_readme() -> None:
    commands = [c.strip() for c in code_blocks((ROOT / "README.md").read_text(), "bash")]
    script = (ROOT / ".ci" / "run").read_text().replace(".venv-ci", ".venv").splitlines()
    assert len(commands) == 2
    assert [line for line in script if "&&" in line and not line.startswith("#")] == [
        f"{command} || exit" for command in commands
    ]
    assert script[-1].endswith("/pytest -n 2 --dist loadfile || exit")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_placeholder_is_left(path: Path) -> None:
    assert "TODO" not in path.read_text(encoding="utf-8")


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[a](page.md) [b](none.md) [c](#a-b) [d](#a-c) [e](page.md#a-d)\n")
    assert broken_links(page, page.read_text()) == ["none.md", "#a-c", "page.md#a-d"]
    assert broken_links(page, "`[a](none.md)` [b](https://example.org/)") == []


def test_the_tree_of_the_readme_is_there() -> None:
    (tree,) = [b for b in code_blocks((ROOT / "README.md").read_text(), "") if "── " in b]
    paths = tree_paths(tree)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    engine = {f"ftbuild/{p.name}" for p in (ROOT / "ftbuild").glob("*.py")}
    families = {
        f"rules/ftbuild_rules/{p.name}"
        for p in (ROOT / "rules" / "ftbuild_rules").iterdir()
        if p.is_dir() and not p.name.startswith("_")
    }
    assert (engine | families) - {*paths, "ftbuild/__main__.py"} == set()


def test_a_drawn_tree_is_read() -> None:
    tree = ".\n├── a/      # the a\n│   ├── b.py\n│   └── c/\n│       └── d.py\n└── e.md  # f\n"
    assert tree_paths(tree) == ["a", "a/b.py", "a/c", "a/c/d.py", "e.md"]


def test_architecture_shows_the_layers_that_the_test_holds() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    match = re.search(r"<!-- layers -->\n```\n(.*?)```\n<!-- /layers -->", text, re.DOTALL)
    assert match is not None
    assert match[1].strip() == LAYERS.strip()


def test_the_rule_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, test = code_blocks((ROOT / "rules" / "README.md").read_text(), "python")
    (tmp_path / "word_count.py").write_text(rule)
    (tmp_path / "readme_test.py").write_text(test)
    for name in ("word_count", "readme_test"):
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    module.test_short_words_are_left_out(tmp_path)


def test_the_project_of_the_readme_builds(tmp_path: Path) -> None:
    text = (ROOT / "rules" / "README.md").read_text()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "word_count.py").write_text(code_blocks(text, "python")[0])
    (tmp_path / "FTBUILD.toml").write_text(code_blocks(text, "toml")[0])
    (tmp_path / "poem.txt").write_text("a rose is a rose")
    done = subprocess.run(
        [sys.executable, "-m", "ftbuild", "make", "poem"],
        cwd=tmp_path,
        env={**os.environ, "FTBUILD_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = tmp_path / "ftbuild-out" / "poem" / "report.json"
    assert json.loads(report.read_text()) == {"is": 1, "rose": 2}


def test_the_documented_key_is_the_key() -> None:
    text = (ROOT / "docs" / "key-format.md").read_text()
    (code,) = code_blocks(text, "python")
    documented: dict[str, object] = {}
    exec(code, documented)
    document = json.loads(code_blocks(text, "json")[0])
    document["params"]["note"] = "é\ud800"
    assert documented["action_key"](document) == keys.action_key(document)  # type: ignore[operator]


def test_the_documented_document_has_the_fields_of_a_real_one() -> None:
    document = json.loads(code_blocks((ROOT / "docs" / "key-format.md").read_text(), "json")[0])
    target = type("Target", (), {"rule": "tokens", "params": {"max_length": 512}, "pins": ()})()
    pins = ("jinja2", "pyarrow", "tokenizers", "transformers")
    facts = type("Facts", (), {"version": 1, "source": None, "pins": pins, "toolchain": ()})()
    assert document == keys.key_document(
        target,
        facts,
        inputs={
            "dataset": keys.input_part("dataset", None, Digest("6b1f…")),
            "model": keys.input_part("model", "tokenizer", Digest("90aa…")),
        },
        sources={},
        variables={},
        libraries={
            "jinja2": "3.1.6",
            "pyarrow": "26.0.1",
            "tokenizers": "0.23.3",
            "torch": "2.13.0",
            "transformers": "5.24.0",
        },
    )


def test_the_quickstart_data_is_consistent() -> None:
    folder = ROOT / "examples" / "quickstart" / "data"
    chats, pairs = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("chats.jsonl", "preferences.jsonl")
    )
    assert (len(chats), len(pairs)) == (60, 40)
    taught = {m["content"] for row in chats for m in row["messages"] if m["role"] == "assistant"}
    assert len(taught) == 10
    assert {pair["chosen"][0]["content"] for pair in pairs} == taught
    assert {pair["rejected"][0]["content"] for pair in pairs} & taught == set()
