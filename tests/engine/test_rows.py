"""Which rows of a file changed, with the numbers that an editor shows."""

import random
import time

import pytest

from ftbuild.rows import differences

OLD = b"""\
{"q": "hi", "a": "hello"}
{"q": "who", "a": "me"}
{"q": "bye", "a": "ciao"}
"""


def changes(old: bytes | str, new: bytes | str) -> list[str]:
    old, new = (x.encode() if isinstance(x, str) else x for x in (old, new))
    return list(differences(old, new))


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("a\nb\nc\n", "a\nB\nc\n", ["line 2: b → B"]),
        ("a\nb\n", "a\nb\nc\n", ["line 3 added: c"]),
        ("a\nb\nc\n", "b\nc\n", ["line 1 removed: a"]),
        ("a\nb\nc\n", "a\nx\ny\nz\n", ["line 2: b → x", "line 3: c → y", "line 4 added: z"]),
        ("a\nb\nc\nd\n", "a\nx\nd\n", ["line 2: b → x", "line 3 removed: c"]),
        ("a\nb\n", "b\na\n", ["line 1 removed: a", "line 2 added: a"]),
        ("", "a\n", ["line 1 added: a"]),
        ("a\n", "", ["line 1 removed: a"]),
        ("a\n", "a\n", []),
        ("a\n\n\nb\n", "a\n\nb\n", ["line 3 removed: "]),
    ],
)
def test_lines_of_text(old: str, new: str, lines: list[str]) -> None:
    assert changes(old, new) == lines


def test_field_of_a_row() -> None:
    new = OLD.replace(b"me", b"nobody")
    assert changes(OLD, new) == ['line 2, `a`: "me" → "nobody"']


def test_added_and_removed_fields() -> None:
    new = OLD.replace(b'"a": "me"', b'"b": 1')
    assert changes(OLD, new) == ['line 2, `a`: "me" → absent', "line 2, `b`: absent → 1"]


def test_field_within_lists_and_tables() -> None:
    old = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}'
    new = '{"messages": [{"role": "user", "content": "ho"}, {"role": "assistant"}]}'
    assert changes(old, new) == ['line 1, `messages[0].content`: "hi" → "ho"']


def test_list_of_another_length_is_shown_around_the_difference() -> None:
    old = '{"messages": [{"role": "user", "content": "a rather long question of somebody"}]}'
    new = old.replace('"}]', '"}, {"role": "assistant"}]')
    [line] = changes(old, new)
    assert line == (
        'line 1, `messages`: …estion of somebody"}] → …estion of somebody"}, {"role": "assistant"}]'
    )


def test_a_number_and_its_text_differ() -> None:
    assert changes('{"a": 1}', '{"a": "1"}') == ['line 1, `a`: 1 → "1"']
    assert changes('{"a": 1}', '{"a": true}') == ["line 1, `a`: 1 → true"]
    assert changes('{"a": 1}', '{"a": 1.0}') == ["line 1, `a`: 1 → 1.0"]


def test_rows_that_mean_the_same_show_as_text() -> None:
    assert changes('{"a": 1}', '{"a":1}') == ['line 1: {"a": 1} → {"a":1}']


def test_long_values_are_cut_around_the_first_difference() -> None:
    old, new = "x" * 100 + "OLD" + "y" * 100, "x" * 100 + "NEW" + "y" * 100
    [line] = changes(old, new)
    # 20 characters before the difference, 60 in all with the sign of the cut.
    assert line == f"line 1: …{'x' * 20}OLD{'y' * 36}… → …{'x' * 20}NEW{'y' * 36}…"


def test_a_value_never_takes_more_than_one_line() -> None:
    lines = changes('{"a": "one\\ntwo"}', '{"a": "one\\nthree"}')
    assert lines == [r'line 1, `a`: "one\ntwo" → "one\nthree"']


def test_only_line_feeds_end_a_line() -> None:
    """U+2028, U+0085 and form feeds may stand within a row of JSON; editors count none of them."""
    old = '{"a": "\u2028\u0085\x0c"}\n{"b": 1}\n'
    assert changes(old, old.replace("1", "2")) == ["line 2, `b`: 1 → 2"]


def test_windows_line_ends() -> None:
    assert changes(b"a\r\nb\r\n", b"a\r\nc\r\n") == ["line 2: b → c"]
    assert changes(b"a\r\n", b"a\n") == []


def test_bytes_that_are_no_text() -> None:
    assert changes(b"\xff\n", b"\xfe\n\x80") == ["line 2 added: �"]


def test_frequent_rows_are_no_noise() -> None:
    """500 empty rows: an inserted row is one line, and no row is said to have moved."""
    old = "\n".join([*["same"] * 500, "end", *["same"] * 500])
    new = "\n".join([*["same"] * 500, "end", "new", *["same"] * 500])
    assert changes(old, new) == ["line 502 added: new"]


def test_scattered_edits_in_a_large_file_take_no_minutes() -> None:
    rows = [f'{{"n": {i}}}' for i in range(50_000)]
    edited = [row.replace("n", "m") if i % 2 else row for i, row in enumerate(rows)]
    began = time.process_time()
    lines = changes("\n".join(rows), "\n".join(edited))
    assert time.process_time() - began < 10  # 125 s when all rows were compared with all
    assert len(lines) == 50_000  # two fields in each of 25,000 rows
    assert lines[:2] == ["line 2, `n`: 1 → absent", "line 2, `m`: absent → 1"]


def test_repetitive_large_file_takes_no_minutes() -> None:
    old, new = "a\n" * 3000, "b\na\n" * 1500
    began = time.process_time()
    assert changes(old, new)
    assert time.process_time() - began < 10


def test_what_is_said_turns_the_old_file_into_the_new_one() -> None:
    """The lines are carried out as an instruction: whatever the edit, the new file comes out."""
    for seed in range(500):
        dice = random.Random(seed)
        old = [f"row {dice.randrange(8)}" for _ in range(dice.randrange(20))]
        new = list(old)
        for _ in range(dice.randrange(6)):
            place = dice.randrange(len(new) + 1)
            new[place : place + dice.randrange(3)] = ["new"] * dice.randrange(3)
        assert _carried_out(old, changes("\n".join(old), "\n".join(new))) == new, seed


def _carried_out(old: list[str], lines: list[str]) -> list[str]:
    removed = {int(x.split()[1]) for x in lines if " removed: " in x}
    kept = [row for number, row in enumerate(old, 1) if number not in removed]
    for line in (x for x in lines if " removed: " not in x):
        place, _, text = line.removeprefix("line ").partition(": ")
        number = int(place.split()[0]) - 1
        if place.endswith("added"):
            kept.insert(number, text)
        else:
            assert kept[number] == text.split(" → ")[0]
            kept[number] = text.split(" → ")[1]
    return kept
