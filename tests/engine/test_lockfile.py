"""FTBUILD.lock: what stands in it, when it is written, and what an edit of it makes stale."""

import platform
from importlib import metadata

import pytest

from engine.space import Space, new_space
from ftbuild import lockfile
from ftbuild.digest import Digest
from ftbuild.errors import DifferenceError, ManifestError, UsageError
from ftbuild.lockfile import Lock, Pin, PinnedFile

A, B = Digest("a" * 64), Digest("b" * 64)
MANIFEST = """\
[keep.lines]
source = "raw.txt"

[loud.shout]
texts = ["lines"]

[weights.base]
source = "base"

[tune.tuned]
model = "base"
data = "shout"
"""
LOCK = """\
# Written by ftbuild: what sources and libraries resolved to. Commit it.
version = 1

[libraries]
peft = "0.21.2"
torch = "2.13.0"

[rules]
dataset = 2
sft = 1

[sources."hf:org/name@main"]
revision = "c0ffee"

[[sources."hf:org/name@main".files]]
path = "a.json"
size = 2
sha256 = "AAAA"

[[sources."hf:org/name@main".files]]
path = "b/c.bin"
size = 93000000
sha256 = "BBBB"

[[sources."pypi:pack==1/x.txt".files]]
path = "file.txt"
size = 1
sha256 = "BBBB"
""".replace("AAAA", A).replace("BBBB", B)
WHOLE = Lock(
    {"torch": "2.13.0", "peft": "0.21.2"},
    {"sft": 1, "dataset": 2},
    {
        "pypi:pack==1/x.txt": Pin((PinnedFile("file.txt", 1, B),)),
        "hf:org/name@main": Pin(
            (PinnedFile("b/c.bin", 93_000_000, B), PinnedFile("a.json", 2, A)), "c0ffee"
        ),
    },
)


def installed(name: str) -> str:
    return metadata.version(name).partition("+")[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Space:
    with new_space(tmp_path_factory.mktemp("built")) as space:
        space.manifest(MANIFEST, toys=True)
        space.write("raw.txt", "a\n")
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            space.write(f"base/{name}", "{}")
        space.make()
        return space


@pytest.fixture
def toys(built: Space, space: Space) -> Space:
    return space.copy_of(built)


def pin_version(space: Space, name: str, version: str) -> None:
    space.edit("FTBUILD.lock", f'{name} = "{installed(name)}"', f'{name} = "{version}"')


def test_text_is_sorted_and_free_of_times_paths_and_hosts() -> None:
    assert lockfile.to_toml(WHOLE) == LOCK


def test_text_is_read_back(space: Space) -> None:
    space.write("FTBUILD.lock", LOCK)
    found = lockfile.read(space.root)
    assert (found.libraries, found.rules) == (WHOLE.libraries, WHOLE.rules)
    assert lockfile.to_toml(found) == LOCK


def test_absent_lock_is_an_empty_one(space: Space) -> None:
    assert lockfile.read(space.root) == Lock()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version = ", "Invalid value (at end of document)"),
        ("", "'version'"),
        ('version = 1\nsources = "x"', "'str' object has no attribute 'items'"),
        ('version = 1\n[sources."hf:a/b"]', "'files'"),
        ('version = 1\n[sources."hf:a/b"]\nfiles = [1]', "'int' object is not subscriptable"),
        (
            f'version = 1\n[sources."hf:a/b"]\nfiles = [{{path="../x", size=1, sha256="{A}"}}]',
            f"it pins `../x` to `{A}`",
        ),
        (
            f'version = 1\n[sources."hf:a/b"]\nfiles = [{{path="/x", size=1, sha256="{A}"}}]',
            f"it pins `/x` to `{A}`",
        ),
        (
            'version = 1\n[sources."hf:a/b"]\nfiles = [{path="x", size=1, sha256="no"}]',
            "it pins `x` to `no`",
        ),
    ],
)
def test_broken_lock(space: Space, text: str, why: str) -> None:
    space.write("FTBUILD.lock", text)
    with pytest.raises(ManifestError) as caught:
        lockfile.read(space.root)
    assert caught.value.render() == (
        f"error[E0501]: `FTBUILD.lock` cannot be read: {why}\n  --> FTBUILD.lock\n"
        "  fix: restore it from version control, or delete it and run `ftbuild lock`"
    )


def test_lock_that_is_no_text(space: Space) -> None:
    space.write("FTBUILD.lock", b"version = 1 # \xff")
    with pytest.raises(ManifestError, match="cannot be read: 'utf-8' codec can't decode byte 0xff"):
        lockfile.read(space.root)


def test_lock_of_a_newer_ftbuild(space: Space) -> None:
    space.write("FTBUILD.lock", "version = 2")
    with pytest.raises(ManifestError) as caught:
        lockfile.read(space.root)
    assert caught.value.render() == (
        "error[E0501]: `FTBUILD.lock` has format 2; this ftbuild knows up to 1\n"
        "  --> FTBUILD.lock\n  fix: upgrade ftbuild"
    )


def test_differences_name_each_fact() -> None:
    other = (
        WHOLE.with_libraries({"torch": "2.14.0", "trl": "1.0"})
        .with_rules({"sft": 2})
        .with_source("hf:org/name@main", Pin((), "beef"))
        .with_source("pypi:pack==1/x.txt", Pin((PinnedFile("file.txt", 1, A),)))
    )
    assert lockfile.differences(WHOLE, other) == [
        "library torch: 2.13.0 → 2.14.0",
        "library trl: absent → 1.0",
        "rule sft: 1 → 2",
        "source hf:org/name@main: c0ffee → beef",
        f"source pypi:pack==1/x.txt: {'b' * 12} → {'a' * 12}",
    ]
    assert lockfile.differences(WHOLE, WHOLE) == []


def test_local_part_of_a_version_is_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130")
    assert lockfile.installed_version("torch") == "2.13.0"


def test_make_writes_what_its_targets_need(space: Space) -> None:
    space.manifest(MANIFEST, toys=True)
    space.write("raw.txt", "a\n")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        space.write(f"base/{name}", "{}")
    space.make("lines")
    assert not (space.root / "FTBUILD.lock").exists()  # nothing is pinned yet
    space.make("shout")
    assert lockfile.read(space.root) == Lock({"pydantic": installed("pydantic")})
    space.make()
    found = lockfile.read(space.root)
    assert found.libraries == {name: installed(name) for name in ("pydantic", "rich")}
    assert found.rules == {"tune": 3}
    text = (space.root / "FTBUILD.lock").read_text()
    assert platform.node() not in text
    assert str(space.root) not in text


def test_complete_lock_is_not_written_again(toys: Space) -> None:
    lock = toys.root / "FTBUILD.lock"
    before = lock.stat()
    toys.write("raw.txt", "b\n")
    toys.make("lines")
    assert (lock.stat().st_ino, lock.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_version_in_the_lock_makes_exactly_its_targets_stale(toys: Space) -> None:
    pin_version(toys, "pydantic", "1.0.0")
    assert toys.plan() == {
        "lines": "fresh",
        "base": "fresh",
        "shout": "stale",
        "tuned": "unknown",
    }


def test_version_of_a_library_that_only_one_rule_pins(toys: Space) -> None:
    pin_version(toys, "rich", "1.0.0")
    assert toys.pending() == {"tuned"}


def test_version_of_a_library_that_only_some_targets_of_a_rule_use(space: Space) -> None:
    targets = '[loud.shout]\ntexts = ["lines"]\n\n[loud.whisper]\ntexts = ["lines"]\nseed = 1\n\n'
    space.manifest(targets + '[keep.lines]\nsource = "r"\n', toys=True)
    by_seed = 'lambda kinds, params: ("pydantic",) * params.seed'
    space.edit("rules/toys.py", 'File, pins=("pydantic",)', f"File, pins={by_seed}")
    space.write("r", "a\n")
    space.make()
    pin_version(space, "pydantic", "1.0.0")
    assert space.pending() == {"whisper"}
    space.edit("FTBUILD.toml", "seed = 1\n", "")
    with space.open() as project:
        assert project.lock() == ["library pydantic: 1.0.0 → absent"]


def test_upgraded_library_makes_nothing_stale(toys: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "99.0")
    assert set(toys.plan().values()) == {"fresh"}
    assert toys.make() == []


def test_action_that_has_to_run_needs_the_locked_version(toys: Space) -> None:
    pin_version(toys, "pydantic", "1.0.0")
    result = toys.build("shout")
    assert (result.exit_code, result.failed) == (3, ("shout",))
    assert toys.finished("shout").error == (
        f"error[E0510]: `shout` has to run with pydantic 1.0.0 (FTBUILD.lock), but "
        f"{installed('pydantic')} is installed\n"
        "  fix: pip install 'pydantic==1.0.0', or\n"
        "       `ftbuild lock --upgrade pydantic`, and `ftbuild plan` shows what that makes stale"
    )


def test_library_that_is_not_installed(space: Space) -> None:
    space.manifest('[loud.shout]\ntexts = ["lines"]\n\n[keep.lines]\nsource = "r"\n', toys=True)
    space.edit("rules/toys.py", '@rule(output=File, pins=("pydantic",))',
               '@rule(output=File, pins=("no-such-library",))')  # fmt: skip
    space.write("r", "a\n")
    assert space.build("shout").failed == ("shout",)
    assert space.finished("shout").error == (
        "error[E0511]: `shout` needs the library `no-such-library`, which is not installed\n"
        "  fix: pip install 'no-such-library'"
    )
    assert not (space.root / "FTBUILD.lock").exists()


def test_library_that_is_not_installed_comes_with_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    required = [
        "pytest>=9; extra == 'test'",
        "torch-x>=1; extra == 'x'",
        "torch>=2; extra == 'train'",
    ]
    monkeypatch.setattr(lockfile, "installed_version", lambda name: None)
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    with pytest.raises(DifferenceError) as caught:
        lockfile.check_environment(["torch"], Lock({"torch": "2.13.0"}), "x")
    assert caught.value.problems[0].fix == (
        "pip install 'torch==2.13.0', or with all that goes with it: pip install 'ftbuild[train]'"
    )


def test_check_passes_for_what_is_installed_as_locked() -> None:
    lockfile.check_environment(["pytest"], Lock({"pytest": installed("pytest")}), "x")
    with pytest.raises(DifferenceError):
        lockfile.check_environment(["pytest"], Lock({"pytest": "0"}), "x")


def test_upgrade_takes_the_installed_version(toys: Space) -> None:
    pin_version(toys, "pydantic", "1.0.0")
    with toys.open() as project:
        assert project.lock(["pydantic"]) == [f"library pydantic: 1.0.0 → {installed('pydantic')}"]
    assert toys.make() == []  # what was built with it before is fresh again


def test_upgrade_of_what_the_lock_does_not_hold(toys: Space) -> None:
    with toys.open() as project, pytest.raises(UsageError) as caught:
        project.lock(["pydantics"])
    assert caught.value.render() == (
        "error[E0503]: `FTBUILD.lock` holds nothing named `pydantics`\n"
        "  fix: did you mean `pydantic`? `FTBUILD.lock` lists what it holds"
    )


def test_check_of_a_lock_writes_nothing(toys: Space) -> None:
    (toys.root / "FTBUILD.lock").unlink()
    with toys.open() as project:
        lines = project.lock(check=True)
    assert lines == [
        f"library pydantic: absent → {installed('pydantic')}",
        f"library rich: absent → {installed('rich')}",
        "rule tune: absent → 3",
    ]
    assert not (toys.root / "FTBUILD.lock").exists()


def test_locked_refuses_to_change_the_lock(toys: Space) -> None:
    assert toys.make(locked=True) == []
    toys.edit("FTBUILD.lock", f'rich = "{installed("rich")}"\n', "")
    assert toys.failed("tuned", locked=True) == (
        "exit 3\nerror[E0502]: `FTBUILD.lock` is not complete, and `--locked` forbids to change "
        f"it\n  why: library rich: absent → {installed('rich')}\n"
        "  fix: run `ftbuild lock` and commit the file"
    )
    assert toys.make("lines", locked=True) == []  # it needs nothing that the lock lacks


def test_raised_version_of_a_rule_is_noted(toys: Space) -> None:
    toys.edit("rules/toys.py", "version=3", "version=4")
    toys.make("tuned")
    assert lockfile.read(toys.root).rules == {"tune": 4}


def test_lock_drops_what_no_target_needs(toys: Space) -> None:
    before = lockfile.read(toys.root)
    unused = Lock({"left": "1"}, {"gone": 1}, {"hf:org/gone": Pin((), "c0ffee")})
    lockfile.write(
        toys.root,
        Lock(
            {**before.libraries, **unused.libraries}, {**before.rules, **unused.rules},
            unused.sources,
        ),
    )  # fmt: skip
    with toys.open() as project:
        assert project.lock(check=True) == [
            "library left: 1 → absent",
            "rule gone: 1 → absent",
            "source hf:org/gone: c0ffee → absent",
        ]
        project.lock()
    assert lockfile.read(toys.root) == before


def test_lock_keeps_what_only_a_profile_needs(space: Space) -> None:
    space.manifest(
        '[keep.lines]\nsource = "raw.txt"\n\n'
        '[profile.other.lines]\nsource = "https://example.org/rows.txt"\n',
        toys=True,
    )
    space.write("raw.txt", "a\n")
    pin = Pin((PinnedFile("file.txt", 1, A),))
    lockfile.write(space.root, Lock({}, {}, {"https://example.org/rows.txt": pin}))
    with space.open() as project:
        assert project.lock() == []


def test_upgrade_of_everything_keeps_what_is_not_installed(toys: Space) -> None:
    pin_version(toys, "pydantic", "1.0.0")
    toys.edit("rules/toys.py", 'pins=("rich", "pydantic")', 'pins=("rich", "no-such-library")')
    toys.edit("FTBUILD.lock", "[libraries]\n", '[libraries]\nno-such-library = "7"\n')
    with toys.open() as project:
        assert project.lock(upgrade_all=True) == [
            f"library pydantic: 1.0.0 → {installed('pydantic')}"
        ]


def test_upgrade_of_a_library_that_is_not_installed(toys: Space) -> None:
    toys.edit("FTBUILD.lock", "[libraries]\n", '[libraries]\nno-such-library = "7"\n')
    with toys.open() as project, pytest.raises(DifferenceError) as caught:
        project.lock(["no-such-library"])
    assert caught.value.render() == (
        "error[E0511]: `no-such-library` is to be locked as it is installed, and it is not "
        "installed\n  fix: pip install 'no-such-library', then lock again"
    )


def test_all_libraries_that_differ_are_named_at_once(toys: Space) -> None:
    pin_version(toys, "pydantic", "1.0.0")
    pin_version(toys, "rich", "2.0.0")
    with pytest.raises(DifferenceError) as caught:
        lockfile.check_environment(["rich", "pydantic"], lockfile.read(toys.root), "tuned")
    assert [p.what.partition(" (")[0] for p in caught.value.problems] == [
        "`tuned` has to run with rich 2.0.0",
        "`tuned` has to run with pydantic 1.0.0",
    ]


def test_frozen_builds_from_the_lock_as_it_is(toys: Space) -> None:
    toys.edit("rules/toys.py", "version=3", "version=4")
    assert toys.failed("tuned", locked=True).startswith("exit 3\nerror[E0502]: ")
    before = (toys.root / "FTBUILD.lock").read_bytes()
    assert "tuned" in toys.make("tuned", frozen=True)
    assert (toys.root / "FTBUILD.lock").read_bytes() == before


def test_frozen_takes_nothing_that_is_not_locked(toys: Space) -> None:
    toys.edit("FTBUILD.lock", f'pydantic = "{installed("pydantic")}"\n', "")
    toys.write("raw.txt", "b\n")
    result = toys.build("shout", frozen=True)
    assert (result.exit_code, result.built, result.failed) == (3, ("lines",), ("shout",))
    assert toys.finished("shout").error == (
        "error[E0504]: `shout` needs the library `pydantic`, and `FTBUILD.lock` does not hold it\n"
        f"  why: pydantic {installed('pydantic')} is installed, but `--frozen` takes nothing that "
        "is not locked\n  fix: run `ftbuild lock` and commit the file"
    )
    (toys.root / "FTBUILD.lock").unlink()
    assert toys.failed(frozen=True) == (
        "exit 3\nerror[E0504]: there is no `FTBUILD.lock`, and `--frozen` takes nothing that is "
        "not locked\n  fix: run `ftbuild lock` and commit the file"
    )


def test_frozen_source_that_is_not_locked_fails_its_target_alone(space: Space) -> None:
    space.manifest(
        '[keep.lines]\nsource = "raw.txt"\n\n[keep.far]\nsource = "https://example.org/x.txt"\n',
        toys=True,
    )
    space.write("raw.txt", "a\n")
    space.write("FTBUILD.lock", "version = 1\n")
    result = space.build("lines", "far", frozen=True, keep_going=True)
    assert (result.exit_code, result.built, result.failed) == (3, ("lines",), ("far",))
    assert space.finished("far").error == (
        "error[E0504]: `https://example.org/x.txt` is not in the lock\n"
        "  why: `--frozen` takes nothing that is not locked\n"
        "  fix: run `ftbuild lock` and commit the file"
    )


def test_small_change_is_a_small_difference_of_the_text() -> None:
    one = PinnedFile("b/c.bin", 93_000_001, A)
    moved = WHOLE.with_source("hf:org/name@main", Pin((one, PinnedFile("a.json", 2, A)), "c0ffef"))
    old, new = LOCK.splitlines(), lockfile.to_toml(moved).splitlines()
    changed = [line for line, was in zip(new, old, strict=True) if line != was]
    assert changed == ['revision = "c0ffef"', "size = 93000001", f'sha256 = "{A}"']
