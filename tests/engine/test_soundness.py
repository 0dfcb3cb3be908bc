"""A table of edits: what each makes stale, and what it must not. Toy rules, every shape of input.

Too little stale is a wrong artifact, too much a training that nobody asked for. The sets are
what a person expects who knows which target reads what; nothing here is computed. The standard
rules have a table of their own in tests/rules/test_soundness.py.

    raw.txt ─ lines ─┬─ shout ─┬─ tuned ─ size
    one, two ─ both ─┘         │
    base/ ─── base ───┬────────┘           folder/ ─ rows (by fragments)
                      └─ (tokenizer) ─ numbers ─ count
"""

import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from engine.space import TOYS, Space, new_space
from ftbuild.lockfile import read

MANIFEST = (
    TOYS
    + """\
[keep.lines]
source = "raw.txt"
comment = "#"

[keep.both]
source = ["one.txt", "two.txt"]

[loud.shout]
texts = ["lines", "both"]
named = { first = "lines" }
marks = ["!", "?"]
style = { bold = 1 }

[weights.base]
source = "base"

[ids.numbers]
text = "lines"
model = "base"

[tune.tuned]
model = "base"
data = "shout"
epochs = 2
lora = { r = 8, alpha = 16 }
prompt = "prompt.txt"

[command.size]
deps = { model = "tuned" }
run = "wc -c < $model/model.safetensors > $out/f"

[command.count]
deps = { ids = "numbers" }
srcs = { table = "folder", pattern = "folder/*.csv" }
run = "wc -w < $ids/text.txt > $out/f"
env = ["TOY_DECLARED"]

[secret.told]
one = "TOY_ONE"
more = ["TOY_MORE"]

[pieces.rows]
source = "raw.txt"

[profile.smoke.tuned]
epochs = 1
lora = { r = 4 }
"""
)
ALL = {
    "lines", "both", "shout", "base", "numbers", "tuned", "size", "count", "told", "rows",
}  # fmt: skip
TUNED = {"tuned", "size"}
SHOUT = {"shout", *TUNED}
NUMBERS = {"numbers", "count"}
LINES = {"lines", *SHOUT, *NUMBERS}
BASE = {"base", *TUNED, *NUMBERS}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Space:
    with new_space(tmp_path_factory.mktemp("built")) as space:
        space.manifest("", toys=True)
        space.write("FTBUILD.toml", MANIFEST)
        space.write("raw.txt", "# a comment\na b\nb c\n")
        space.write("one.txt", "1\n")
        space.write("two.txt", "2\n")
        space.write("prompt.txt", "go\n")
        space.write("base/config.json", "{}")
        space.write("base/model.safetensors", "weights")
        space.write("base/tokenizer.json", "a b")
        space.write("base/README.md", "hello")
        space.write("folder/x.csv", "1,2\n")
        space.write("rules/unused.py", "")
        assert set(space.make()) == ALL
        return space


@pytest.fixture
def toys(built: Space, space: Space) -> Space:
    return space.copy_of(built, has_outputs=False)


Edit = Callable[[Space], object]


def toml(old: str, new: str) -> Edit:
    return lambda space: space.edit("FTBUILD.toml", old, new)


def rules(old: str, new: str) -> Edit:
    return lambda space: space.edit("rules/toys.py", old, new)


def content(path: str, data: str) -> Edit:
    return lambda space: space.write(path, data)


def in_place(path: str) -> Edit:
    """Other bytes of the same number, and the old mtime put back."""

    def edit(space: Space) -> None:
        file = space.root / path
        before = file.stat()
        file.write_bytes(file.read_bytes()[::-1])
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return edit


def locked(library: str) -> Edit:
    def edit(space: Space) -> None:
        version = metadata.version(library)
        space.edit("FTBUILD.lock", f'{library} = "{version}"', f'{library} = "0.0.1"')

    return edit


def moved(old: str, new: str) -> Edit:
    return lambda space: (space.root / old).rename(space.root / new)


def variable(name: str, value: str) -> Edit:
    return lambda space: os.environ.__setitem__(name, value)


def variables_of_machine(space: Space) -> None:
    for name in ("HOME", "USER", "PATH", "LANG", "TZ", "TOY_UNDECLARED"):
        os.environ[name] = f"{os.environ.get(name, '')}:/other"


def two_edits(*edits: Edit) -> Edit:
    return lambda space: [edit(space) for edit in edits]


def lines_of(path: str, order: Callable[[list[str]], list[str]]) -> Edit:
    def edit(space: Space) -> None:
        lines = (space.root / path).read_text().splitlines(keepends=True)
        space.write(path, "".join(order(lines)))

    return edit


TABLE: dict[str, tuple[Edit, set[str]]] = {
    # what is written in the manifest
    "a param": (toml('comment = "#"', 'comment = "%"'), LINES),
    "a param set to its default": (toml('comment = "#"\n', ""), set()),
    "a list": (toml('["!", "?"]', '["?", "!"]'), SHOUT),
    "a list of other length": (toml('["!", "?"]', '["!"]'), SHOUT),
    "a table": (toml("bold = 1", "bold = 2"), SHOUT),
    "a nested value": (toml("alpha = 16", "alpha = 32"), TUNED),
    "order of a table": (toml("r = 8, alpha = 16", "alpha = 16, r = 8"), set()),
    "a seed": (toml("style = { bold = 1 }", "style = { bold = 1 }\nseed = 1"), SHOUT),
    "a seed that is the default": (
        toml("style = { bold = 1 }", "style = { bold = 1 }\nseed = 0"),
        set(),
    ),
    "a removed table": (toml("lora = { r = 8, alpha = 16 }\n", ""), TUNED),
    "a command": (toml("wc -c <", "wc -l <"), {"size"}),
    "order of inputs in a list": (toml('["lines", "both"]', '["both", "lines"]'), SHOUT),
    "name of an input in a table": (toml("first =", "second ="), SHOUT),
    "another input": (toml('{ first = "lines" }', '{ first = "both" }'), SHOUT),
    "one input less": (toml('["lines", "both"]', '["lines"]'), SHOUT),
    "order of sources in a list": (
        toml('"one.txt", "two.txt"', '"two.txt", "one.txt"'),
        {"both", *SHOUT},
    ),
    "a source taken away": (toml('prompt = "prompt.txt"\n', ""), TUNED),
    "description and tags": (
        toml("[keep.lines]", '[keep.lines]\ndescription = "d"\ntags = ["t"]'),
        set(),
    ),
    "resources": (toml("[keep.lines]", '[keep.lines]\nresources = { cpus = 2 }'), set()),
    "name of the project": (toml('"toys"', '"other"'), set()),
    "a comment": (toml("[keep.lines]", "# more\n[keep.lines]"), set()),
    "settings of the run": (toml("[keep.lines]", "[run]\njobs = 1\n\n[keep.lines]"), set()),
    "name of a target": (
        two_edits(
            toml("[keep.both]", "[keep.pair]"), toml('"lines", "both"', '"lines", "pair"')
        ),
        set(),
    ),
    "a profile that is not asked for": (toml("epochs = 1", "epochs = 3"), set()),
    "a declared variable more": (toml('["TOY_DECLARED"]', '["TOY_DECLARED", "X"]'), {"count"}),
    # sources
    "a row": (content("raw.txt", "# a comment\na b\nb d\n"), {*LINES, "rows"}),
    "a comment in a source": (content("raw.txt", "# other\na b\nb c\n"), {*LINES, "rows"}),
    "order of rows": (lines_of("raw.txt", lambda x: x[::-1]), {*LINES, "rows"}),
    "same size and old mtime": (in_place("raw.txt"), {*LINES, "rows"}),
    "a file of a list": (content("two.txt", "3\n"), {"both", *SHOUT}),
    "a prompt at the same path": (content("prompt.txt", "stop\n"), TUNED),
    "the weights": (content("base/model.safetensors", "heavier"), BASE),
    "the tokenizer": (content("base/tokenizer.json", "a b c"), BASE),
    "a file of a folder that counts for no part": (content("base/README.md", "bye"), set()),
    "a new file of a folder that counts": (content("base/x.safetensors", "w"), BASE),
    "a hidden file in a folder": (content("folder/.x.csv", "3"), set()),
    "a new file in a folder and pattern": (content("folder/y.csv", "3"), {"count"}),
    "a new file in a folder alone": (content("folder/y.txt", "3"), {"count"}),
    "name of a file in a folder": (moved("folder/x.csv", "folder/y.csv"), {"count"}),
    "name of a file by itself": (
        two_edits(moved("raw.txt", "other.txt"), lambda space: space.write(
            "FTBUILD.toml", MANIFEST.replace("raw.txt", "other.txt")) and None),
        set(),
    ),
    "ending of a file by itself": (
        two_edits(moved("prompt.txt", "prompt.md"), toml("prompt.txt", "prompt.md")),
        TUNED,
    ),
    "an undeclared file beside a source": (content("more.txt", "x"), set()),
    "touch of everything": (
        lambda space: [os.utime(p) for p in space.root.rglob("*") if p.is_file()],
        set(),
    ),
    # code: one source digest stands for a file, `count` and `size` read what its rules make
    "code of a rule": (rules("startswith(params.comment)", "startswith('x')"), ALL),
    "a docstring": (rules('"""Keep the lines that are no comments."""', '"""Else."""'), set()),
    "a comment in the code": (rules("lines = [line for line", "# c\n    lines = [line for line"),
                              set()),
    "a default": (rules('comment: str = "#"', 'comment: str = "%"'), ALL),
    "a helper that a rule imports": (content("rules/toy_helper.py", "ending = ' '\n"),
                                     ALL),
    "a file that no rule imports": (content("rules/unused.py", "x = 1\n"), set()),
    "version of a rule": (rules("version=3", "version=4"), ALL),
    # libraries
    "a library of two rules": (locked("pydantic"), SHOUT),
    "a library of one rule": (locked("rich"), TUNED),
    "a library that no rule pins": (
        lambda space: space.edit("FTBUILD.lock", "[libraries]", '[libraries]\nabc = "1"'),
        set(),
    ),
    # the environment
    "a declared variable": (variable("TOY_DECLARED", "1"), {"count"}),
    "a declared variable of a list": (variable("TOY_MORE", "1"), {"told"}),
    "a declared variable by itself": (variable("TOY_ONE", "1"), {"told"}),
    "a declared variable that is empty": (variable("TOY_ONE", ""), {"told"}),
    "the rest of the environment": (variables_of_machine, set()),
    # the workspace
    "a lost history": (lambda space: shutil.rmtree(space.root / ".ftbuild"), set()),
    "a lost lock": (lambda space: (space.root / "FTBUILD.lock").unlink(), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_edit_makes_stale_what_it_should_and_nothing_else(toys: Space, name: str) -> None:
    edit, stale = TABLE[name]
    with pytest.MonkeyPatch.context() as patch:
        # Whatever an edit does to the environment is undone.
        patch.setattr(os, "environ", dict(os.environ))
        edit(toys)
        pending = toys.pending()
    assert pending == stale


def test_table_is_as_large_as_it_should_be() -> None:
    assert len(TABLE) >= 40


def test_code_of_a_versioned_rule_is_in_no_key(space: Space) -> None:
    """Alone in its file, so that nothing else changes with it."""
    space.write("FTBUILD.toml", '[project]\nrules = ["r.py"]\n\n[same.a]\nmark = "x"\n')
    space.write("r.py", VERSIONED)
    assert space.make() == ["a"]
    space.edit("r.py", "params.mark)", "params.mark + '!')")
    assert space.pending() == set()
    space.edit("r.py", "version=1", "version=2")
    assert space.reasons("a") == [("rule", "`same` version 1 → 2")]
    assert space.make() == ["a"]
    assert space.text("a", "f") == "x!"


VERSIONED = """\
from ftbuild.api import Context, File, Inputs, Params, rule

class NoInputs(Inputs):
    pass

class SameParams(Params):
    mark: str

@rule(output=File, version=1)
def same(ctx: Context, inputs: NoInputs, params: SameParams) -> None:
    (ctx.out / "f").write_text(params.mark)
"""


# -- early cutoff: what runs, what is stopped


CUT_OFF: dict[str, tuple[Edit, set[str]]] = {
    "a comment in a source": (content("raw.txt", "# other\na b\nb c\n"), {"lines", "rows"}),
    "weights, for who reads the tokenizer": (
        content("base/model.safetensors", "heavier"),
        {"base", *TUNED},
    ),
    "the tokenizer": (content("base/tokenizer.json", "b a"), {"base", *TUNED, *NUMBERS}),
    "a file of the model that is not the tokenizer's": (
        content("base/config.json", "{ }"),
        {"base", *TUNED},
    ),
    "code that changes no byte": (
        rules("startswith(params.comment)", "startswith((params.comment,))"),
        {"lines", "both", "shout", "base", "numbers", "told", "rows"},
    ),
    "size of a model that stays": (toml("alpha = 16", "alpha = 32"), {"tuned"}),
}


@pytest.mark.parametrize("name", CUT_OFF)
def test_run_stops_where_the_bytes_are_the_same(toys: Space, name: str) -> None:
    edit, expected = CUT_OFF[name]
    edit(toys)
    assert set(toys.make()) == expected
    assert toys.pending() == set()


def test_profile_changes_what_it_overlays(toys: Space) -> None:
    assert toys.pending(profile="smoke") == TUNED
    assert toys.pending(overrides=["lines.comment=%"]) == LINES


def test_another_folder_store_and_user_change_no_key(toys: Space, tmp_path: Path) -> None:
    keys = toys.keys_of_plan()
    assert set(keys) == ALL
    other = Space(tmp_path / "a folder" / "with spaces", toys.store)
    shutil.copytree(toys.root, other.root, ignore=shutil.ignore_patterns(".ftbuild", "ftbuild-out"))
    assert other.keys_of_plan() == keys
    assert read(other.root) == read(toys.root)
    assert other.make() == []
