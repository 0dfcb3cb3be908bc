"""FTBUILD.toml files read, overlaid and expanded; what is no TOML at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from ftbuild import manifest
from ftbuild.errors import ManifestError

ROOT = '[project]\nname = "toys"\n'


def write(root: Path, text: str | bytes, package: str = "") -> None:
    folder = root / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "FTBUILD.toml").write_bytes(text.encode() if isinstance(text, str) else text)


def attributes(read: manifest.Manifest) -> dict[str, dict[str, Any]]:
    return {declaration.label: declaration.attributes for declaration in read.declarations}


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest.load(root, **options)
    return caught.value.render()


def test_a_manifest_holds_what_its_file_says(tmp_path: Path) -> None:
    text = """\
[project]
name = "support-bot"
default = ["helper"]

[run]
jobs = 3

[cache]
max_size = "200 GB"

[sft.helper]
epochs = 2
lora = { r = 16 }
"""
    write(tmp_path, text)

    read = manifest.load(tmp_path)

    assert read.project == manifest.ProjectTable("support-bot", ("helper",), ())
    assert read.run == {"jobs": 3}
    assert read.cache == {"max_size": "200 GB"}
    assert read.files == ("FTBUILD.toml",)
    assert read.texts == {"FTBUILD.toml": text.encode()}
    [helper] = read.declarations
    assert (helper.package, helper.rule, helper.name, helper.family) == ("", "sft", *["helper"] * 2)
    assert helper.label == "helper"
    assert helper.attributes == {"epochs": 2, "lora": {"r": 16}}


def test_a_project_without_a_name_is_called_as_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "bot", "[project]\n")
    assert manifest.load(tmp_path / "bot").project.name == "bot"


def test_packages_are_read_when_a_label_names_them(tmp_path: Path) -> None:
    write(tmp_path, ROOT + '[a.x]\ndata = "//data/faq:y"\n')
    write(tmp_path, '[a.y]\nmore = { list = ["//deep:z"] }\n', "data/faq")
    write(tmp_path, "[a.z]\n", "deep")
    write(tmp_path, "[a.unused]\n", "unused")

    read = manifest.load(tmp_path)

    assert read.files == ("FTBUILD.toml", "data/faq/FTBUILD.toml", "deep/FTBUILD.toml")
    assert [d.label for d in read.declarations] == ["x", "//data/faq:y", "//deep:z"]


def test_packages_are_read_when_a_profile_or_the_command_line_names_them(tmp_path: Path) -> None:
    write(tmp_path, ROOT + '[profile.smoke."//a:x"]\nn = 1\n')
    for package in "abcd":
        write(tmp_path, "[r.x]\n", package)

    read = manifest.load(tmp_path, overrides=["//b:x.n=2"], wanted=["//c:x"])

    assert attributes(read) == {"//a:x": {}, "//b:x": {"n": 2}, "//c:x": {}}


def test_everything_is_every_package_but_outputs_environments_and_workspaces(
    tmp_path: Path,
) -> None:
    write(tmp_path, ROOT)
    write(tmp_path, "[a.x]\n", "one/two")
    for hidden in (".git/x", "ftbuild-out/x", "venv/lib/x", "other", "other/inside"):
        write(tmp_path, "[a.x]\n", hidden)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    write(tmp_path, "[project]\n", "other")

    assert manifest.load(tmp_path, everything=True).files == (
        "FTBUILD.toml",
        "one/two/FTBUILD.toml",
    )


def test_the_root_is_the_nearest_folder_with_a_project(tmp_path: Path) -> None:
    write(tmp_path, "[project]\n")
    write(tmp_path, '[ project ]\nname = "inner"\n', "inner")
    write(tmp_path, "[a.x]\n", "inner/data")
    write(tmp_path, "project.name = 'dotted'\n", "dotted")
    (tmp_path / "inner" / "data" / "deep").mkdir()

    assert manifest.find_root(tmp_path / "inner" / "data" / "deep") == tmp_path / "inner"
    assert manifest.find_root(tmp_path / "inner") == tmp_path / "inner"
    assert manifest.find_root(tmp_path / "dotted") == tmp_path / "dotted"
    assert manifest.find_root(tmp_path) == tmp_path


def test_the_root_is_found_even_if_its_file_is_broken(tmp_path: Path) -> None:
    write(tmp_path, "[project]\nname = \n")
    assert manifest.find_root(tmp_path) == tmp_path


def test_no_root_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    write(tmp_path, "[a.x]\n")
    with pytest.raises(ManifestError) as caught:
        manifest.find_root(tmp_path)
    assert caught.value.render() == (
        "error[E0101]: there is no workspace: no FTBUILD.toml with [project] here or in a folder "
        f"above\n  --> {tmp_path}\n  fix: ftbuild init"
    )


def test_a_profile_is_merged_into_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    text = """\
[sft.helper]
epochs = 2
lora = { r = 16, alpha = 32 }
names = ["a", "b"]
[profile.smoke.helper]
epochs = 1
lora = { r = 8 }
names = ["c"]
[profile.other.helper]
epochs = 9
"""
    write(tmp_path, ROOT + text)

    assert attributes(manifest.load(tmp_path, profile="smoke")) == {
        "helper": {"epochs": 1, "lora": {"r": 8, "alpha": 32}, "names": ["c"]}
    }
    assert attributes(manifest.load(tmp_path))["helper"]["epochs"] == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 0.0001),
        ("true", True),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("{ r = 8 }", {"r": 8, "alpha": 32}),
        ("chatml", "chatml"),
        ("a=b", "a=b"),
        ("", ""),
        ("1\nepochs = 2", "1\nepochs = 2"),
    ],
)
def test_an_override_is_toml_or_else_text(tmp_path: Path, text: str, value: object) -> None:
    write(tmp_path, ROOT + "[sft.helper]\nlora = { r = 16, alpha = 32 }\n")
    read = manifest.load(tmp_path, overrides=[f"helper.lora={text}"])
    assert attributes(read)["helper"] == {"lora": value}


def test_overrides_reach_into_tables_and_the_last_one_holds(tmp_path: Path) -> None:
    write(tmp_path, ROOT + "[sft.helper]\nlora = { r = 16, alpha = 32 }\n[sft.'helper.v2']\n")
    overrides = ["helper.lora.r=8", "helper.lora.r=4", 'helper.map."a b"=1', "helper.v2.n=5"]
    assert attributes(manifest.load(tmp_path, overrides=overrides)) == {
        "helper": {"lora": {"r": 4, "alpha": 32}, "map": {"a b": 1}},
        "helper.v2": {"n": 5},
    }


def test_overrides_come_after_the_profile(tmp_path: Path) -> None:
    write(tmp_path, ROOT + "[sft.helper]\nn = 1\n[profile.smoke.helper]\nn = 2\n")
    read = manifest.load(tmp_path, profile="smoke", overrides=["helper.n=3"])
    assert attributes(read) == {"helper": {"n": 3}}


def test_a_matrix_makes_a_member_of_each_combination(tmp_path: Path) -> None:
    text = """\
[sft.helper]
model = "smol"
lora = { alpha = 32 }
matrix = { learning_rate = [1e-4, 2], "lora.r" = [8, 16] }
"""
    write(tmp_path, ROOT + text)

    read = manifest.load(tmp_path)

    assert attributes(read) == {
        f"helper[learning_rate={rate},lora.r={rank}]": {
            "model": "smol",
            "lora": {"alpha": 32, "r": rank},
            "learning_rate": rate,
        }
        for rate in (0.0001, 2)
        for rank in (8, 16)
    }
    assert {d.family for d in read.declarations} == {"helper"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1e-4", "0.0001"),
        ("1e-5", "1e-5"),
        ("1e20", "1e20"),
        ("2.50", "2.5"),
        ("2.0", "2.0"),
        ("1_000", "1000"),
        ("-1", "-1"),
        ("true", "true"),
        ('"all-linear"', "all-linear"),
    ],
)
def test_a_member_is_named_by_the_shortest_form_of_its_value(
    tmp_path: Path, value: str, text: str
) -> None:
    write(tmp_path, f"{ROOT}[sft.helper]\nmatrix = {{ x = [{value}] }}\n")
    assert list(attributes(manifest.load(tmp_path))) == [f"helper[x={text}]"]


def test_a_matrix_can_come_from_a_profile(tmp_path: Path) -> None:
    write(tmp_path, ROOT + "[sft.helper]\n[profile.sweep.helper]\nmatrix = { n = [1, 2] }\n")
    read = manifest.load(tmp_path, profile="sweep")
    assert list(attributes(read)) == ["helper[n=1]", "helper[n=2]"]


def test_a_member_with_a_name_too_long_for_a_file_is_refused(tmp_path: Path) -> None:
    texts = ", ".join(f'a{i} = ["{"x" * 40}"]' for i in range(5))
    write(tmp_path, f"{ROOT}[sft.helper]\nmatrix = {{ {texts} }}\n")
    assert "E0115" in refusal(tmp_path)
    assert "is longer than 200 characters" in refusal(tmp_path)


def test_bytes_that_are_not_utf8_are_shown_with_their_place(tmp_path: Path) -> None:
    write(tmp_path, b'[project]\nname = "caf\xe9"\n')
    assert refusal(tmp_path) == (
        "error[E0104]: `FTBUILD.toml` is not UTF-8: byte 0xe9\n"
        "  --> FTBUILD.toml:2:12\n"
        '  2 | name = "caf\ufffd"\n'
        "    |            ^\n"
        "  fix: save the file as UTF-8 without a byte order mark"
    )


def test_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    write(tmp_path, b"\xef\xbb\xbf[project]\n")
    assert refusal(tmp_path) == (
        "error[E0104]: `FTBUILD.toml` begins with a byte order mark\n"
        "  --> FTBUILD.toml\n"
        "  fix: save the file as UTF-8 without a byte order mark"
    )


def test_utf16_is_named(tmp_path: Path) -> None:
    write(tmp_path, "[project]\n".encode("utf-16"))
    assert refusal(tmp_path) == (
        "error[E0104]: `FTBUILD.toml` is UTF-16, not UTF-8\n"
        "  --> FTBUILD.toml\n"
        "  fix: save the file as UTF-8 without a byte order mark"
    )


def test_a_file_over_four_mebibytes_is_refused_unread(tmp_path: Path) -> None:
    write(tmp_path, ROOT)
    os.truncate(tmp_path / "FTBUILD.toml", (4 << 20) + 1)
    assert refusal(tmp_path) == (
        "error[E0105]: `FTBUILD.toml` has 4,194,305 bytes; at most 4,194,304 are read\n"
        "  --> FTBUILD.toml\n"
        "  fix: move targets into packages: folders with an FTBUILD.toml of their own"
    )


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "FTBUILD.toml").mkdir()
    assert refusal(tmp_path) == (
        "error[E0102]: `FTBUILD.toml` cannot be read\n"
        "  --> FTBUILD.toml\n"
        "  why: it is not a regular file"
    )


@pytest.mark.fault("53", "a pipe for a file")
def test_a_pipe_in_the_place_of_the_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FTBUILD.toml")
    assert "why: it is not a regular file" in refusal(tmp_path)


DEEP_FIX = "  fix: no rule takes values as deep as that; is a bracket missing?"


@pytest.mark.fault("53", "too deep")
@pytest.mark.parametrize("depth", [31, 100])
def test_lists_that_nest_too_deeply_are_refused(tmp_path: Path, depth: int) -> None:
    line = f"x = {'[' * depth}{']' * depth}"
    write(tmp_path, f"{ROOT}[a.b]\n{line}\n")
    assert refusal(tmp_path) == (
        "error[E0106]: tables and lists nest deeper than 32 levels\n"
        "  --> FTBUILD.toml:3:4 in [a.b]\n"
        "  3 | [a.b]\n"
        "    |    ^\n" + DEEP_FIX
    )


def test_lists_within_the_cap_are_read(tmp_path: Path) -> None:
    write(tmp_path, f"{ROOT}[a.b]\nx = {'[' * 30}{']' * 30}\n")
    assert len(manifest.load(tmp_path).declarations) == 1


@pytest.mark.fault("53", "too deep")
def test_lists_deeper_than_the_parser_can_follow_are_refused(tmp_path: Path) -> None:
    write(tmp_path, f"{ROOT}[a.b]\nx = {'[' * 100_000}\n")
    assert refusal(tmp_path) == (
        "error[E0106]: tables and lists nest deeper than 32 levels\n  --> FTBUILD.toml\n" + DEEP_FIX
    )


@pytest.mark.fault("53", "keys of 5,000 parts")
@pytest.mark.parametrize("key", ["a." * 5000 + "a", "'a' . " * 5000 + "a"])
def test_long_dotted_keys_are_refused_before_they_cost_anything(tmp_path: Path, key: str) -> None:
    write(tmp_path, f"{ROOT}{key} = 1\n" + f"[{key}]\n" * 50)
    assert refusal(tmp_path) == (
        "error[E0106]: tables and lists nest deeper than 32 levels\n"
        f"  --> FTBUILD.toml:3:1\n  3 | {key[:160]}…\n    | ^\n{DEEP_FIX}"
    )


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    write(tmp_path, f"{ROOT}[a.b]\nx = {'1' * 5000}\n")
    assert refusal(tmp_path) == (
        "error[E0107]: `FTBUILD.toml` holds a number that is too long to read\n"
        "  --> FTBUILD.toml\n"
        "  fix: Python reads numbers of up to 4,300 digits"
    )


def test_a_line_too_long_for_a_terminal_is_cut(tmp_path: Path) -> None:
    write(tmp_path, f'{ROOT}names = "{"x" * 1000}"\n')
    shown = f'names = "{"x" * 151}…'
    assert refusal(tmp_path) == (
        "error[E0109]: [project] has no key `names`\n"
        "  --> FTBUILD.toml:3:1 in [project]\n"
        f"  3 | {shown}\n"
        "    | ^^^^^\n"
        "  fix: did you mean `name`? it takes `name`, `default`, `rules`"
    )


def test_line_ends_of_windows_move_nothing(tmp_path: Path) -> None:
    write(tmp_path, b"[project]\r\nname = 7\r\n")
    assert refusal(tmp_path) == (
        "error[E0110]: `name` should be a text; found 7\n"
        "  --> FTBUILD.toml:2:8 in [project]\n"
        "  2 | name = 7\n"
        "    |        ^\n"
        '  fix: for example `name = "support-bot"`'
    )


def test_a_pipe_above_the_workspace_does_not_hang(tmp_path: Path) -> None:
    write(tmp_path, "[project]\n")
    (tmp_path / "inner").mkdir()
    os.mkfifo(tmp_path / "inner" / "FTBUILD.toml")
    assert manifest.find_root(tmp_path / "inner") == tmp_path
