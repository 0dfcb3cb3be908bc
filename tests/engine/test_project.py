"""A workspace as its users call it: packages, families, profiles, `--set`, views."""

import pytest

from engine.space import Space
from ftbuild import Project
from ftbuild.errors import FtbuildError, UsageError
from ftbuild.view import View

WRITE = 'run = "echo {0} > $out/f"\n'


def test_family_has_a_member_for_each_value(space: Space) -> None:
    space.manifest(
        '[command.say]\nmatrix = { run = ["true", "pwd"] }\n\n'
        '[command.one]\ndeps = { x = "say[run=pwd]" }\nrun = "ls $x > $out/f"\n'
    )
    assert set(space.make("say")) == {"say[run=true]", "say[run=pwd]"}
    assert space.output("say[run=pwd]").is_dir()
    assert space.make("one") == ["one"]
    space.edit("FTBUILD.toml", '"true", "pwd"', '"true", "pwd", "id"')
    assert space.make("say") == ["say[run=id]"]


def test_list_takes_all_members_of_a_family(space: Space) -> None:
    space.manifest(
        '[loud.all]\ntexts = ["kept"]\n\n'
        '[keep.kept]\nsource = "raw.txt"\nmatrix = { comment = ["a", "b"] }\n',
        toys=True,
    )
    space.write("raw.txt", "a\nb\n")
    assert space.make(jobs=1) == ["kept[comment=a]", "kept[comment=b]", "all"]
    assert space.text("all").splitlines() == ["B!", "A!", "{}"]
    assert list(space.plan("all")) == ["kept[comment=a]", "kept[comment=b]", "all"]


def test_name_of_a_family_is_no_single_target(space: Space) -> None:
    space.manifest('[command.say]\nmatrix = { run = ["true", "pwd"] }\n')
    space.make()
    with space.open() as project, pytest.raises(UsageError) as caught:
        project.path("say")
    assert caught.value.render() == (
        "error[E0011]: `say` is a family of 2 targets\n"
        "  fix: name one of them: say[run=true], say[run=pwd]"
    )


PROFILES = (
    "[command.a]\n" + WRITE.format("full") + "[command.b]\ndeps = { a = \"a\" }\n"
    'run = "cat $a/f > $out/f"\n\n[profile.smoke.a]\n' + WRITE.format("small")
)  # fmt: skip


def test_profile_is_in_the_key_of_what_it_changes(space: Space) -> None:
    space.manifest(PROFILES)
    assert space.make() == ["a", "b"]
    assert space.plan(profile="smoke") == {"a": "stale", "b": "unknown"}
    assert space.make(profile="smoke") == ["a", "b"]
    assert space.text("b", "f") == "small\n"
    assert space.make() == []
    assert space.text("b", "f") == "full\n"
    assert space.make(profile="smoke") == []


def test_value_that_is_set_is_in_the_key(space: Space) -> None:
    space.manifest(PROFILES)
    space.make()
    override = "a.run=echo set > $out/f"
    assert space.plan(overrides=[override]) == {"a": "stale", "b": "unknown"}
    assert space.make(overrides=[override]) == ["a", "b"]
    assert space.text("b", "f") == "set\n"
    assert space.make() == []
    # What is set to the value that it has anyway changes nothing.
    assert space.make(overrides=["a.run=echo full > $out/f"]) == []


def test_default_targets(space: Space) -> None:
    space.write(
        "FTBUILD.toml",
        '[project]\nname = "x"\ndefault = ["a"]\n\n'
        '[command.a]\nrun = "true"\n\n[command.b]\nrun = "pwd"\n',
    )
    assert space.make() == ["a"]
    space.manifest('[command.a]\nrun = "true"\n\n[command.b]\nrun = "pwd"\n')
    assert space.make() == ["b"]  # without a default, all that nothing else reads


PACKAGES = {
    "": '[command.all]\ndeps = { x = "//a:x", y = "//b/c:y" }\nrun = "cat $x/f $y/f > $out/f"\n',
    "a": '[command.x]\nsrcs = { raw = "raw.txt" }\nrun = "cat $raw > $out/f"\n',
    "b/c": '[command.y]\ndeps = { x = "//a:x", z = "z" }\nrun = "cat $x/f $z/f > $out/f"\n\n'
    '[command.z]\nrun = "echo z > $out/f"\n',
}


@pytest.fixture
def packages(space: Space) -> Space:
    for package, text in PACKAGES.items():
        space.manifest(text, package=package)
    space.write("a/raw.txt", "x\n")
    return space


def test_targets_of_several_packages(packages: Space) -> None:
    assert sorted(packages.make()) == ["//a:x", "//b/c:y", "//b/c:z", "all"]
    assert packages.text("all", "f") == "x\nx\nz\n"
    assert packages.text("y", "f", package="b/c") == "x\nz\n"
    packages.write("a/raw.txt", "X\n")
    assert packages.pending() == {"//a:x", "//b/c:y", "all"}


def test_names_are_seen_from_the_folder(packages: Space) -> None:
    assert packages.make("z", directory="b/c") == ["//b/c:z"]
    assert packages.make("//a:x", directory="b/c") == ["//a:x"]
    assert packages.make("//:all", directory="b/c") == ["//b/c:y", "all"]
    with pytest.raises(UsageError, match="there is no target `z`"):
        packages.build("z")


def test_package_that_nothing_at_the_root_needs_is_read_when_named(packages: Space) -> None:
    packages.manifest('[command.w]\nrun = "true"\n', package="d")
    assert "//d:w" not in packages.plan()
    assert packages.make("//d:w") == ["//d:w"]
    with packages.open() as project:
        assert "//d:w" in project.check().targets


def test_moved_package_is_fresh(packages: Space) -> None:
    """Where a target is declared is in no key."""
    packages.make()
    (packages.root / "a").rename(packages.root / "e")
    packages.edit("FTBUILD.toml", "//a:x", "//e:x")
    packages.edit("b/c/FTBUILD.toml", "//a:x", "//e:x")
    assert packages.make() == []


def test_two_targets_that_are_one_action_run_once(space: Space) -> None:
    space.manifest(
        '[command.a]\nrun = "sleep 0.1; date +%N > $out/f"\n\n'
        '[command.b]\nrun = "sleep 0.1; date +%N > $out/f"\n'
    )
    assert len(space.make(jobs=2)) == 1
    assert space.text("a", "f") == space.text("b", "f")
    assert space.make() == []


def test_description_tags_and_resources_are_in_no_key(space: Space) -> None:
    space.manifest('[command.a]\nrun = "true"\n')
    space.make()
    space.manifest(
        '[command.a]\nrun = "true"\ndescription = "d"\ntags = ["t"]\n'
        'resources = { cpus = 2, gpus = 0, memory = "1 GB" }\n\n[run]\njobs = 3\n'
    )
    assert space.make() == []


def test_log_is_that_of_the_last_run(space: Space) -> None:
    space.manifest('[command.a]\nrun = "echo one; echo two >&2"\n')
    space.make()
    with space.open() as project:
        assert project.log("a") == "one\ntwo\n"


def test_views_of_an_artifact_and_of_its_last_change(space: Space) -> None:
    """By the viewer for plain files, in a process of its own."""
    space.manifest('[command.a]\nsrcs = { raw = "raw.txt" }\nrun = "cat $raw > $out/f"\n')
    space.write("raw.txt", "one\n")
    space.make()
    with space.open() as project:
        shown = project.inspect("a")
        with pytest.raises(UsageError, match="`a` has no previous build with another output here"):
            project.diff("a@previous", "a")
    assert "f" in text(shown)
    space.write("raw.txt", "two\n")
    space.make()
    with space.open() as project:
        change = project.diff("a@previous", "a")
    assert "one" in text(change)
    assert "two" in text(change)


def text(view: View) -> str:
    return "\n".join("".join(span.text for span in line) for line in view.lines)


def test_views_of_two_kinds_cannot_be_compared(space: Space) -> None:
    space.manifest(
        '[command.a]\nrun = "true"\n\n[weights.base]\nsource = "base"\n',
        toys=True,
    )
    for name in ("config.json", "model.safetensors"):
        space.write(f"base/{name}", "{}")
    space.make()
    with space.open() as project, pytest.raises(UsageError) as caught:
        project.diff("a", "base")
    assert caught.value.render() == (
        "error[E0013]: `a` is a file and `base` a model\n  fix: compare two artifacts of one kind"
    )


def test_what_a_workspace_uses_is_spared_by_gc(space: Space) -> None:
    space.manifest('[command.a]\nsrcs = { raw = "raw.txt" }\nrun = "cat $raw > $out/f"\n')
    for content in ("one", "two", "three"):
        space.write("raw.txt", content)
        space.make()
    with space.open() as project:
        project.gc(max_bytes=0, grace_s=0)
    assert space.make() == []
    space.write("raw.txt", "two")
    assert space.make() == []  # the build before the last, for `diff a@previous a`
    space.write("raw.txt", "one")
    assert space.make() == ["a"]


def test_project_is_a_context_and_a_public_name(space: Space) -> None:
    space.manifest('[command.a]\nrun = "true"\n')
    with Project.open(space.root) as project:
        assert project.make(["a"]).built == ("a",)
        assert project.plan(["a"]).pending() == ()
        assert project.path("a").is_dir()


def test_folder_outside_of_any_workspace(space: Space) -> None:
    with pytest.raises(FtbuildError) as caught:
        Project.open(space.root)
    assert caught.value.render().startswith("error[E0101]: ")
