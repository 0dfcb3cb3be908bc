"""Positions of keys and values, counted by hand in one text."""

import pytest

from ftbuild.spans import Finding, Spot, locate, problems

TEXT = """\
a.b = 1
[sft."hel.per".x]
lora = { r = 16, "a b".c = [1, {z = 2}] }  # note
[[arr.t]]
k = \"""
multi\"""
[[arr.t]]
"ü" = "é𝄞"
[arr.t.sub]
deep = [
  # a comment
  "one",
  "two",  # another
]
\t[tabbed]
""".encode()


@pytest.mark.parametrize(
    ("path", "of", "spot"),
    [
        (("a",), "key", (1, 1, 1)),
        (("a", "b"), "key", (1, 3, 1)),
        (("a", "b"), "value", (1, 7, 1)),
        (("sft",), "key", (2, 2, 3)),
        (("sft", "hel.per"), "key", (2, 6, 9)),
        (("sft", "hel.per", "x"), "value", (2, 16, 1)),
        (("sft", "hel.per", "x", "lora"), "key", (3, 1, 4)),
        (("sft", "hel.per", "x", "lora"), "value", (3, 8, 34)),
        (("sft", "hel.per", "x", "lora", "r"), "value", (3, 14, 2)),
        (("sft", "hel.per", "x", "lora", "a b"), "key", (3, 18, 5)),
        (("sft", "hel.per", "x", "lora", "a b", "c", 0), "value", (3, 29, 1)),
        (("sft", "hel.per", "x", "lora", "a b", "c", 1, "z"), "value", (3, 37, 1)),
        (("arr", "t", 0, "k"), "value", (5, 5, 3)),
        (("arr", "t", 1), "value", (7, 3, 5)),
        (("arr", "t", 1, "ü"), "key", (8, 1, 3)),
        (("arr", "t", 1, "ü"), "value", (8, 7, 4)),
        (("arr", "t", 1, "sub", "deep", 0), "value", (12, 3, 5)),
        (("arr", "t", 1, "sub", "deep", 1), "value", (13, 3, 5)),
        (("tabbed",), "key", (15, 3, 6)),
    ],
)
def test_keys_and_values_are_found(path: tuple[str | int, ...], of: str, spot: Spot) -> None:
    assert locate(TEXT, path, of=of) == Spot(*spot)  # type: ignore[arg-type]  # one of the two


def test_what_is_absent_is_placed_where_it_is_missed() -> None:
    assert locate(TEXT, ("sft", "hel.per", "x", "epochs"), of="value") == Spot(2, 16, 1)
    assert locate(TEXT, ("nothing",), of="key") == Spot(1, 1, 1)


def test_one_finding_twice_is_one_problem() -> None:
    finding = Finding("E0204", "wrong", "FTBUILD.toml", ("a", "b"))
    [problem] = problems([finding, finding], {"FTBUILD.toml": TEXT})
    assert problem.render() == (
        "error[E0204]: wrong\n  --> FTBUILD.toml:1:7 in [a.b]\n  1 | a.b = 1\n    |       ^"
    )


def test_a_caret_below_tabs_and_wide_text_stands_below_its_value() -> None:
    text = b'\tname = "\xc3\xbc" # \xc3\xa9\n'
    [problem] = problems([Finding("E0110", "wrong", "F", ("name",))], {"F": text})
    assert problem.render() == (
        'error[E0110]: wrong\n  --> F:1:9\n  1 | \tname = "ü" # é\n    | \t       ^^^'
    )


def test_what_the_command_line_says_has_no_line() -> None:
    [problem] = problems([Finding("E0002", "wrong", "--set a.b=1")], {})
    assert problem.render() == "error[E0002]: wrong\n  --> --set a.b=1"
