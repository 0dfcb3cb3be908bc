"""What `plan` says of each target, and the exact words of each reason."""

import os
import shutil

import pytest

from engine.space import Space, blobs_of, new_space

MANIFEST = """\
[keep.lines]
source = "raw.txt"

[keep.more]
source = ["one.txt", "two.txt"]

[loud.shout]
texts = ["lines", "more"]
named = { first = "lines" }
style = { bold = 1 }

[weights.base]
source = "base"

[tune.tuned]
model = "base"
data = "shout"

[secret.told]
one = "TOY_ONE"
more = ["TOY_TWO"]
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Space:
    """A workspace that is built once, for all tests to copy."""
    with new_space(tmp_path_factory.mktemp("built")) as space:
        space.manifest(MANIFEST, toys=True)
        space.write("raw.txt", "a\n# no\n")
        space.write("one.txt", "1\n")
        space.write("two.txt", "2\n")
        space.write("base/config.json", "{}")
        space.write("base/model.safetensors", "w")
        space.write("base/tokenizer.json", "a b")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOY_ONE", "1")
            space.make()
        return space


@pytest.fixture
def toys(built: Space, space: Space, monkeypatch: pytest.MonkeyPatch) -> Space:
    """A built workspace."""
    monkeypatch.setenv("TOY_ONE", "1")
    return space.copy_of(built)


def test_never_built(space: Space) -> None:
    space.manifest('[command.a]\nrun = "true"\n\n[command.b]\ndeps = { a = "a" }\nrun = "true"\n')
    with space.open() as project:
        first, second = project.plan().verdicts
    assert (first.label, first.rule, str(first.state)) == ("a", "command", "stale")
    assert [(r.kind, r.detail) for r in first.reasons] == [("new", "never built here")]
    assert first.key is not None
    assert (str(second.state), second.key) == ("unknown", None)
    assert [(r.kind, r.detail) for r in second.reasons] == [("waits", "waits for `a`")]


def test_plan_names_what_is_asked_for_and_what_that_needs(toys: Space) -> None:
    assert list(toys.plan("shout")) == ["lines", "more", "shout"]


def test_all_fresh(toys: Space) -> None:
    assert set(toys.plan().values()) == {"fresh"}
    assert toys.reasons("tuned") == []


@pytest.mark.parametrize(
    ("old", "new", "label", "reasons"),
    [
        ('["lines", "more"]', '["lines", "more"]\nseed = 1', "shout", ["`seed`: (default) → 1"]),
        ("{ bold = 1 }", "{ bold = 2 }", "shout", ["`style.bold`: 1 → 2"]),
        ("{ bold = 1 }", "{ thin = 1 }", "shout", [
            "`style.bold`: 1 → (default)",
            "`style.thin`: (default) → 1",
        ]),
        ("style = { bold = 1 }", "", "shout", ['`style`: {"bold": 1} → (default)']),
        (
            "style = { bold = 1 }",
            'style = { bold = 1 }\nmarks = ["?", "!"]',
            "shout",
            ['`marks`: (default) → ["?", "!"]'],
        ),
        (
            'data = "shout"',
            'data = "shout"\nlora = { r = 8, alpha = 16 }',
            "tuned",
            ["`lora.alpha`: (default) → 16", "`lora.r`: (default) → 8"],
        ),
    ],
)  # fmt: skip
def test_attribute(toys: Space, old: str, new: str, label: str, reasons: list[str]) -> None:
    toys.edit("FTBUILD.toml", old, new)
    assert toys.reasons(label) == [("attribute", reason) for reason in reasons]


def test_changed_source(toys: Space) -> None:
    toys.write("raw.txt", "b\n")
    assert toys.reasons("lines") == [("source", "raw.txt changed")]
    assert toys.reasons("shout") == [("waits", "waits for `lines`")]


def test_waiting_target_says_its_own_changes_too(toys: Space) -> None:
    toys.write("raw.txt", "b\n")
    toys.edit("FTBUILD.toml", "{ bold = 1 }", "{ bold = 2 }")
    assert toys.reasons("shout") == [
        ("waits", "waits for `lines`"),
        ("attribute", "`style.bold`: 1 → 2"),
    ]


def test_files_of_a_list(toys: Space) -> None:
    toys.edit("FTBUILD.toml", '["one.txt", "two.txt"]', '["one.txt", "raw.txt", "two.txt"]')
    assert toys.reasons("more") == [("source", "raw.txt changed"), ("source", "two.txt is new")]


def test_files_of_a_folder(toys: Space) -> None:
    toys.write("base/tokenizer.json", "a b c")
    toys.write("base/model-2.safetensors", "w")
    (toys.root / "base" / "model.safetensors").unlink()
    assert toys.reasons("base") == [
        ("source", "model.safetensors is gone"),
        ("source", "base/tokenizer.json changed"),
        ("source", "base/model-2.safetensors is new"),
    ]


def test_input_with_other_content(toys: Space) -> None:
    """The input has been built by itself since: it is fresh, and its content is another."""
    toys.write("raw.txt", "b\n")
    assert toys.make("lines") == ["lines"]
    assert toys.reasons("shout") == [
        ("input", "`named.first` (`lines`) has other content"),
        ("input", "`texts.0` (`lines`) has other content"),
    ]


def test_inputs_that_come_and_go(toys: Space) -> None:
    toys.edit("FTBUILD.toml", "first", "second")
    assert toys.reasons("shout") == [
        ("input", "`named.first` is gone"),
        ("input", "`named.second` is new: `lines`"),
    ]


def test_inputs_in_another_order(toys: Space) -> None:
    toys.edit("FTBUILD.toml", '["lines", "more"]', '["more", "lines"]')
    assert toys.reasons("shout") == [
        ("input", "`texts.0` (`more`) has other content"),
        ("input", "`texts.1` (`lines`) has other content"),
    ]


def test_code_of_a_rule(toys: Space) -> None:
    toys.edit("rules/toys.py", "line.startswith(params.comment)", 'line.startswith("x")')
    assert toys.reasons("lines") == [("rule", "the code of `keep` changed")]
    assert toys.reasons("tuned") == [("waits", "waits for `base`"), ("waits", "waits for `shout`")]


def test_version_of_a_rule(toys: Space) -> None:
    toys.edit("rules/toys.py", "version=3", "version=4")
    assert toys.reasons("tuned")[-1] == ("rule", "`tune` version 3 → 4")


def test_another_rule(toys: Space) -> None:
    toys.edit("FTBUILD.toml", '[keep.lines]\nsource = "raw.txt"', '[command.lines]\nrun = "true"')
    assert toys.reasons("lines")[0] == ("rule", "`keep` → `command`")


def test_variables(toys: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_ONE", "2")
    monkeypatch.setenv("TOY_TWO", "")
    assert toys.reasons("told") == [
        ("variable", "`TOY_TWO` is set now"),
        ("variable", "`TOY_ONE` has another value"),
    ]
    monkeypatch.delenv("TOY_ONE")
    monkeypatch.delenv("TOY_TWO")
    assert toys.reasons("told") == [("variable", "`TOY_ONE` is no longer set")]


def test_variables_that_are_declared(toys: Space) -> None:
    toys.edit("FTBUILD.toml", '["TOY_TWO"]', '["TOY_THREE"]')
    assert toys.reasons("told") == [
        ("variable", "`TOY_TWO` is no longer declared"),
        ("variable", "`TOY_THREE` is declared now"),
    ]


def test_library_version_of_the_lock(toys: Space) -> None:
    lock = toys.root / "FTBUILD.lock"
    text = lock.read_text()
    [line] = [x for x in text.splitlines() if x.startswith("rich = ")]
    lock.write_text(text.replace(line, 'rich = "1.2.3"'))
    installed = line.removeprefix("rich = ")
    assert toys.reasons("tuned") == [("library", f'rich {installed} → "1.2.3"')]
    assert toys.pending() == {"tuned"}


def test_result_that_is_gone(toys: Space) -> None:
    digest = os.path.basename(os.readlink(toys.output("lines")))
    shutil.rmtree(toys.store / "v1" / "trees" / digest[:2] / digest, ignore_errors=True)
    with toys.open() as project:
        key = project.history.built["lines"].key
    (toys.store / "v1" / "actions" / key[:2] / f"{key}.json").unlink()
    assert toys.reasons("lines") == [("missing", "its result is no longer in the store")]


def test_record_of_the_last_build_is_gone(toys: Space) -> None:
    toys.write("raw.txt", "b\n")
    shutil.rmtree(toys.store / "v1" / "actions")
    assert toys.reasons("lines") == [
        ("new", "the record of its last build is no longer in the store")
    ]


def test_plan_changes_nothing(toys: Space) -> None:
    toys.write("raw.txt", "b\n")
    before = [path.name for path in blobs_of(toys.store)]
    lock = (toys.root / "FTBUILD.lock").read_bytes()
    history = (toys.root / ".ftbuild" / "history.bin").read_bytes()
    assert toys.plan()["lines"] == "stale"
    assert [path.name for path in blobs_of(toys.store)] == before
    assert (toys.root / "FTBUILD.lock").read_bytes() == lock
    assert (toys.root / ".ftbuild" / "history.bin").read_bytes() == history


def test_expected_seconds_are_those_of_the_last_run(toys: Space) -> None:
    with toys.open() as project:
        [verdict] = project.plan(["lines"]).verdicts
        record = project.store.find(project.history.built["lines"].key)
    assert record is not None
    assert verdict.seconds == record.provenance["seconds"]
