"""A new project: what is written, and what is left alone."""

import json
import tomllib

import pytest

from cli.toy import Toy
from ftbuild.cli.init import TEMPLATES


@pytest.mark.parametrize(
    ("template", "files"),
    [
        ("sft", ["FTBUILD.toml", "data/chats.jsonl"]),
        ("preferences", ["FTBUILD.toml", "data/preferences.jsonl"]),
        ("empty", ["FTBUILD.toml"]),
    ],
)
def test_each_template_is_a_project_that_checks(toy: Toy, template: str, files: list[str]) -> None:
    where = toy.root.parent / "My Shop!"
    done = toy.run("-C", str(where), "init", template)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "".join(f"wrote {path}\n" for path in files),
        "next: ftbuild check, then ftbuild make\n",
    )
    text = (where / "FTBUILD.toml").read_text()
    assert text.startswith("#:schema ./.ftbuild/schema.json\n")
    assert tomllib.loads(text)["project"]["name"] == "my-shop"
    assert json.loads((where / ".ftbuild/schema.json").read_text()) == json.loads(
        toy.run("schema", cwd=where).stdout
    )
    assert (where / ".gitignore").read_text() == ".ftbuild/\nftbuild-out/\n"
    check = toy.run("check", cwd=where)
    assert (check.returncode, check.stderr) == (0, "")


def test_the_default_template_is_sft(toy: Toy) -> None:
    where = toy.root.parent / "new"
    assert toy.run("-C", "new", "init", "-n", "--json", cwd=where.parent).stdout == (
        '{"directory": "new", "files": ["FTBUILD.toml", "data/chats.jsonl"]}\n'
    )
    assert not where.exists()


def test_nothing_is_overwritten(toy: Toy) -> None:
    before = sorted(toy.root.rglob("*"))
    manifest = (toy.root / "FTBUILD.toml").read_text()
    done = toy.run("init")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error[E0023]: `FTBUILD.toml` is already there\n"
        "  fix: choose another folder: `ftbuild -C DIR init`\n"
    )
    assert sorted(toy.root.rglob("*")) == before
    assert (toy.root / "FTBUILD.toml").read_text() == manifest


def test_gitignore_gets_only_the_lines_that_it_lacks(toy: Toy) -> None:
    where = toy.root.parent / "new"
    where.mkdir()
    (where / ".gitignore").write_text("*.log\n.ftbuild/")
    assert toy.run("init", "empty", cwd=where).returncode == 0
    assert (where / ".gitignore").read_text() == "*.log\n.ftbuild/\nftbuild-out/\n"


def test_an_unknown_template_lists_the_known(toy: Toy) -> None:
    done = toy.run("init", "ppo")
    assert done.returncode == 2
    assert all(template in done.stderr for template in TEMPLATES)
